"""What a run says when too many files cannot be read."""

from __future__ import annotations

import os

import pytest

from nolabel.engine.unreadable import UnreadableFiles
from nolabel.errors import DataError


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        (f"cannot be read ([Errno 5] {os.strerror(5)}: 'a.png')", "disk or the network share"),
        ("a text, not an image", "Repair or remove them"),
    ],
)
def test_a_disk_that_fails_is_told_from_files_that_are_damaged(reason, advice, tmp_path):
    files = UnreadableFiles(tmp_path / "skipped.jsonl", images=10, max_bad=0.1)
    with pytest.raises(DataError, match=advice):
        files.add((("a.png", reason), ("b.png", reason)))
