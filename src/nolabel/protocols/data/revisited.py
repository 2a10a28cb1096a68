"""The layout of the revisited Oxford and Paris benchmarks: queries, a database, ground truth.

A folder holds `jpg/` and `gnd_roxford5k.pkl`, `gnd_rparis6k.pkl`, or the same as JSON
(`gnd_NAME.json`): `imlist` and `qimlist`, names without suffix, and `gnd`, for each query `easy`,
`hard` and `junk`, indices of database images, and `bbx`, the box of the query in pixels.

Pickles are parsed without being unpickled (see `plain_values`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nolabel.data.sources.items import Items
from nolabel.errors import DataError, FileDamaged
from nolabel.protocols.data._pickle import plain_values


@dataclass(frozen=True)
class Revisited:
    """Queries and a database.

    Attributes:
        name: path of the folder.
        queries: the Q query images.
        database: the database images.
        boxes: float64 [Q, 4]: left, top, right, bottom in pixels of each query's landmark.
        easy: for each query, int64 [n], indices of easy images in the database.
        hard: the same for hard images.
        junk: the same for junk images, which are removed from the ranking.
    """

    name: str
    queries: Items
    database: Items
    boxes: np.ndarray
    easy: tuple[np.ndarray, ...]
    hard: tuple[np.ndarray, ...]
    junk: tuple[np.ndarray, ...]


def find_truth(folder: str | os.PathLike[str]) -> Path | None:
    """The ground truth file of a folder in this layout, or None."""
    path = Path(folder)
    if not path.is_dir():
        return None
    files = sorted((*path.glob("gnd_*.json"), *path.glob("gnd_*.pkl")))
    return files[0] if files else None


def open_revisited(folder: str | os.PathLike[str]) -> Revisited:
    """Opens a folder in the layout of the benchmarks.

    Args:
        folder: the folder.

    Raises:
        DataError: no ground truth, or images that it names are missing.
        FileDamaged: the ground truth cannot be read, or holds more than plain values.
    """
    file = find_truth(folder)
    if file is None:
        raise DataError(
            f"{os.fspath(folder)!r} has no ground truth, gnd_NAME.json or gnd_NAME.pkl. Copy the "
            "benchmark's file into it."
        )
    truth = _read(file)
    absent = [k for k in ("imlist", "qimlist", "gnd") if k not in truth]
    if absent or len(truth["gnd"]) != len(truth["qimlist"]):
        raise FileDamaged(
            f"{str(file)!r} is no ground truth of this layout: "
            + (f"no {absent[0]!r}." if absent else "as many queries as entries of gnd are needed.")
        )
    paths = {p.stem: p for p in sorted((Path(folder) / "jpg").glob("*.*"))}
    missing = [n for k in ("qimlist", "imlist") for n in truth[k] if n not in paths]
    if missing:
        raise DataError(
            f"{len(missing)} of the images of {str(file)!r} are not in {os.fspath(folder)!r}/jpg, "
            f"first: {missing[0]!r}."
        )

    def indices(difficulty: str) -> tuple[np.ndarray, ...]:
        rows = (np.asarray(g.get(difficulty, ()), dtype=np.int64) for g in truth["gnd"])
        return tuple(row.reshape(-1) for row in rows)

    boxes = [np.asarray(g.get("bbx", (0, 0, 0, 0)), dtype=float).reshape(4) for g in truth["gnd"]]
    return Revisited(
        os.fspath(folder),
        Items([paths[n] for n in truth["qimlist"]], "queries"),
        Items([paths[n] for n in truth["imlist"]], "database"),
        np.stack(boxes), indices("easy"), indices("hard"), indices("junk"),
    )  # fmt: skip


def _read(file: Path) -> Mapping[str, Any]:
    try:
        if file.suffix == ".json":
            value = json.loads(file.read_text(encoding="utf-8"))
        else:
            value = plain_values(file.read_bytes())
    except FileDamaged:
        raise
    except (OSError, ValueError) as error:
        raise FileDamaged(f"{str(file)!r} cannot be read ({error}).") from None
    if not isinstance(value, Mapping):
        raise FileDamaged(f"{str(file)!r} holds a {type(value).__name__}, not a dictionary.")
    return value
