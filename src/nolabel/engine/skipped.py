"""Files of a run that could not be read."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

from nolabel.errors import DataError


class Skipped:
    """Unreadable files: each listed once in skipped.jsonl, and counted against the limit."""

    def __init__(self, path: Path, images: int, max_bad: float, *, write: bool = True):
        self.path, self.images, self.max_bad, self.write = path, images, max_bad, write
        self.seen: set[str] = set()
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError):
                    self.seen.add(json.loads(line)["path"])

    def add(self, skipped: tuple[tuple[str, str], ...]) -> None:
        new = [(p, r) for p, r in dict(skipped).items() if p not in self.seen]
        if not new:
            return
        self.seen |= {path for path, _ in new}
        lines = [json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in new]
        # A full disk costs the list, not the run: the files are counted all the same.
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines if self.write else [])
        if len(self.seen) > self.max_bad * self.images:
            path, reason = new[-1]
            raise DataError(
                f"{len(self.seen)} of {self.images} files cannot be read, more than "
                f"{self.max_bad:.1%} (the last: {path}: {reason}). They are listed in "
                f"{self.path}. Mend or remove them, or allow more with --max-bad "
                f"{math.ceil(len(self.seen) / self.images * 110) / 100:.2f}."
            )
