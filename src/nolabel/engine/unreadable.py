"""Files of a run that could not be read."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

from nolabel.errors import DataError


class UnreadableFiles:
    """Each unreadable file is listed once in skipped.jsonl and counted against the limit.

    Args:
        path: of skipped.jsonl; what it lists already is counted.
        images: in the training data.
        max_bad: largest share of them that may be unreadable.
        write: whether this process writes the list.
    """

    def __init__(self, path: Path, images: int, max_bad: float, *, write: bool = True):
        self.path, self.images, self.max_bad, self.write = path, images, max_bad, write
        self.seen: set[str] = set()
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError):
                    self.seen.add(json.loads(line)["path"])

    def add(self, files: tuple[tuple[str, str], ...]) -> None:
        """Lists and counts files.

        Args:
            files: (path, reason) of each, of all processes.

        Raises:
            DataError: there are too many by now.
        """
        new = [(p, r) for p, r in dict(files).items() if p not in self.seen]
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
