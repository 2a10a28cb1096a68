"""Feature visualisation: an image optimised to activate a unit or head, and the images of a set
that activate it most.

Olah et al., "Feature Visualization", Distill 2017: gradient ascent on the activation, with the
image parametrised by its Fourier spectrum and randomly rotated, scaled and shifted at each step, so
that it does not become adversarial noise. Both kinds of images are needed: the optimised one shows
what is sufficient to activate the unit, those of the set what activates it in practice.

Differs from the original: the colours are decorrelated by the statistics of the given set, not of
ImageNet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from nolabel.backbones.base import layer_number, require
from nolabel.data.source import Source
from nolabel.encoders import Encoder
from nolabel.encoders.features import chunks, encoder_input
from nolabel.errors import DataError, UsageError
from nolabel.pictures._optimise import (
    Fourier,
    OnPreview,
    Optimisation,
    colour_mixing,
    normalise,
    optimise,
    pixels_of,
    random_warp,
    unnormalise,
)
from nolabel.pictures._options import Help, Layer
from nolabel.pictures._shown import shown_image
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture

# Deviations of the initial spectrum, tried in turn until every unit has a gradient.
INITIAL_DEVIATIONS = (0.01, 0.1, 0.3, 1.0, 3.0)
DEFAULT_UNITS = 4  # how many are shown when none are named
COLOUR_CHUNKS = 4  # chunks of the set of which some pixels give the colour statistics
_BATCH = 256

Activation = Callable[[Tensor], Tensor]  # prepared images [N, C, S, S] -> [N, units]


def dream(
    encoder: Encoder,
    images: object = None,
    *,
    gallery: Source,
    layer: Layer = -1,
    units: Annotated[
        tuple[int, ...],
        Help(
            "channels of that layer's tokens, averaged over the patches; default: the four whose "
            "largest activation in the set is furthest from their mean, in deviations"
        ),
    ] = (),
    heads: Annotated[
        tuple[int, ...],
        Help("attention heads instead: the norm of a head's output for the class token"),
    ] = (),
    steps: Annotated[int, Help("steps of the optimisation")] = 256,
    lr: Annotated[float, Help("learning rate of Adam")] = 0.05,
    top: Annotated[int, Help("images of the set shown for each unit")] = 4,
    seed: Annotated[int, Help("seed of the initial image and the random transforms")] = 0,
    on_preview: OnPreview | None = None,
) -> Pictures:
    """One row for each unit: the optimised image, and the images of a set that activate it most.

    Args:
        encoder: any with patch features; heads need a ViT with a class token.
        images: not used.
        gallery: the set.
        on_preview: called with previews; True stops early.

    Raises:
        UsageError: no such layer, unit or head, units and heads at once, or nothing to do.
        DataError: no image of the set can be read.
    """
    deep = layer_number(encoder.backbone, layer)
    if units and heads:
        raise UsageError("Give units or heads, not both.")
    if steps < 1 or top < 1:
        raise UsageError(f"Give at least one step and one image, got {steps} and {top}.")
    if heads:
        require(encoder.backbone, ["attention"], "The output of a head")
    kind = "head" if heads else "unit"

    def activation(x: Tensor) -> Tensor:
        return head_activation(encoder, x, deep) if heads else unit_activation(encoder, x, deep)

    of_set = _activate_set(encoder, gallery, activation)
    index = _choose_units(of_set.values, list(heads or units), kind)
    values = of_set.values[:, index]
    found, initial, reached = _maximise(
        encoder, activation, index, values.std(0), of_set.colours, steps, lr, seed, on_preview
    )
    images_made = found.previews[-1][1]
    best = values.topk(min(top, len(values)), dim=0)
    rows = [
        [images_made[i],
         *(shown_image(gallery, int(of_set.keys[j])) for j in best.indices[:, i])]
        for i in range(len(index))
    ]  # fmt: skip
    best_of_set, mean = best.values[0].numpy(), values.mean(0).numpy()
    numbers = {}
    for i, unit in enumerate(index):
        numbers |= {f"made_{unit}": float(reached[i]), f"best_{unit}": float(best_of_set[i])}
        numbers |= {f"mean_{unit}": float(mean[i]), f"start_{unit}": float(initial[i])}
    numbers["beats_best"] = float((reached > best_of_set).mean())
    parts = [
        f"{kind} {unit}: {reached[i]:.2f} (best image {best_of_set[i]:.2f}, mean {mean[i]:.2f})"
        for i, unit in enumerate(index)
    ]
    caption = (
        f"What activates {kind}s of layer {deep} of {encoder.name}: an image optimised for it "
        f"({found.summary}), then the images of {gallery.name} that activate it most. Activation "
        "of the optimised image (it should exceed the best image): " + "; ".join(parts) + "."
    )
    titles = ["made", *(f"{i + 1}." for i in range(len(best.values)))]
    data = {"made": images_made, "units": np.array(index), "activations": of_set.values.numpy(),
            "keys": of_set.keys}  # fmt: skip
    return Pictures([Picture(name="dream", image=sheet(rows, titles), caption=caption,
                             data=data, numbers=numbers)])  # fmt: skip


@dataclass(frozen=True)
class _SetActivations:
    """Activations of a set.

    Attributes:
        values: float32 [N, units].
        keys: index of each row in the source, int [N].
        colours: `colour_mixing` of some pixels, float [C, C].
    """

    values: Tensor
    keys: np.ndarray
    colours: Tensor


def _activate_set(encoder: Encoder, gallery: Source, activation: Activation) -> _SetActivations:
    """Activations of every readable image of a set, and its colour statistics."""
    keys, values, pixels = [], [], []
    for chunk in chunks(gallery, _BATCH, encoder_input(encoder)):
        if chunk.x is None:
            continue
        x = chunk.x
        with encoder.evaluating():
            values.append(activation(x).float().cpu().clone())
        keys.append(chunk.keys)
        if len(pixels) < COLOUR_CHUNKS:
            sparse = x[..., :: max(x.shape[-2] // 16, 1), :: max(x.shape[-1] // 16, 1)]
            pixels.append(unnormalise(sparse, encoder).cpu().clamp(0, 1))
    if not values:
        raise DataError(f"{gallery.name!r} has no image that can be read.")
    flat = (torch.cat(pixels).permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    return _SetActivations(torch.cat(values), np.concatenate(keys), colour_mixing(flat))


def _choose_units(values: Tensor, index: list[int], kind: str) -> list[int]:
    """The given units, or those of values [N, units] with the largest standardised maximum.

    Raises:
        UsageError: a unit does not exist.
    """
    if not index:
        score = (values.amax(0) - values.mean(0)) / values.std(0).clamp_min(1e-12)
        index = [int(i) for i in score.topk(min(DEFAULT_UNITS, values.shape[1]))[1]]
    if min(index) < 0 or max(index) >= values.shape[1]:
        raise UsageError(f"{kind.capitalize()}s are 0 to {values.shape[1] - 1}, got {index}.")
    return index


def _maximise(
    encoder: Encoder,
    activation: Activation,
    index: list[int],
    deviation: Tensor,
    colours: Tensor,
    steps: int,
    lr: float,
    seed: int,
    on_preview: OnPreview | None,
) -> tuple[Optimisation, np.ndarray, np.ndarray]:
    """Optimises an image for each unit.

    Args:
        encoder: the encoder.
        activation: images to activations.
        index: U units.
        deviation: of each unit's activation over the set, float [U]; it scales the loss.
        colours: float [C, C].
        steps: number of steps.
        lr: of Adam.
        seed: of the initial image and the random transforms.
        on_preview: as in `dream`.

    Returns:
        The optimisation, and the activations of the initial and of the final images, float32 [U].
    """
    scale = deviation.clamp_min(1e-12).to(encoder.device)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(index))

    def activations(y: Tensor) -> Tensor:
        """Activation of each unit by its own image: [U, C, S, S] in 0..1 -> [U]."""
        return activation(normalise(y, encoder)).float()[rows, index]

    def initialise(spectrum_deviation: float) -> tuple[Fourier, bool]:
        """An initial image, and whether every unit has a gradient there."""
        fourier = Fourier(
            len(index), encoder.image_size, colours, seed=seed, deviation=spectrum_deviation
        )
        fourier.to(encoder.device)
        with encoder.evaluating(gradients=True):
            total = activations(fourier()).sum()
        (gradient,) = torch.autograd.grad(total, fourier.spectrum)
        return fourier, bool((gradient.abs().amax((1, 2, 3, 4)) > 0).all())

    def measure() -> np.ndarray:
        with encoder.evaluating():
            return activations(fourier().detach()).cpu().numpy()

    def loss(step: int) -> list[Tensor]:
        y = random_warp(fourier(), generator)
        with encoder.evaluating(gradients=True):
            activated = activations(y)
        return [-(activated / scale).sum()]

    for (
        spectrum_deviation
    ) in INITIAL_DEVIATIONS:  # after a ReLU, the gradient at a grey image can be zero
        fourier, has_gradient = initialise(spectrum_deviation)
        if has_gradient:
            break
    initial = measure()
    found = optimise("dreaming", [fourier.spectrum], loss, lambda: pixels_of(fourier()),
                     steps=steps, lr=lr, on_preview=on_preview)  # fmt: skip
    return found, initial, measure()


def unit_activation(encoder: Encoder, x: Tensor, layer: int) -> Tensor:
    """Channels of a layer's tokens, averaged over the patches: [N, C, S, S] -> [N, D]."""
    return encoder.backbone.facets(x, layer, "token").patches.mean(1)


def head_activation(encoder: Encoder, x: Tensor, layer: int) -> Tensor:
    """Norm of each head's output for the class token: [N, C, S, S] -> [N, heads]."""
    a = encoder.backbone.attention(x, layer, slice(0, 1))[:, :, 0]  # [N, heads, R + P]
    v = encoder.backbone.facets(x, layer, "value")
    assert v.prefix is not None  # noqa: S101 - only ViTs have attention
    values = torch.cat([v.prefix, v.patches], 1).unflatten(-1, (a.shape[1], -1))
    return torch.einsum("nht,nthd->nhd", a, values).norm(dim=-1)
