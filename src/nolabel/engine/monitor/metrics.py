"""metrics.jsonl: the lines of a run, one JSON object each, written and read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends one JSON object a line, flushed at once.

    A line's "step" is the number of steps done, so a run that resumes at step s has written lines
    up to s itself. On opening, lines after s are dropped: the resumed run writes them again.

    Args:
        path: the file; created if it is not there.
        start: step at which the run starts or resumes.
    """

    def __init__(self, path: Path, start: int = 0):
        self.path = path
        if path.exists():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= start:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut short by a crash
            temporary = path.with_suffix(".tmp")
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())  # else a power cut after the rename may leave it empty
            os.replace(temporary, path)
        self.file = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes a line; numbers that are not finite become null."""
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
    """Lines of metrics.jsonl; what a crash cut short is passed over."""
    out: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            read = json.loads(line)
        except ValueError:
            continue
        if isinstance(read, dict) and isinstance(read.get("step"), int):
            out.append(read)
    return out


def strict(value: Any) -> Any:
    """A value as strict JSON knows it: scalars of torch and numpy as numbers, no NaN."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
