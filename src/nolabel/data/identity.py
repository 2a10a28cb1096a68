"""Which images a source holds, as a digest: counts and spellings of folders do not tell.

Whoever continues work on data, or joins two files about them, compares digests.
"""

from __future__ import annotations

import contextlib
import hashlib
import os

import numpy as np

from nolabel.data.source import Source, Subset
from nolabel.data.sources.arrays import Arrays

SAMPLED = 64  # files whose content is read, evenly spread over the source


def data_digest(source: Source) -> str:
    """SHA-256 of the names of all images in order, and of the content of some.

    Names count from the innermost folder that holds all of them, so that a data set may be moved.
    Of sources with files, `SAMPLED` files are read; an exchange of others under the same names is
    not noticed. Arrays are read completely.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{len(source)}\n".encode())
    whole = source.source if isinstance(source, Subset) else source
    if isinstance(whole, Arrays):
        digest.update(np.ascontiguousarray(whole.pixels).data)
    root = _common_folder(source)
    for i in range(len(source)):
        digest.update(os.fsencode(source.path(i)[len(root) :]) + b"\0")
    if source.has_files:
        for i in np.linspace(0, len(source) - 1, min(SAMPLED, len(source))).astype(int).tolist():
            with contextlib.suppress(OSError):  # an unreadable file is reported where it is used
                digest.update(hashlib.sha256(source.read_bytes(i)).digest())
            digest.update(b"\0")
    return digest.hexdigest()


def _common_folder(source: Source) -> str:
    """The longest start of all names that ends with a slash; "" if there is none."""
    if source.root:
        return source.root.rstrip("/") + "/"
    if not len(source):
        return ""
    start = source.path(0)
    for i in range(len(source)):
        path = source.path(i)
        if not path.startswith(start):
            start = os.path.commonprefix([start, path])
    return start[: start.rfind("/") + 1]
