"""Files of a run that could not be read."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from pathlib import Path

from nolabel._files import read_text
from nolabel.errors import DataError

# What the system says where the storage fails.
_STORAGE = tuple(
    os.strerror(number)
    for number in (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)
)


class UnreadableFiles:
    """Lists each unreadable file once in skipped.jsonl, and stops the run if there are too many.

    Args:
        path: of skipped.jsonl; files in it are counted too.
        images: number of images in the training data.
        max_bad: largest share of them that may be unreadable, 0 to 1.
        write: whether this rank writes the list.
    """

    def __init__(self, path: Path, images: int, max_bad: float, *, write: bool = True):
        self.path, self.images, self.max_bad, self.write = path, images, max_bad, write
        self.paths: set[str] = set()
        for line in (read_text(path) or "").splitlines():
            with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
                self.paths.add(str(json.loads(line)["path"]))

    def add(self, files: tuple[tuple[str, str], ...]) -> None:
        """Lists and counts files.

        Args:
            files: (path, reason) of each, from all ranks.

        Raises:
            DataError: more than `max_bad` of the images are unreadable.
        """
        new = [(p, r) for p, r in dict(files).items() if p not in self.paths]
        if not new:
            return
        self.paths |= {path for path, _ in new}
        lines = [json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in new]
        # A full disk must not stop the run; the files are counted all the same.
        if self.write and (self.path.is_file() or not self.path.exists()):
            with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        if len(self.paths) > self.max_bad * self.images:
            path, reason = new[-1]
            share = math.ceil(len(self.paths) / self.images * 110) / 100
            advice = f"Repair or remove them, or allow more with --max-bad {share:.2f}."
            if any(fault in reason for fault in _STORAGE):
                advice = (
                    "The disk or the network share fails, not the files: when it answers again, "
                    "delete this list and resume the run."
                )
            raise DataError(
                f"{len(self.paths)} of {self.images} files cannot be read, more than "
                f"{self.max_bad:.1%} (the last: {path}: {reason}). They are listed in "
                f"{self.path}. {advice}"
            )
