"""What excites a neuron or a head: an image made for it, beside those of the data that excite it
most.

Olah et al., "Feature Visualization", Distill 2017: climb the activation in Fourier space, with the
image turned, enlarged and moved by chance at each step, so that it is no noise that only this
network sees. Either alone misleads: the made image shows what is enough, the data's what occurs.

Differs from the original: the colours are those of the data, not ImageNet's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nolabel.backbones.base import layer_number, require
from nolabel.data.source import Source
from nolabel.encoders import Encoder
from nolabel.encoders.features import chunks
from nolabel.errors import DataError, UsageError
from nolabel.pictures._optimise import (
    Each,
    Fourier,
    colours_of,
    normalised,
    pixels_of,
    search,
    unnormalised,
    warped,
)
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture

STARTS = (0.01, 0.1, 0.3, 1.0, 3.0)  # deviations of the spectrum, until every unit has a slope
CHOSEN = 4  # units, when none are named
_BATCH = 256


def dream(
    encoder: Encoder,
    images: object = None,
    *,
    gallery: Source,
    layer: int = -1,
    units: tuple[int, ...] = (),
    heads: tuple[int, ...] = (),
    steps: int = 256,
    lr: float = 0.05,
    top: int = 4,
    seed: int = 0,
    each: Each | None = None,
) -> Pictures:
    """One row a unit: the image made for it, and the images of a set that excite it most.

    Args:
        encoder: any; heads need a ViT with a class token.
        images: not used.
        gallery: the set.
        layer: which layer; -1 is the last.
        units: channels of that layer's tokens, averaged over the patches; by default the four whose
            largest activation in the set is furthest from the usual.
        heads: attention heads instead: the length of what a head writes for the class token.
        steps: of the search.
        lr: of Adam.
        top: images of the set that are shown.
        seed: of the start and of the chances.
        each: called with previews; True ends the search.

    Raises:
        UsageError: no such layer, unit or head, or units and heads at once.
        DataError: no image of the set can be read.
    """
    deep = layer_number(encoder.backbone, layer)
    if units and heads:
        raise UsageError("Give units or heads, not both.")
    if steps < 1 or top < 1:
        raise UsageError(f"Give at least one step and one image, got {steps} and {top}.")
    if heads:
        require(encoder.backbone, ["attention"], "What a head writes")

    def activation(x: Tensor) -> Tensor:
        return head_activation(encoder, x, deep) if heads else unit_activation(encoder, x, deep)

    keys, values, pixels = [], [], []
    for chunk in chunks(gallery, _BATCH):
        if not len(chunk.keys):
            continue
        x = encoder.prepare_pixels(chunk.images)
        with encoder.evaluating():
            values.append(activation(x).float().cpu().clone())
        keys.append(chunk.keys)
        if len(pixels) < 4:  # some pixels of a thousand images tell the colours
            few = x[..., :: max(x.shape[-2] // 16, 1), :: max(x.shape[-1] // 16, 1)]
            pixels.append(unnormalised(few, encoder).cpu().clamp(0, 1))
    if not values:
        raise DataError(f"{gallery.name!r} has no image that can be read.")
    known, number = torch.cat(values), np.concatenate(keys)
    chosen = list(heads or units)
    if not chosen:
        spread = known.std(0).clamp_min(1e-12)
        chosen = ((known.amax(0) - known.mean(0)) / spread).topk(min(CHOSEN, known.shape[1]))[1]
        chosen = [int(i) for i in chosen]
    if min(chosen) < 0 or max(chosen) >= known.shape[1]:
        what = "Heads" if heads else "Units"
        raise UsageError(f"{what} are 0 to {known.shape[1] - 1}, got {chosen}.")
    best = known[:, chosen].topk(min(top, len(known)), dim=0)
    colours = colours_of((torch.cat(pixels).permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8))
    scale = known[:, chosen].std(0).clamp_min(1e-12).to(encoder.device)
    chance = torch.Generator().manual_seed(seed)
    at = torch.arange(len(chosen))

    def loss(step: int) -> list[Tensor]:
        y = warped(picture(), chance)
        with encoder.evaluating(gradients=True):
            excited = activation(normalised(y, encoder)).float()[at, chosen]
        return [-(excited / scale).sum()]

    def draw() -> np.ndarray:
        return pixels_of(picture())

    def begun(deviation: float) -> tuple[Fourier, bool]:
        """A start, and whether every unit has a slope there: behind a ReLU grey may have none."""
        made = Fourier(len(chosen), encoder.image_size, colours, seed=seed, deviation=deviation)
        made.to(encoder.device)
        with encoder.evaluating(gradients=True):
            excited = activation(normalised(made(), encoder)).float()[at, chosen]
        (slope,) = torch.autograd.grad(excited.sum(), made.spectrum)
        return made, bool((slope.abs().amax((1, 2, 3, 4)) > 0).all())

    def reached(y: Tensor) -> np.ndarray:
        with encoder.evaluating():
            return activation(normalised(y, encoder)).float()[at, chosen].cpu().numpy()

    for deviation in STARTS:
        picture, slopes = begun(deviation)
        if slopes:
            break
    start = reached(picture().detach())
    found = search("dreaming", [picture.spectrum], loss, draw, steps=steps, lr=lr, each=each)
    made = reached(picture().detach())
    data_best = best.values[0].numpy()
    rows = [
        [found.shots[-1][1][i], *(gallery.read(int(number[j])).image for j in best.indices[:, i])]
        for i in range(len(chosen))
    ]
    kind = "head" if heads else "unit"
    numbers: dict[str, float] = {}
    usual = known[:, chosen].mean(0).numpy()
    for i, c in enumerate(chosen):
        numbers |= {f"made_{c}": float(made[i]), f"best_{c}": float(data_best[i])}
        numbers |= {f"mean_{c}": float(usual[i]), f"start_{c}": float(start[i])}
    numbers["beats_best"] = float((made > data_best).mean())
    parts = [
        f"{kind} {c}: {made[i]:.2f} (best image {data_best[i]:.2f}, mean {usual[i]:.2f})"
        for i, c in enumerate(chosen)
    ]
    caption = (
        f"What excites {kind}s of layer {deep} of {encoder.name} ({found.summary}): made, then "
        f"images of {gallery.name}. Activation of " + "; ".join(parts) + "."
    )
    titles = ["made", *(f"{i + 1}." for i in range(len(best.values)))]
    data = {"made": found.shots[-1][1], "units": np.array(chosen), "activations": known.numpy(),
            "keys": number}  # fmt: skip
    return Pictures([Picture(name="dream", image=sheet(rows, titles), caption=caption,
                             data=data, numbers=numbers)])  # fmt: skip


def unit_activation(encoder: Encoder, x: Tensor, layer: int) -> Tensor:
    """Channels of a layer's tokens, averaged over the patches: [N, D]."""
    return encoder.backbone.facets(x, layer, "token").patches.mean(1)


def head_activation(encoder: Encoder, x: Tensor, layer: int) -> Tensor:
    """Length of what each head of a layer writes for the class token: [N, heads]."""
    a = encoder.backbone.attention(x, layer, slice(0, 1))[:, :, 0]  # [N, heads, R + P]
    v = encoder.backbone.facets(x, layer, "value")
    assert v.prefix is not None  # noqa: S101 - only ViTs come here
    values = torch.cat([v.prefix, v.patches], 1).unflatten(-1, (a.shape[1], -1))
    return torch.einsum("nht,nthd->nhd", a, values).norm(dim=-1)
