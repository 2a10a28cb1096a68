"""`show`: from names to a picture, with the images and the truth that the data know."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nolabel.data.open import open_source
from nolabel.data.source import Source, Subset
from nolabel.encoders import Encoder, load
from nolabel.errors import (
    BadImage,
    DataError,
    NolabelError,
    UntrustedCode,
    UsageError,
    unknown,
)
from nolabel.methods.capabilities import Inpaints, Reconstructs
from nolabel.pictures import PICTURES, PictureInfo, function_of, options_of
from nolabel.pictures._tiles import Pictures, stacked
from nolabel.types import Sample

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec

GALLERY = 2_000  # images of a set that neighbours and maps look at, at most


def show(
    what: str,
    encoder: Encoder | str | os.PathLike[str] | Sequence[Encoder | str | os.PathLike[str]],
    data: SourceSpec | None = None,
    *,
    count: int = 8,
    label: str | None = None,
    **options: object,
) -> Pictures:
    """One kind of picture of an encoder on some images.

    Args:
        what: a name of `nolabel list pictures`.
        encoder: an ENC, or for reconstruct and views the folder of a run; or several, whose
            pictures of the same images stand below each other.
        data: a SRC, or a list of images; filters and positions need none.
        count: images shown.
        label: the class whose images are shown; by default of all, but correspond and parts take
            images that belong together, if the source knows.
        **options: of the picture (`nolabel show WHAT --help`).

    Raises:
        UsageError: unknown picture or option, or an encoder that cannot serve it.
        DataError: no image can be read, or there is no such class.
    """
    if what not in PICTURES:
        raise unknown("picture", what, PICTURES)
    info = PICTURES[what]
    allowed = [o.name for o in options_of(what)]
    for name in options:
        if name not in allowed:
            raise unknown(f"option of show {what}", name, allowed)
    if isinstance(encoder, Sequence) and not isinstance(encoder, str):
        if not encoder:
            raise UsageError("Give at least one encoder.")
        made = [show(what, one, data, count=count, label=label, **options) for one in encoder]
        names = [one.name if isinstance(one, Encoder) else str(one) for one in encoder]
        return made[0] if len(made) == 1 else stacked(made, names)
    if info.data and data is None:
        raise UsageError(f"show {what} needs images: give a SRC.")
    if info.of_run and data is not None:
        return _of_run(info, str(encoder), data, count, label, options)
    enc = encoder if isinstance(encoder, Encoder) else load(str(encoder))
    if data is None or not info.data:
        return function_of(what)(enc, **options)
    source = open_source(data, image_size=enc.image_size, channels=enc.channels)
    samples = _samples(source, count, label, info.grouping)
    if info.data == "gallery":
        options["gallery"] = _gallery(source)
    return function_of(what)(enc, samples, **options)


def _gallery(source: Source) -> Subset:
    """Some images of a source, a random choice, always the same."""
    some = np.random.default_rng(0).permutation(len(source))[:GALLERY]
    return Subset(source, np.sort(some), source.name)


def _of_run(
    info: PictureInfo,
    folder: str,
    data: SourceSpec,
    count: int,
    label: str | None,
    options: dict[str, object],
) -> Pictures:
    what = info.name
    if not (Path(folder) / "config.yaml").is_file():
        raise UsageError(f"show {what} needs the folder of a run, got {folder}.")
    from nolabel.engine.build import load_method, plan_of

    method, run = load_method(folder)
    size = run.settings.image_size or 224
    source = open_source(data, image_size=size, channels=run.settings.channels)
    images = [s.image for s in _samples(source, count, label, "")]
    plan = plan_of(run)
    if what == "views":
        return function_of(what)(plan, images, **options)
    if info.data == "gallery":
        enc = Encoder(method.encoder, mean=plan.mean, std=plan.std, name=run.folder.name)
        return function_of(what)(method, enc, gallery=_gallery(source), **options)
    if not isinstance(method, (Reconstructs, Inpaints)):
        raise UsageError(
            f"{run.method} predicts no pixels; there is nothing to reconstruct. Use a run of a "
            "generative method, such as mae, vqvae or autoencoder."
        )
    x = Encoder(method.encoder, mean=plan.mean, std=plan.std).prepare(images)
    return function_of(what)(method, x, mean=plan.mean, std=plan.std, **options)


def _samples(source: Source, count: int, label: str | None, grouping: str) -> list[Sample]:
    """Readable images, spread over the source or over what belongs together in it.

    Args:
        source: the images.
        count: how many; of pairs, an even number.
        label: the class that all are of; None: any.
        grouping: as `PictureInfo.grouping`.

    Raises:
        DataError: no such class, no readable image, or an unreadable image of a pair.
    """
    pairs = grouping == "pairs"
    groups = _groups(source, label, grouping, count // 2 if pairs else 1)
    each = -(-count // len(groups))
    if pairs:
        each = max(count // len(groups) // 2 * 2, 2)
    out: list[Sample] = []
    for group in groups:
        for i in group[np.linspace(0, len(group) - 1, min(each, len(group))).astype(int)]:
            try:
                out.append(source.read(int(i)))
            except BadImage:
                if pairs:  # without it, all pairs behind it would be others
                    raise DataError(
                        f"An image of {source.name} cannot be read: {source.path(int(i))}."
                    ) from None
    if not out:
        raise DataError(f"None of the images tried in {source.name} can be read.")
    return out


def _groups(source: Source, label: str | None, grouping: str, most: int) -> list[np.ndarray]:
    """Indices of the images to choose from, int64 [N] each: those of a class, of at most `most`
    classes with two images or more, or all."""
    labels = source.labels
    if label is not None:
        names = list(source.classes or [])
        if labels is None or label not in names:
            raise DataError(f"{source.name} has no class {label!r}; it has {names or 'no labels'}.")
        return [np.flatnonzero(labels == names.index(label))]
    everything = [np.arange(len(source))]
    if not grouping or labels is None:
        return everything
    groups = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return [g for g in groups if len(g) >= 2][:most] or everything


def draw_missing(folder: str | Path, data: SourceSpec = "auto") -> list[str]:
    """Draws what a report shows and the run's folder has not yet, into its `pictures`.

    Args:
        folder: of a run.
        data: a SRC; auto takes the data that the run was probed on, else those that it learnt from.

    Returns:
        What could not be drawn, and why, a line each.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        return []  # the report says so itself
    from nolabel.engine.saved_run import load_run
    from nolabel.methods import load as load_kind

    try:
        run = load_run(folder)
    except UntrustedCode as error:
        return [str(error)]
    if data == "auto":
        data = run.settings.probe or run.settings.data
    encoder: Encoder | str = str(folder)
    with contextlib.suppress(NolabelError):  # each picture says itself that it cannot be loaded
        encoder = load(encoder)
    wanted = ["pca", "neighbours", "tsne"]
    if not isinstance(encoder, Encoder) or "attention" in encoder.backbone.can:
        wanted.insert(0, "attention")
    if issubclass(load_kind(run.method), (Reconstructs, Inpaints)):
        wanted.append("reconstruct")
    out = []
    there = {p.stem.partition("-")[0] for p in (folder / "pictures").glob("*.png")}
    for what in wanted:
        if what in there:
            continue
        try:
            of = folder if what == "reconstruct" else encoder
            show(what, of, data).save(folder / "pictures")
        except NolabelError as error:
            out.append(f"{what}: {error}")
    return out
