"""Writes and reads metrics.jsonl: one JSON object a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


class MetricsLog:
    """Appends one JSON object a line, flushed at once.

    A line's "step" is the number of steps done. When a run resumes at step s, the lines after s are
    deleted: the resumed run writes them again.

    Args:
        path: the file; created if it does not exist.
        start: step at which the run starts or resumes.
    """

    def __init__(self, path: Path, start: int = 0):
        self.path = path
        if path.exists():
            lines = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= start:
                        lines.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # a line truncated by a crash
            temporary = path.with_suffix(".tmp")
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())  # else a power cut after the rename may leave it empty
            os.replace(temporary, path)
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
    """The lines of metrics.jsonl; lines truncated by a crash are skipped."""
    out: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            out.append(value)
    return out


def strict(value: Any) -> Any:
    """A value for strict JSON: scalars of torch and numpy as numbers, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    if isinstance(value, torch.Tensor | np.generic | np.ndarray):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
