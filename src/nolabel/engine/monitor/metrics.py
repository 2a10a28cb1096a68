"""Writes and reads metrics.jsonl: one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nolabel._files import write_text
from nolabel.errors import FileDamaged

_TEXTS = frozenset(("verdict",))  # what in a line is no number
_LARGEST = 1e100  # numbers from here on would overflow in sums and curves


class MetricsLog:
    """Appends one JSON object a line, flushed at once.

    A line's "step" is the number of steps done. When a run resumes at step s, the lines after s are
    deleted: the resumed run writes them again.

    Args:
        path: the file; created if it does not exist.
        start: step at which the run starts or resumes.

    Raises:
        FileDamaged: the path leads to something else than a file.
    """

    def __init__(self, path: Path, start: int = 0):
        self.path = path
        if path.exists() and not path.is_file():  # a pipe would make us wait for ever
            raise FileDamaged(f"{path} is no file. Move it away.")
        if path.exists():
            lines = []
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= start:
                        lines.append(line + "\n")
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # a line truncated by a crash
            write_text(path, "".join(lines))
        self.file = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes a line; non-finite numbers become null."""
        self.file.write(json.dumps(strict(line), allow_nan=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; lines truncated by a crash, or damaged, are skipped."""
    return (
        parse_metrics(path.read_text(encoding="utf-8", errors="replace"))[0]
        if path.exists()
        else []
    )


def parse_metrics(text: str) -> tuple[list[dict[str, Any]], int]:
    """The lines of a text like metrics.jsonl, and how many could not be used.

    A line that can be used is an object of numbers, None and texts, with a number of steps.
    """
    out: list[dict[str, Any]] = []
    bad = 0
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict) and _is_line(value):
            out.append(value)
        else:
            bad += bool(line.strip())
    return out, bad


def _is_line(line: Mapping[str, Any]) -> bool:
    step = line.get("step")
    if not isinstance(step, int) or not 0 <= step < _LARGEST:
        return False
    return all(
        isinstance(v, str) if key in _TEXTS else v is None or _is_number(v)
        for key, v in line.items()
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and (value != value or abs(value) < _LARGEST)


def strict(value: Any) -> Any:
    """A value for strict JSON: scalars of torch and numpy as numbers, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    if isinstance(value, torch.Tensor | np.generic | np.ndarray):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
