"""`show`: draws a picture by its name, on images chosen from a source, with their ground truth."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nolabel import limits
from nolabel._moved import present_options
from nolabel.data.open import open_source
from nolabel.data.progress import phase
from nolabel.data.source import Source, Subset
from nolabel.encoders import Encoder, load
from nolabel.encoders.loading import load_at
from nolabel.errors import (
    BadImage,
    DataError,
    NolabelError,
    UsageError,
    none_readable,
    printable,
    unknown,
)
from nolabel.methods.capabilities import Inpaints, Reconstructs
from nolabel.pictures import PICTURES, PictureInfo, function_of, options_of
from nolabel.pictures._shown import shown_sample
from nolabel.pictures._tiles import Pictures, read_captions, stack_encoders
from nolabel.tools.report.parts import encoder_checksum, read_picture
from nolabel.types import Sample

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec

GALLERY = 2_000  # images of a source that are searched or mapped, at most


def show(
    what: str,
    encoder: Encoder | str | os.PathLike[str] | Sequence[Encoder | str | os.PathLike[str]],
    data: SourceSpec | None = None,
    *,
    count: int = 8,
    label: str | None = None,
    image_size: int | None = None,
    **options: object,
) -> Pictures:
    """Draws one kind of picture of an encoder.

    Args:
        what: a name of `nolabel list pictures`.
        encoder: an ENC; a run's folder for reconstruct, views and prototypes; or several, whose
            pictures of the same images are stacked vertically.
        data: a SRC, or a list of images; not needed by filters, positions, counting and relations.
        count: images shown.
        label: the class whose images are shown; default: all classes, but pairs and groups are of
            one class if the source has labels.
        image_size: shorter side in pixels at which the encoder is used; None is its own.
        **options: of the picture (`nolabel show WHAT --help`).

    Returns:
        The pictures, with captions, numbers and data; `save` writes them.

    Raises:
        UsageError: the picture or an option is unknown, images are missing, or the encoder is
            unsuitable.
        DataError: no image can be read, or the class does not exist.
    """
    if what not in PICTURES:
        raise unknown("picture", what, PICTURES)
    limits.positive("--count", count)
    info, options = PICTURES[what], present_options(f"show {what}", options)
    allowed = [o.name for o in options_of(what)]
    for name in options:
        if name not in allowed:
            raise unknown(f"option of show {what}", name, allowed)
    if isinstance(encoder, Sequence) and not isinstance(encoder, str):
        if not encoder:
            raise UsageError("Give at least one encoder.")
        results = [
            show(what, e, data, count=count, label=label, image_size=image_size, **options)
            for e in encoder
        ]
        names = [e.name if isinstance(e, Encoder) else str(e) for e in encoder]
        return results[0] if len(results) == 1 else stack_encoders(results, names)
    if info.data and data is None:
        raise UsageError(f"show {what} needs images: give a SRC.")
    if info.of_run and image_size is not None:
        raise UsageError(f"show {what} uses the run's own image size. Leave image_size out.")
    if info.of_run and data is not None:
        drawn = _show_run(info, str(encoder), data, count, label, options)
        drawn.encoder = encoder_checksum(Path(str(encoder)))
        return drawn
    enc = load_at(encoder, image_size)
    drawn = _show_encoder(info, enc, data, count, label, options)
    drawn.encoder = str(enc.meta.get("checksum", ""))
    return drawn


def _show_encoder(
    info: PictureInfo,
    enc: Encoder,
    data: SourceSpec | None,
    count: int,
    label: str | None,
    options: dict[str, object],
) -> Pictures:
    """Draws a picture of an encoder. The arguments are those of `show`."""
    what = info.name
    if data is None or not info.data:
        return function_of(what)(enc, **options)
    source = open_source(data, image_size=enc.image_size, channels=enc.channels)
    samples = _samples(source, count, label, info.grouping, enc.image_size)
    if info.data == "gallery":
        options["gallery"] = _gallery(source)
    return function_of(what)(enc, samples, **options)


def _gallery(source: Source) -> Subset:
    """A deterministic random subset of at most `GALLERY` images."""
    index = np.random.default_rng(0).permutation(len(source))[:GALLERY]
    return Subset(source, np.sort(index), source.name)


def _show_run(
    info: PictureInfo,
    folder: str,
    data: SourceSpec,
    count: int,
    label: str | None,
    options: dict[str, object],
) -> Pictures:
    """Draws a picture that needs a run's folder: views, prototypes or reconstruct.

    The arguments are those of `show`.
    """
    what = info.name
    if not (Path(folder) / "config.yaml").is_file():
        raise UsageError(
            f"show {what} needs the folder of a run, but {folder} has no config.yaml. Give the "
            "folder that pretrain wrote (--out)."
        )
    from nolabel.engine.build import load_method, plan_of
    from nolabel.engine.run_views import measured, sample

    method, run = load_method(folder)
    size = run.settings.image_size or 224
    source = open_source(data, image_size=size, channels=run.settings.channels)
    images = [s.image for s in _samples(source, count, label, "", size)]
    plan = plan_of(run)
    if what == "views":
        whole, centre = sample(source, size)
        found = measured(whole, centre, size)
        return function_of(what)(plan, images, found, whole, **options)
    if info.data == "gallery":
        enc = Encoder(method.encoder, mean=plan.mean, std=plan.std, name=run.folder.name)
        return function_of(what)(method, enc, gallery=_gallery(source), **options)
    if not isinstance(method, (Reconstructs, Inpaints)):
        raise UsageError(
            f"{run.method} predicts no pixels, so there is nothing to reconstruct. Use a run of a "
            "generative method, such as mae, vqvae or autoencoder."
        )
    x = Encoder(method.encoder, mean=plan.mean, std=plan.std).prepare(images)
    return function_of(what)(method, x, mean=plan.mean, std=plan.std, **options)


def _samples(
    source: Source, count: int, label: str | None, grouping: str, image_size: int = 0
) -> list[Sample]:
    """Chooses images at equal distances over the source, or over some of its classes.

    Unreadable images are skipped.

    Args:
        source: the images.
        count: how many; rounded to an even number for pairs.
        label: the class of all images; None: any.
        grouping: see `PictureInfo.grouping`.
        image_size: side of the network's input in pixels.

    Raises:
        DataError: the class does not exist, no image can be read, or an image of a pair cannot be
            read.
    """
    pairs = grouping == "pairs"
    groups = _groups(source, label, grouping, count // 2 if pairs else 1)
    per_group = -(-count // len(groups))
    if pairs:
        per_group = max(count // len(groups) // 2 * 2, 2)
    out: list[Sample] = []
    tried, bad = 0, None
    for group in groups:
        for i in group[np.linspace(0, len(group) - 1, min(per_group, len(group))).astype(int)]:
            tried += 1
            try:
                out.append(shown_sample(source, int(i), image_size))
            except BadImage as error:
                bad = bad or error
                if pairs:  # skipping it would shift all following pairs
                    name = printable(source.path(int(i)))
                    raise DataError(f"An image of {source.name} cannot be read: {name}.") from None
    if not out:
        raise none_readable(source.name, tried, bad)
    return out


def _groups(source: Source, label: str | None, grouping: str, limit: int) -> list[np.ndarray]:
    """Groups of images to choose from.

    Args:
        source: the images.
        label: one group, the images of this class.
        grouping: "": one group, all images; else one group for each class.
        limit: number of classes, at most; classes of one image are left out.

    Returns:
        Indices of the images, int64 [N] each.
    """
    labels = source.labels
    if label is not None:
        names = list(source.classes or [])
        if labels is None or label not in names:
            raise DataError(f"{source.name} has no class {label!r}; it has {names or 'no labels'}.")
        return [np.flatnonzero(labels == names.index(label))]
    all_images = [np.arange(len(source))]
    if not grouping or labels is None:
        return all_images
    groups = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return [g for g in groups if len(g) >= 2][:limit] or all_images


def draw_missing(folder: str | Path, data: SourceSpec = "auto") -> list[str]:
    """Draws the pictures of a report that are not yet in the run's `pictures` folder.

    Args:
        folder: the run's folder.
        data: a SRC; auto: the data of the run's probe, or else its training data.

    Returns:
        One line for each picture that could not be drawn, with the reason.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        return []  # the report itself says that there is no run
    if data != "auto":
        open_source(data)  # what was named must exist; what the run names may be gone
    from nolabel.engine.saved_run import load_run
    from nolabel.methods import load as load_class

    try:
        run = load_run(folder)
        method = load_class(run.method)
    except NolabelError as error:  # untrusted code, a damaged configuration
        return [str(error)]
    if data == "auto":
        if run.settings.private:
            return ["The run is private. To draw images: --data with images that may be shown."]
        data = run.settings.probe or run.settings.data
        if data.startswith("hf:"):  # a folder of somebody else must not reach the network
            return [f"The run's data are on the Hub. To read them: --data {printable(data)}."]
    encoder: Encoder | str = str(folder)
    with contextlib.suppress(NolabelError):  # if it cannot be loaded, each picture reports it
        encoder = load(encoder)
    wanted = ["pca", "neighbours", "tsne"]
    if not isinstance(encoder, Encoder) or "attention" in encoder.backbone.can:
        wanted.insert(0, "attention")
    if issubclass(method, (Reconstructs, Inpaints)):
        wanted.append("reconstruct")
    failures = []
    existing = _drawn(folder)
    for what in wanted:
        if what in existing:
            continue
        try:
            subject = folder if what == "reconstruct" else encoder
            with phase(f"drawing {what}"):
                show(what, subject, data).save(folder / "pictures")
        except (NolabelError, OSError) as error:
            failures.append(f"{what}: {error}")
    return failures


def _drawn(folder: Path) -> set[str]:
    """Kinds of pictures of a run that need not be drawn: readable, and of its present encoder."""
    pictures, encoder = folder / "pictures", encoder_checksum(folder)
    captions = read_captions(pictures)
    return {
        path.stem.partition("-")[0]
        for path in pictures.glob("*.png")
        if captions.get(path.stem, {}).get("encoder", encoder) == encoder
        and read_picture(path) is not None
    }
