"""Verbs about data and machines, as functions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from nolabel._verbs.encoders import loaded

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec


def scan(
    data: SourceSpec,
    out: str | os.PathLike[str] | None = None,
    *,
    channels: int = 3,
    **options: Any,
) -> dict[str, Any]:
    """Reads every image of a data set and describes it; suggests a recipe and predicts its cost.

    Args:
        data: a SRC, a list of images, or a `Source`.
        out: folder for the contact sheet and the lists; None writes nothing.
        channels: number of channels of the images.
        options: `method`, `limit` and `everything` (`--all`) of `nolabel scan --help`.

    Returns:
        What scan.json holds: fractions of one, seconds, bytes.
    """
    from nolabel.data.open import open_source
    from nolabel.tools.scan import scan as run

    folder = None if out is None else os.fspath(out)
    return run(open_source(data, channels=channels), folder, **options)


def pack(data: SourceSpec, out: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Resizes images and packs them into tar shards, for faster reading.

    Args:
        data: a SRC, a list of images, or a `Source`.
        out: a new folder, or one in which `pack` was stopped with the same data and options.
        options: every option of `nolabel pack --help`, with underscores.

    Returns:
        Numbers of images, bytes and rates, and "pattern", the SRC of the shards.
    """
    from nolabel.config import from_dict
    from nolabel.data.open import open_source
    from nolabel.tools.pack import Packing
    from nolabel.tools.pack import pack as run

    return run(open_source(data), out, from_dict(Packing, options))


def plan(method: str, **options: Any) -> dict[str, Any]:
    """Predicts memory, communication, time and cost of a run on N devices.

    Args:
        method: a name of `nolabel list methods`, or path/to/file.py:Class.
        options: every option of `nolabel plan --help` but `check`, with underscores.

    Returns:
        Fractions of one, seconds, bytes.
    """
    from nolabel.tools.plan import plan as run

    return run(method, **options)


def bench(what: str, **options: Any) -> dict[str, Any]:
    """Measures images per second of each stage on this machine.

    Args:
        what: data, step or embed.
        options: every option of `nolabel bench WHAT --help`, with underscores; `data` may also be
            a list of images or a `Source`, and `encoder` an encoder.

    Raises:
        UsageError: another `what`.
    """
    from nolabel.data.open import open_source
    from nolabel.errors import unknown
    from nolabel.tools import bench as tools

    if what == "data":
        source = open_source(options.pop("data"), image_size=options.get("image_size"))
        return tools.bench_data(source, options.pop("recipe", "dino"), **options)
    if what == "step":
        return tools.bench_step(options.pop("method", "dino"), **options)
    if what != "embed":
        raise unknown("bench", what, ("data", "step", "embed"))
    encoder = loaded(
        options.pop("encoder"),
        image_size=options.pop("image_size", None),
        device=options.pop("device", "auto"),
    )
    source = open_source(
        options.pop("data"), image_size=encoder.image_size, channels=encoder.channels
    )
    return tools.bench_embed(encoder, source, **options)
