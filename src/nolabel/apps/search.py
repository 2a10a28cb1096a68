"""`nolabel search`: the images most similar to an image or a text, among features on disk.

Exact: cosine similarity to every row, read piece by piece. For millions of rows there is an
approximate way by faiss (extra `search`): rows are sorted once into cells around k-means centres,
kept in FILE.faiss, and a query looks into the nearest cells alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel.apps.embed import Index, open_index, pooling, width_of
from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder, ImageLike
from nolabel.encoders.text import TextEncoder, text_of
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture

if TYPE_CHECKING:
    import faiss

_ROWS = 65536  # compared at once
PROBED = 32  # cells that an approximate search looks into


@dataclass(frozen=True)
class Hits:
    """What a search found.

    Attributes:
        query: the path or text that was asked.
        rows: numbers of the rows, most similar first.
        similarity: cosines, float [K].
        names: paths or names of the images.
    """

    query: str
    rows: tuple[int, ...]
    similarity: tuple[float, ...]
    names: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"nearest to {self.query!r}:"]
        pairs = zip(self.similarity, self.names, strict=True)
        return "\n".join([*lines, *(f"  {s:6.3f}  {n}" for s, n in pairs)])


def search(
    index: Index | str | os.PathLike[str],
    encoder: Encoder,
    query: ImageLike,
    *,
    k: int = 10,
    approximate: bool = False,
) -> Hits:
    """The k rows most similar to a query.

    Args:
        index: what `embed` wrote.
        encoder: the one that made it.
        query: a path, Pillow image or array; or a text, which no file has as its name, for an
            encoder with a text tower.
        k: how many.
        approximate: whether to look into the nearest cells alone; for images.

    Raises:
        UsageError: another encoder than the index's, k below 1, a text without a text tower, or
            an approximate search without its extra.
        DataError: the image cannot be read.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}.")
    found = index if isinstance(index, Index) else open_index(index)
    _check(found, encoder)
    text = None
    if isinstance(query, str) and not os.path.exists(query):
        text = _text_tower(encoder, query)
        vector = text.embed(query)[0]
    else:
        x = encoder.prepare([query])
        vector = F.normalize(pooling(encoder, found.about["pool"])(x), dim=1)[0]
    if approximate and text is not None:
        raise UsageError("Words are compared with every row. Leave --approximate out.")
    best = _by_cells(found, vector, k) if approximate else _nearest(found.values, vector, k, text)
    names = found.names()
    said = query if isinstance(query, str) else type(query).__name__
    rows = tuple(int(i) for i in best[1])
    return Hits(said, rows, tuple(float(s) for s in best[0]), tuple(names[i] for i in rows))


def _nearest(
    values: np.ndarray, vector: Tensor, k: int, text: TextEncoder | None
) -> tuple[Tensor, Tensor]:
    """Cosines and numbers of the k nearest rows; rows of NaN are passed over."""
    scores, rows = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for start in range(0, len(values), _ROWS):
        some = torch.from_numpy(np.array(values[start : start + _ROWS], dtype=np.float32))
        z = text.project(some) if text else F.normalize(some, dim=1)
        similar = (z @ vector).nan_to_num(-torch.inf)
        scores = torch.cat([scores, similar])
        rows = torch.cat([rows, torch.arange(start, start + len(some))])
        keep = scores.topk(min(k, len(scores)))
        scores, rows = keep.values, rows[keep.indices]
    real = scores > -torch.inf
    return scores[real], rows[real]


def _by_cells(index: Index, vector: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same by faiss: the nearest among the cells that are nearest to the query."""
    try:
        import faiss
    except ImportError:
        raise UsageError(
            "--approximate needs faiss: pip install 'nolabel[search]'. Without it every row is "
            "compared, which takes about a second for a million."
        ) from None
    file = index.path.with_name(index.path.name + ".faiss")
    if file.is_file() and file.stat().st_mtime >= index.path.stat().st_mtime:
        cells = cast("faiss.IndexIVFFlat", faiss.read_index(str(file)))
    else:
        cells = _cells(index.values)
        temporary = file.with_name(file.name + ".tmp")
        faiss.write_index(cells, str(temporary))
        os.replace(temporary, file)
    cells.nprobe = PROBED
    scores, rows = cells.search(vector.numpy()[None].astype(np.float32), k)
    real = rows[0] >= 0
    return torch.from_numpy(scores[0][real]), torch.from_numpy(rows[0][real])


def _cells(values: np.ndarray) -> faiss.IndexIVFFlat:
    """An index of unit rows in about 4 sqrt(N) cells; rows of NaN are left out."""
    import faiss

    n, width = values.shape
    count = max(min(int(4 * n**0.5), n // 40), 1)
    chosen = np.random.default_rng(0).choice(n, min(n, 256 * count), replace=False)
    cells = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, count, faiss.METRIC_INNER_PRODUCT)

    def unit(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.array(some, dtype=np.float32)
        good = np.asarray(np.isfinite(x).all(1))
        x = x[good]
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), good

    cells.train(unit(values[np.sort(chosen)])[0])
    for start in range(0, n, _ROWS):
        x, good = unit(values[start : start + _ROWS])
        cells.add_with_ids(x, (start + np.flatnonzero(good)).astype(np.int64))
    return cells


def _check(index: Index, encoder: Encoder) -> None:
    made, own = index.about.get("checksum"), encoder.meta.get("checksum")
    width = width_of(encoder, index.about["pool"])
    if (made and own and made != own) or width != index.about["dim"]:
        raise UsageError(
            f"{str(index.path)!r} was made by {index.about['encoder']!r}, not by {encoder.name!r}; "
            "features of different encoders cannot be compared. Give that encoder, or embed again."
        )


def _text_tower(encoder: Encoder, query: str) -> TextEncoder:
    try:
        return text_of(encoder)
    except UsageError as error:
        raise UsageError(f"There is no file {query!r}, and as words: {error}") from None


def draw(hits: Hits, source: Source, query: np.ndarray | None = None) -> Pictures:
    """The hits as a row of pictures, the query first where it is an image.

    Args:
        hits: what `search` returned.
        source: the images that the index was made of.
        query: uint8 [H, W, 3], or None.

    Raises:
        DataError: the images are not there any more.
    """
    try:
        tiles = [source.read(i).image[..., :3] for i in hits.rows]
    except (BadImage, IndexError) as error:
        raise DataError(f"The images of the index are not there any more: {error}.") from None
    titles = [f"{s:.3f}" for s in hits.similarity]
    if query is not None:
        tiles, titles = [query, *tiles], ["query", *titles]
    picture = Picture(
        name="search", image=sheet([tiles], titles), caption=str(hits),
        data={"rows": np.array(hits.rows), "similarity": np.array(hits.similarity)},
        numbers={"nearest": hits.similarity[0] if hits.similarity else 0.0},
    )  # fmt: skip
    return Pictures([picture])
