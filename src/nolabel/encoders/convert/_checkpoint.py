"""Reads a published checkpoint: tensors and plain values, and nothing that could run code."""

from __future__ import annotations

import argparse
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nolabel._files import require_file
from nolabel.errors import FileDamaged


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint: tensors and plain values by name, possibly nested.

    Raises:
        UsageError, FileDamaged: as `import_file`.
    """
    path = Path(path)
    require_file(path, "a checkpoint file")
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise FileDamaged(f"{str(path)!r} is empty (0 bytes). Fetch it again.")
    if head[8:9] == b"{":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, ValueError, OSError) as error:
            raise FileDamaged(
                f"{str(path)!r} is truncated or altered ({error}). Fetch it again."
            ) from None
    if _has_code(path):
        raise FileDamaged(
            f"{str(path)!r} is a TorchScript archive, which holds code. Where you trust it, save "
            "its tensors: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)."
        )
    try:
        # Official training checkpoints store their arguments as a Namespace, which is only data.
        # Numbers and arrays of NumPy and paths, as of a best accuracy, are skipped unread.
        skipped: list[Any] = [(_Skipped, name) for name in _SKIPPED]
        with torch.serialization.safe_globals([argparse.Namespace, *skipped]):
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise almost any type
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named and type(error).__name__ == "UnpicklingError":
            raise FileDamaged(
                f"{str(path)!r} holds {named.group(1)}, an object that could run code when opened; "
                "nolabel reads only tensors and plain values. Ask its author for a file with the "
                "tensors only (a state_dict, best as safetensors)."
            ) from None
        # torch's own message advises to load it with pickle, which executes what is in the file.
        own = "weights_only" in str(error)
        reason = "" if own else f" ({(str(error) or type(error).__name__).splitlines()[0]})"
        raise FileDamaged(
            f"{str(path)!r} is truncated or no checkpoint{reason}. Fetch it again."
        ) from None
    if not isinstance(value, Mapping):
        raise FileDamaged(
            f"{str(path)!r} holds a {type(value).__name__}; a dictionary of tensors is needed."
        )
    return dict(value)


class _Skipped:
    """Stands in place of a plain value that the encoder does not need."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


_SKIPPED = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")
      for name in ("scalar", "_reconstruct")),
    "numpy.dtype", "numpy.ndarray",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath", "datetime.datetime", "datetime.timedelta",
)  # fmt: skip


def _has_code(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip file with a folder `code`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False
