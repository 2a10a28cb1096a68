"""`nolabel search`: the images most similar to an image or a text, among features on disk.

Exact search computes the cosine similarity to every row, block by block. For millions of rows there
is approximate search by faiss (extra `search`): an inverted file index (IVF) assigns rows to cells
around k-means centres, is cached in FILE.faiss, and a query searches only the nearest cells.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nolabel._files import atomic, write_text
from nolabel.apps._features_file import features_digest
from nolabel.apps.embed import Index, open_index, pooling, width_of
from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder, ImageLike
from nolabel.encoders.identity import encoder_digest
from nolabel.encoders.loading import load_at
from nolabel.encoders.text import TextEncoder, text_of
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.pictures._shown import shown_image
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture

if TYPE_CHECKING:
    import faiss

_ROWS_AT_ONCE = 65536  # of a block in memory
PROBED_CELLS = 32  # faiss's nprobe: cells searched for a query


@dataclass(frozen=True)
class Hits:
    """Result of a search.

    Attributes:
        query: path or text of the query.
        rows: indices of the K rows, most similar first.
        similarity: their cosine similarities.
        names: paths or names of their images.
    """

    query: str
    rows: tuple[int, ...]
    similarity: tuple[float, ...]
    names: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"nearest to {self.query!r}:"]
        pairs = zip(self.similarity, self.names, strict=True)
        return "\n".join([*lines, *(f"  {s:6.3f}  {n}" for s, n in pairs)])


def open_inputs(
    index: Index | str | os.PathLike[str], encoder: Encoder | str | os.PathLike[str]
) -> tuple[Index, Encoder]:
    """The index and the encoder of `search`, as users name them; the encoder at the index's size.

    Raises:
        UsageError, FileDamaged: one of them cannot be opened.
    """
    opened = index if isinstance(index, Index) else open_index(index)
    return opened, load_at(encoder, opened.about["image_size"])


def search(
    index: Index | str | os.PathLike[str],
    encoder: Encoder,
    query: ImageLike,
    *,
    k: int = 10,
    approximate: bool = False,
) -> Hits:
    """Finds the k rows most similar to a query.

    Args:
        index: what `embed` wrote.
        encoder: the encoder of the index.
        query: a path, Pillow image or uint8 array [H, W, C]; or, for an encoder with a text tower,
            a text (any string that is not the path of a file).
        k: number of rows.
        approximate: whether to search only the nearest cells; for images.

    Raises:
        UsageError: another encoder than the index's, k below 1, a text without a text tower, or
            an approximate search without its extra.
        DataError: the image cannot be read.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}.")
    opened = index if isinstance(index, Index) else open_index(index)
    _check_encoder(opened, encoder)
    text = None
    if isinstance(query, str) and not os.path.exists(query):
        text = _text_tower(encoder, query)
        vector = text.embed(query)[0]
    else:
        x = encoder.prepare([query])
        vector = F.normalize(pooling(encoder, opened.about["pool"])(x), dim=1)[0]
    if approximate and text is not None:
        raise UsageError("A text is always compared with every row. Leave --approximate out.")
    best = (
        _nearest_approximate(opened, vector, k)
        if approximate
        else _nearest(opened.values, vector, k, text)
    )
    names = opened.names()
    shown = query if isinstance(query, str) else type(query).__name__
    rows = tuple(int(i) for i in best[1])
    return Hits(shown, rows, tuple(float(s) for s in best[0]), tuple(names[i] for i in rows))


def _nearest(
    values: np.ndarray, vector: Tensor, k: int, text: TextEncoder | None
) -> tuple[Tensor, Tensor]:
    """Cosine similarities and indices of the k nearest rows; rows of NaN are skipped."""
    scores, rows = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        block = torch.from_numpy(np.array(values[start : start + _ROWS_AT_ONCE], dtype=np.float32))
        z = text.project(block) if text else F.normalize(block, dim=1)
        similarity = (z @ vector).nan_to_num(-torch.inf)
        scores = torch.cat([scores, similarity])
        rows = torch.cat([rows, torch.arange(start, start + len(block))])
        keep = scores.topk(min(k, len(scores)))
        scores, rows = keep.values, rows[keep.indices]
    valid = scores > -torch.inf
    return scores[valid], rows[valid]


def _nearest_approximate(index: Index, vector: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `_nearest`, by faiss among the cells nearest to the query."""
    try:
        import faiss
    except ImportError:
        raise UsageError(
            "--approximate needs faiss: pip install 'nolabel[search]'. Without it every row is "
            "compared, which takes about a second for a million."
        ) from None
    file = index.path.with_name(index.path.name + ".faiss")
    note = index.path.with_name(index.path.name + ".faiss.json")
    digest = index.about.get("features_sha256") or features_digest(index.values)
    if file.is_file() and _made_of(note) == digest:
        ivf = cast("faiss.IndexIVFFlat", faiss.read_index(str(file)))
    else:
        ivf = _build_ivf_index(index.values)
        note.unlink(missing_ok=True)  # until both are there, neither counts
        with atomic(file) as stream:
            stream.write(faiss.serialize_index(ivf).data)
        write_text(note, json.dumps({"features_sha256": digest}) + "\n")
    ivf.nprobe = PROBED_CELLS
    scores, rows = ivf.search(vector.numpy()[None].astype(np.float32), k)
    valid = rows[0] >= 0
    return torch.from_numpy(scores[0][valid]), torch.from_numpy(rows[0][valid])


def _made_of(note: Path) -> str:
    """Digest of the features that a cached index was made of; "" if nothing tells."""
    try:
        return str(json.loads(note.read_text(encoding="utf-8"))["features_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _build_ivf_index(values: np.ndarray) -> faiss.IndexIVFFlat:
    """Builds an IVF index of L2-normalised rows in about 4 sqrt(N) cells, without rows of NaN."""
    import faiss

    n, width = values.shape
    count = max(min(int(4 * n**0.5), n // 40), 1)
    chosen = np.random.default_rng(0).choice(n, min(n, 256 * count), replace=False)
    ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, count, faiss.METRIC_INNER_PRODUCT)

    def unit(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.array(block, dtype=np.float32)
        finite = np.asarray(np.isfinite(x).all(1))
        x = x[finite]
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), finite

    ivf.train(unit(values[np.sort(chosen)])[0])
    for start in range(0, n, _ROWS_AT_ONCE):
        x, finite = unit(values[start : start + _ROWS_AT_ONCE])
        ivf.add_with_ids(x, (start + np.flatnonzero(finite)).astype(np.int64))
    return ivf


def _check_encoder(index: Index, encoder: Encoder) -> None:
    about = index.about
    if "encoder_digest" in about:
        same = about["encoder_digest"] == encoder_digest(encoder)
    else:  # written by an older version
        known, given = about.get("checksum"), encoder.meta.get("checksum")
        same = known == given and (bool(known) or about.get("encoder") == encoder.name)
    if not same or width_of(encoder, about["pool"]) != about["dim"]:
        raise UsageError(
            f"{str(index.path)!r} was made by {index.about['encoder']!r}, not by {encoder.name!r}; "
            "features of different encoders cannot be compared. Give that encoder, or embed again."
        )


def _text_tower(encoder: Encoder, query: str) -> TextEncoder:
    try:
        return text_of(encoder)
    except UsageError as error:
        raise UsageError(f"There is no file {query!r}, and as a text query: {error}") from None


def draw(hits: Hits, source: Source, query: np.ndarray | None = None) -> Pictures:
    """Draws the hits in a row, after the query if it is an image.

    Args:
        hits: what `search` returned.
        source: the images that the index was made of.
        query: uint8 [H, W, 3], or None.

    Raises:
        DataError: an image cannot be read any more.
    """
    try:
        tiles = [shown_image(source, i)[..., :3] for i in hits.rows]
    except (BadImage, IndexError) as error:
        raise DataError(
            f"The images of the index cannot be read any more: {error}. Embed them again."
        ) from None
    titles = [f"{s:.3f}" for s in hits.similarity]
    if query is not None:
        tiles, titles = [query, *tiles], ["query", *titles]
    picture = Picture(
        name="search", image=sheet([tiles], titles), caption=str(hits),
        data={"rows": np.array(hits.rows), "similarity": np.array(hits.similarity)},
        numbers={"nearest": hits.similarity[0] if hits.similarity else 0.0},
    )  # fmt: skip
    return Pictures([picture])
