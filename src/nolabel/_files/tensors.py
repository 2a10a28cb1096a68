"""safetensors files, written completely or not at all, that colleagues can read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nolabel._files.atomic import replacement, usual_mode

if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(
    tensors: dict[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors to a safetensors file, which replaces `path` when it is complete.

    The library itself makes files of mode 0600; this one's follows the user's umask.

    Args:
        tensors: contiguous tensors on the CPU that share no memory, by name.
        path: of the file.
        metadata: texts that are kept with it.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacement(path) as temporary:
        mode = usual_mode(temporary)
        try:
            save_file(tensors, temporary, None if metadata is None else dict(metadata))
        except SafetensorError as error:  # the library's wrapping of a full disk, for one
            raise OSError(f"{path}: {error}") from error
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
