"""How files are written, and folders marked and locked, so that nothing of the user's is lost.

with atomic(path) as file: ...        # completely or not at all
write_mark(folder, "export", files=[...])   # later only these files are removed
with Lock(folder / LOCK, "..."): ...  # one process at a time
"""

from __future__ import annotations

from nolabel._files.atomic import atomic, replacement, usual_mode, write_text
from nolabel._files.lock import LOCK, Lock
from nolabel._files.marks import MARK, read_mark, refuse_dangerous, remove_matching, write_mark
from nolabel._files.places import check_file, check_folder
from nolabel._files.reading import read_json, read_text, require_file
from nolabel._files.scratch import scratch_folder
from nolabel._files.tensors import save_tensors

__all__ = [
    "LOCK",
    "MARK",
    "Lock",
    "atomic",
    "check_file",
    "check_folder",
    "read_json",
    "read_mark",
    "read_text",
    "refuse_dangerous",
    "remove_matching",
    "replacement",
    "require_file",
    "save_tensors",
    "scratch_folder",
    "usual_mode",
    "write_mark",
    "write_text",
]
