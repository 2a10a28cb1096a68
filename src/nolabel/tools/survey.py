"""Measures a set of images: sizes, colours, unreadable files, duplicates. Reads each image once."""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nolabel.data.order import index_at
from nolabel.data.progress import progress_bar
from nolabel.data.read_ahead import read_ahead
from nolabel.data.source import Source
from nolabel.data.sources._bands import to_rgb8
from nolabel.data.sources._decode import open_image
from nolabel.data.statistics import channel_counts, row_blocks
from nolabel.errors import BadImage, printable

THUMB = 64  # side of the thumbnails on the contact sheet, pixels
_SMALL = 16  # side of the thumbnails that are compared to find near-duplicates, pixels
_DARK = 1 / 12  # largest value of all images, of white, below which the depth is doubted
_WITH_PAGES = (".tif", ".tiff", ".gif", ".webp", ".apng")
_MAX_BITS = 3  # images whose 64-bit hashes differ in at most so many bits are candidates
_MAX_DIFFERENCE = 3.0  # largest mean absolute difference of near-duplicates' thumbnails, of 255
_MAX_NEIGHBOURS = 64  # hashes compared with each one in sorted order, where a quarter is equal


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The results of `survey`, over the images that were read."""

    name: str  # of the source
    images: int  # in the source
    seen: int  # images that `survey` tried to read
    sizes: np.ndarray  # int32 [good, 2]: height and width of each in pixels
    modes: dict[str, int]  # grey or colour -> images
    mean: tuple[float, ...]  # of each channel over all pixels, values in 0 to 1
    std: tuple[float, ...]
    bad: tuple[tuple[str, str], ...]  # (path, reason)
    same: tuple[tuple[str, ...], ...]  # groups of exact duplicates: equal pixels
    near: tuple[tuple[str, ...], ...]  # groups of near-duplicates, exact ones left out
    notes: tuple[str, ...]  # on what was chosen or left out when the source was opened
    labels: dict[str, int]  # class -> images; empty without labels
    thumbs: np.ndarray  # uint8 [T, THUMB, THUMB, 3], some of the images

    @property
    def good(self) -> int:
        """Images that could be read."""
        return len(self.sizes)


def survey(
    source: Source, *, limit: int | None = None, seconds: float = math.inf, thumbs: int = 64
) -> Survey:
    """Reads the images of a source and measures them.

    Args:
        source: any source.
        limit: reads that many images, drawn at random from the source; None reads all.
        seconds: stops reading after so long; the images that were read are drawn at random, too.
        thumbs: images on the contact sheet.
    """
    n = len(source)
    # In random order, so that it may be cut anywhere and is still a fair sample.
    chosen = index_at(0, 0, np.arange(n if limit is None else min(limit, n)), n)
    if seconds == math.inf:
        chosen = np.sort(chosen)
    ends = time.monotonic() + seconds
    bad: list[tuple[str, str]] = []
    sizes, kept, small, hashes, tiles = [], [], [], [], []
    modes: Counter[str] = Counter()
    highest, paged = 0.0, 0
    exact: defaultdict[bytes, list[int]] = defaultdict(list)
    total, squares, pixels = np.zeros(source.channels), np.zeros(source.channels), 0
    every = max(len(chosen) // max(thumbs, 1), 1)
    with progress_bar(f"reading {source.name}", len(chosen)) as advance:
        measured = read_ahead(lambda i: _measure(source, i), chosen.tolist(), lambda _: 0)
        for row, found in enumerate(measured):
            advance(1)
            if isinstance(found, BadImage):
                bad.append((printable(found.path), found.reason))
                continue
            i = int(chosen[row])
            kept.append(i)
            sizes.append(found.size)
            highest, paged = max(highest, found.highest), paged + found.pages
            modes["grey" if found.grey else "colour"] += 1
            exact[found.digest].append(i)
            small.append(found.small)
            hashes.append(found.hash)
            area = found.size[0] * found.size[1]
            total, squares, pixels = total + found.total, squares + found.squares, pixels + area
            if row % every == 0 and len(tiles) < thumbs:
                tiles.append(found.thumb)
            if time.monotonic() > ends and row + 1 < len(chosen):
                chosen = chosen[: row + 1]
                break
    by_index = np.argsort(kept, kind="stable")
    sizes, kept, small, hashes = (
        [part[j] for j in by_index] for part in (sizes, kept, small, hashes)
    )
    exact = defaultdict(list, {key: sorted(members) for key, members in exact.items()})
    mean = total / max(pixels, 1) / 255
    variance = np.maximum(squares / max(pixels, 1) / 255**2 - mean**2, 0)
    same = [members for members in exact.values() if len(members) > 1]
    near = _near_duplicates(np.array(hashes, np.uint64), np.array(small), np.array(kept), same)
    counted: dict[str, int] = {}
    reason = source.unlabelled if source.labels is None else ""
    unlabelled = (f"no labels: {reason}",) if reason else ()
    if source.labels is not None:
        counts = np.bincount(source.labels, minlength=len(source.classes))
        counted = dict(zip(source.classes, counts.tolist(), strict=True))

    def named(groups: list[list[int]]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(printable(source.path(i)) for i in g) for g in groups)

    return Survey(
        name=source.name,
        images=n,
        seen=len(chosen),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        modes=dict(modes),
        mean=tuple(float(v) for v in mean),
        std=tuple(float(v) for v in np.sqrt(variance)),
        bad=tuple(bad),
        same=named(same),
        near=named(near),
        notes=(*source.notes, *unlabelled, *_notes_on_pixels(source, highest, paged, len(kept))),
        labels=counted,
        thumbs=np.array(tiles, np.uint8).reshape(-1, THUMB, THUMB, 3),
    )


def _notes_on_pixels(source: Source, highest: float, paged: int, good: int) -> list[str]:
    """What the values and the files hold that is not used."""
    notes = []
    if paged:
        notes.append(
            f"{paged:,} file(s) have several pages or frames; only the first of each is read"
        )
    if good and highest <= _DARK and source.channels == 3:
        notes.append(
            f"all images are dark: no value is above {highest:.1%} of white, as when 10 or 12 bits "
            "are stored in 16; with --channels 1 the values are kept and measured"
        )
    return notes


@dataclass(frozen=True)
class _ImageStatistics:
    size: tuple[int, int]
    highest: float  # largest value, of 1
    pages: bool  # whether the file has more than one page or frame
    grey: bool
    digest: bytes
    hash: int
    small: np.ndarray  # uint8 [16, 16]
    thumb: np.ndarray  # uint8 [64, 64, 3]
    total: np.ndarray  # float64 [C]: sum of the values, of 255
    squares: np.ndarray  # float64 [C]


def _measure(source: Source, i: int) -> _ImageStatistics | BadImage:
    try:
        pixels = source.read(i).image
    except BadImage as error:
        return error
    counts = channel_counts(pixels)
    values = np.arange(counts.shape[1]) * (255 / (counts.shape[1] - 1))
    image = Image.fromarray(to_rgb8(pixels))
    grey = image.convert("L")
    steps = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (steps[:, 1:] > steps[:, :-1]).reshape(-1)
    return _ImageStatistics(
        size=pixels.shape[:2],
        highest=float(np.flatnonzero(counts.any(0))[-1]) / (counts.shape[1] - 1),
        pages=_has_pages(source, i),
        grey=bool(
            (counts == counts[0]).all() and all((b[..., :1] == b).all() for b in row_blocks(pixels))
        ),
        digest=_digest(pixels),
        hash=int(np.packbits(bits).view(">u8")[0]),
        small=np.asarray(grey.resize((_SMALL, _SMALL), Image.Resampling.BOX)),
        thumb=np.asarray(_thumbnail(image)),
        total=counts @ values,
        squares=counts @ values**2,
    )


def _digest(pixels: np.ndarray) -> bytes:
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _has_pages(source: Source, i: int) -> bool:
    """Whether the file of an image has more pages or frames, which are not read."""
    if not source.has_files or not source.path(i).lower().endswith(_WITH_PAGES):
        return False
    try:
        with open_image(io.BytesIO(source.read_bytes(i)), source.path(i)) as image:
            return bool(getattr(image, "is_animated", False))
    except (BadImage, OSError, EOFError, ValueError):
        return False


def _thumbnail(image: Image.Image) -> Image.Image:
    """The whole image on a white square."""
    scale = THUMB / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    page = Image.new("RGB", (THUMB, THUMB), "white")
    page.paste(image.resize(size, resampling), ((THUMB - size[0]) // 2, (THUMB - size[1]) // 2))
    return page


def _near_duplicates(
    hashes: np.ndarray, small: np.ndarray, numbers: np.ndarray, same: list[list[int]]
) -> list[list[int]]:
    """Groups of images that look the same but have different pixels.

    Each of the 64 bits of the hash (dHash) says whether the image becomes brighter to the right at
    one place. Two hashes that differ in at most three bits are equal in at least one of their four
    quarters, so all candidates are neighbours when the hashes are sorted by that quarter. The
    difference of their thumbnails then decides.
    """
    if len(hashes) < 2:
        return []
    parent = np.arange(len(hashes))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    for quarter in range(4):
        part = (hashes >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        order = np.lexsort((hashes, part))
        for gap in range(1, _MAX_NEIGHBOURS + 1):
            a, b = order[:-gap], order[gap:]
            together = part[a] == part[b]
            if not together.any():
                break
            a, b = a[together], b[together]
            close = np.bitwise_count(hashes[a] ^ hashes[b]) <= _MAX_BITS
            a, b = a[close], b[close]
            apart = np.abs(small[a].astype(np.int16) - small[b]).mean((1, 2))
            for i, j in zip(
                a[apart <= _MAX_DIFFERENCE].tolist(),
                b[apart <= _MAX_DIFFERENCE].tolist(),
                strict=True,
            ):
                parent[root(j)] = root(i)
    # Each set of exact duplicates is represented by its first image; groups of one are dropped.
    extra = {i for members in same for i in members[1:]}
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for i, number in enumerate(numbers.tolist()):
        if number not in extra:
            groups[root(i)].append(number)
    return [members for members in groups.values() if len(members) > 1]
