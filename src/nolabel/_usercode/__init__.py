"""Classes from a user's own file: methods, backbones and sources named `path/to/file.py:Class`.

A file that the user names is executed, and the SHA-256 of its bytes is recorded as trusted on this
machine (`trust`). From then on the class is named with the file's hash, such as
`file.py:Class@1f2e3d4c5b6a`, in configurations and encoder files. A copy of the file is written
beside them, in `code/`. When such a configuration is read again, exactly these bytes are executed,
from the copy, and only if they are trusted.

    recorded = load_path("my.py:VICReg", suits).name      # what the user typed
    kind = find(recorded, suits)                          # anywhere later in this process
    admit(raw, folder)                                    # before a run's folder is read back

Trust depends on the bytes of the code alone, not on where a folder came from.
"""

from __future__ import annotations

from nolabel._usercode.loading import (
    Executed,
    Suits,
    admit,
    admitted,
    copy_code,
    find,
    load_path,
    load_uncopied,
    records,
    refuse_paths,
)
from nolabel._usercode.reference import Reference, is_reference, parse, without_hash
from nolabel._usercode.trust import trusted_code

__all__ = [
    "Executed",
    "Reference",
    "Suits",
    "admit",
    "admitted",
    "copy_code",
    "find",
    "is_reference",
    "load_path",
    "load_uncopied",
    "parse",
    "records",
    "refuse_paths",
    "trusted_code",
    "without_hash",
]
