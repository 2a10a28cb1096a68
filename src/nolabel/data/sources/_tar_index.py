"""The index of a tar shard: which members form a sample, and where they are.

`cats/001.jpg`, `cats/001.cls` and `cats/001.txt` are the image, the label and the text of sample
`cats/001`; `.group` and `.domain` hold the names of its group and its domain. Members of other
kinds are ignored, and so are links, devices and hidden files.

In WebDataset's layout a sample's name ends at the first dot of the file name, so that `001.jpg` and
`001.mask.png` are two images of one sample; the one with a single suffix is the image then. Where
no image of a name has a single suffix, the dots belong to the names (`scan 22.00.png`, `scan
22.01.png`), and each image is a sample. What is left out is counted in the notes.
"""

from __future__ import annotations

import os
import tarfile
from typing import NamedTuple, Self

import numpy as np

from nolabel.data._strings import StringTable
from nolabel.data.sources._decode import SUFFIXES
from nolabel.errors import printable

NAMES = ("cls", "group", "domain")  # suffixes of members that hold one name each
_TEXT = "txt"
_MAX_NAME_BYTES = 1 << 16  # a longer member is not taken as a name
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
_MAX_EXTENSION_BYTES = 1 << 20
_TAR_BLOCK = 512  # bytes; headers and data begin at multiples of it
_TAR_RECORD = 10_240  # bytes; writers fill up to a multiple of it with zeros


class _Header(tarfile.TarInfo):
    """A header whose extension (long names, pax records) is read only if it is of usual size.

    tarfile reads an extension whole, whatever size it claims.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENSIONS and header.size > _MAX_EXTENSION_BYTES:
            raise tarfile.ReadError(f"a header claims an extension of {header.size:,} bytes")
        return header


class _Image(NamedTuple):
    name: str  # of the member
    stem: str  # up to the last dot
    sample: str  # up to the first dot of the file name
    offset: int
    size: int


class _Members(NamedTuple):
    images: list[_Image]
    others: dict[str, dict[str, tuple[int, int]]]  # suffix -> stem -> offset and size


def build_index(file: str) -> dict[str, np.ndarray]:
    """Reads the headers of a tar.

    Args:
        file: its path.

    Returns:
        "image" and "txt", int64 [N, 2]: offset and size in bytes (size -1: none); and string
        tables: "member", names of the N images; "cls", "group" and "domain", N names ("": none);
        "notes", remarks on the tar.

    Raises:
        tarfile.TarError: not a tar.
        OSError: it cannot be read.
    """
    members, notes = _read_headers(file)
    images, left_out = _choose_images(members.images)
    if left_out:
        notes.append(
            f"{len(left_out):,} image(s) were left out, since their sample has another one, first "
            f"{printable(left_out[0].name)}"
        )
    none = (0, -1)

    def beside(image: _Image, kind: str) -> tuple[int, int]:
        """Place of the member of this kind that belongs to an image."""
        found = members.others.get(kind, {})
        return found.get(image.stem) or found.get(image.sample) or none

    out = {
        "image": np.array([(m.offset, m.size) for m in images], np.int64).reshape(-1, 2),
        "txt": np.array([beside(m, _TEXT) for m in images], np.int64).reshape(-1, 2),
        **StringTable.from_strings(m.name for m in images).to_arrays("member"),
        **StringTable.from_strings(notes).to_arrays("notes"),
    }
    with open(file, "rb") as raw:
        for kind in NAMES:
            names = []
            for image in images:
                offset, size = beside(image, kind)
                raw.seek(offset)
                data = raw.read(size) if 0 < size <= _MAX_NAME_BYTES else b""
                names.append(data.decode("utf-8", "replace").strip())
            out |= StringTable.from_strings(names).to_arrays(kind)
    return out


def _read_headers(file: str) -> tuple[_Members, list[str]]:
    """The members that are used, and remarks on how the tar ends."""
    members, seen = _Members([], {}), False
    with tarfile.open(file, "r:", tarinfo=_Header) as tar:
        while True:
            try:
                member = tar.next()
            except (ValueError, OverflowError, RecursionError) as error:  # numbers that are none
                raise tarfile.ReadError(f"damaged header: {str(error)[:80]}") from None
            except tarfile.ReadError:
                if not seen:
                    raise
                return members, [_CUT]
            if member is None:
                break
            seen = True
            vars(tar)["members"].clear()  # else TarFile keeps an object for every member
            if not member.isreg() or member.issparse():
                continue
            head, _, base = member.name.rpartition("/")
            root, suffix = os.path.splitext(base)
            if base.startswith(".") or not suffix:
                continue
            stem, suffix = f"{head}/{root}", suffix.lower()
            if suffix in SUFFIXES:
                sample = f"{head}/{base.partition('.')[0]}"
                members.images.append(
                    _Image(member.name, stem, sample, member.offset_data, member.size)
                )
            elif suffix[1:] in (*NAMES, _TEXT):
                place = (member.offset_data, member.size)
                members.others.setdefault(suffix[1:], {}).setdefault(stem, place)
        end = tar.offset
    return members, _judge_end(file, end)


_CUT = "ends too early, as a download that was stopped: what followed is missing"


def _judge_end(file: str, end: int) -> list[str]:
    """Remarks on what stands where the last member ends: a tar ends with blocks of zeros."""
    with open(file, "rb") as raw:
        raw.seek(end)
        block, rest = raw.read(_TAR_BLOCK), raw.read(2 * _TAR_RECORD)
    if not block:
        return ["has no end marker: it may be incomplete"]
    if len(block) < _TAR_BLOCK:
        return [_CUT]
    if any(block):
        return [f"is damaged at byte {end:,}: what follows was not read"]
    if any(rest):
        return ["goes on after its end, as several tars in one file: what follows was not read"]
    return []


def _choose_images(images: list[_Image]) -> tuple[list[_Image], list[_Image]]:
    """The image of each sample, in the order of the tar, and those that are left out."""
    of_sample: dict[str, list[_Image]] = {}
    for image in images:
        of_sample.setdefault(image.sample, []).append(image)
    chosen, left_out = [], []
    for found in of_sample.values():
        plain = [image for image in found if image.stem == image.sample]
        if plain:
            chosen.append(plain[0])
            left_out += [image for image in found if image is not plain[0]]
            continue
        distinct: dict[str, _Image] = {}
        for image in found:
            if distinct.setdefault(image.stem, image) is not image:
                left_out.append(image)
        chosen += distinct.values()
    return sorted(chosen, key=lambda image: image.offset), left_out
