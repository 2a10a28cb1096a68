"""`show`: from names to a picture, with the images and the truth that the data know."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from nolabel.callable import CallableModule
from nolabel.data.sources import Source, open_source
from nolabel.errors import BadImage, DataError, UsageError, unknown
from nolabel.pictures import NAMES
from nolabel.pictures.paint import Pictures
from nolabel.types import Sample
from nolabel.weights import Encoder, load


def show(
    what: str,
    encoder: Encoder | str | Path,
    data: Any,
    *,
    count: int = 8,
    layer: int = -1,
    mass: float = 0.6,
    seed: int = 0,
) -> Pictures:
    """One kind of picture of an encoder on some images.

    Args:
        what: attention, pca, reconstruct or views.
        encoder: an ENC, or for reconstruct and views the folder of a run.
        data: a SRC, or a list of images.
        count: images shown.
        layer: layer looked at (attention, pca).
        mass: share of attention kept (attention).
        seed: hidden patches (reconstruct), crops (views).

    Raises:
        UsageError: unknown picture, or an encoder that cannot serve it.
    """
    if what not in [n.name for n in NAMES]:
        raise unknown("picture", what, [n.name for n in NAMES])
    if what in ("reconstruct", "views"):
        return _of_run(what, encoder, data, count, seed)
    enc = encoder if isinstance(encoder, Encoder) else load(str(encoder))
    samples = _samples(open_source(data, image_size=enc.image_size, channels=enc.channels), count)
    images = [s.image for s in samples]
    if what == "pca":
        from nolabel.pictures.pca import pca

        return pca(enc, images, layer=layer)
    from nolabel.pictures.attention import attention

    size = (enc.image_size, enc.image_size)
    masks = [s.mask for s in samples if s.mask is not None and s.mask.shape == size]
    truth = np.stack(masks) if len(masks) == len(samples) else None
    return attention(enc, images, layer=layer, mass=mass, masks=truth)


def _of_run(what: str, folder: Any, data: Any, count: int, seed: int) -> Pictures:
    if not (Path(str(folder)) / "config.yaml").is_file():
        raise UsageError(f"show {what} needs the folder of a run, got {folder!s}.")
    from nolabel.engine.train import load_method, plan_of

    method, run = load_method(str(folder))
    size = int(run.settings.image_size or 224)
    source = open_source(data, image_size=size, channels=run.settings.channels)
    images = [s.image for s in _samples(source, count)]
    plan = plan_of(run)
    if what == "views":
        from nolabel.pictures.views import views

        return views(plan, images, seed=seed)
    if not hasattr(method, "reconstruct"):
        raise UsageError(
            f"{run.method} predicts no pixels; there is nothing to reconstruct. Use a run of a "
            "generative method, such as mae, vqvae or autoencoder."
        )
    from nolabel.pictures.reconstruct import reconstruct

    x = Encoder(method.encoder, mean=plan.mean, std=plan.std).prepare(images)
    return reconstruct(method, x, mean=plan.mean, std=plan.std, seed=seed)  # type: ignore[arg-type]


def _samples(source: Source, count: int) -> list[Sample]:
    """`count` readable images, spread over the source."""
    out: list[Sample] = []
    for i in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
        try:
            out.append(source.read(int(i)))
        except BadImage:
            continue
    if not out:
        raise DataError(f"None of the images tried in {source.name} can be read.")
    return out


sys.modules[__name__].__class__ = CallableModule  # nolabel.X(...) calls X
