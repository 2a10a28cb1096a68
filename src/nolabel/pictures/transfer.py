"""Appearance transfer: one image keeps its structure and gets the appearance of another.

Tumanyan et al., "Splicing ViT Features for Semantic Appearance Transfer", 2022, arXiv 2201.00424.
A network G, trained on the two images alone, redraws the first. Three losses: the self-similarity
of the keys stays that of the first image (structure), the class token becomes that of the second
(appearance), and G applied to the second image keeps its keys (identity).

Differs from the original: each loss is relative to the squared norm of its target, so that the
weights suit networks of any width; fewer steps; no colour jitter and no blur of the structure
image. As there, both images are flipped and cropped at random, structure and identity count from
the second step, and every 75 steps the losses of the whole structure image are added.

With `gram`, style transfer by Gram matrices is run for comparison, with the same network and steps:
the Gram matrices of all layers become those of the second image, and the patch features of the
middle layer stay (Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", 2016,
here with the layers of the encoder).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nolabel.backbones.base import require
from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.nn.pixels import to_pixels
from nolabel.pictures._dense import ImagesOrSamples, images_of, samples_of
from nolabel.pictures._optimise import (
    Generator,
    OnPreview,
    Optimisation,
    normalise,
    optimise,
    pixels_of,
    random_crops,
    unnormalise,
)
from nolabel.pictures._options import Help
from nolabel.pictures._tiles import Pictures, chart, sheet
from nolabel.pictures.picture import Picture

WIDTHS = (16, 32, 64, 128, 128)  # channels of the network's levels
CROP = (0.95, 1.0)  # range of the side of the random crops
WHOLE_EVERY = 75  # steps; then the losses of the whole structure image are added
BETAS = (0.0, 0.99)  # of Adam
LEVELS = 64  # quantiles by which distributions of colours are compared
LOSSES = ("appearance", "structure", "identity")


def transfer(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    appearance: Annotated[float, Help("weight of the distance of the class tokens")] = 10.0,
    structure: Annotated[
        float, Help("weight of the distance of the self-similarities of keys")
    ] = 1.0,
    identity: Annotated[
        float, Help("weight of the distance of the keys when the second image is redrawn")
    ] = 1.0,
    steps: Annotated[int, Help("steps of the optimisation")] = 1000,
    lr: Annotated[float, Help("learning rate of Adam")] = 2e-3,
    gram: Annotated[
        bool,
        Help("whether style transfer by Gram matrices is run for comparison; twice the time"),
    ] = False,
    seed: Annotated[int, Help("seed of the network and of the crops")] = 0,
    on_preview: OnPreview | None = None,
) -> Pictures:
    """Pairs of images: the first keeps its structure and gets the appearance of the second.

    Args:
        encoder: a ViT with a class token.
        images: an even number of what `Encoder.prepare` takes, or Samples.
        on_preview: called with previews; True stops early.

    Raises:
        UsageError: an odd number of images, no steps, or an encoder without a class token.
    """
    require(encoder.backbone, ["attention"], "Appearance transfer")
    x = encoder.prepare(images_of(images))
    if len(x) < 2 or len(x) % 2 or steps < 1:
        raise UsageError(
            f"Transfer needs pairs of images and at least one step, got {len(x)} images and "
            f"{steps} steps. Use --count 2."
        )
    a, b = unnormalise(x[::2], encoder), unnormalise(x[1::2], encoder)
    weights = (appearance, structure, identity)
    found = _splice(encoder, a, b, weights, steps, lr, seed, on_preview)
    shown = to_pixels(x.cpu().numpy(), encoder.mean, encoder.std)
    firsts, seconds, made = shown[::2], shown[1::2], found.previews[-1][1]
    rows = [
        [firsts[i], seconds[i], *(shot[i] for _, shot in found.previews)] for i in range(len(a))
    ]
    titles = ["structure", "appearance", *(f"{step:,} steps" for step, _ in found.previews)]
    comparisons: dict[str, np.ndarray] = {}
    if gram:
        comparisons["gram"] = by_gram(encoder, a, b, appearance, structure, steps, lr, seed)
        titles.append("Gram matrices")
        rows = [[*row, comparisons["gram"][i]] for i, row in enumerate(rows)]
    numbers = _measure(images, firsts, seconds, {"": made, **comparisons})
    losses = np.array(found.losses).reshape(-1, len(LOSSES))
    x_steps = np.arange(1, len(losses) + 1)
    caption = (
        f"Structure of one image and appearance of another, by {encoder.name} ({found.summary})"
        + _describe(numbers)
        + "."
    )
    return Pictures([
        Picture(name="transfer", image=sheet(rows, titles), caption=caption,
                numbers=numbers, data={"images": made, **comparisons}),
        Picture(name="transfer-curves",
                image=chart([(k, x_steps, losses[:, i], "-") for i, k in enumerate(LOSSES)],
                            "step", "loss"),
                caption="Weighted losses of the transfer; all should fall.",
                data={"losses": losses},
                numbers={k: float(losses[-1, i]) for i, k in enumerate(LOSSES)} if len(losses)
                else {}),
    ])  # fmt: skip


def _splice(
    encoder: Encoder,
    a: Tensor,
    b: Tensor,
    weights: tuple[float, float, float],
    steps: int,
    lr: float,
    seed: int,
    on_preview: OnPreview | None,
) -> Optimisation:
    """Trains a network for each pair to redraw a with the appearance of b.

    Args:
        encoder: the ViT that gives keys and class tokens.
        a: structure images, float [N, C, S, S] in 0..1.
        b: appearance images, float [N, C, S, S] in 0..1.
        weights: of the `LOSSES`.
        steps: number of steps.
        lr: of Adam.
        seed: of the network and of the crops.
        on_preview: as in `transfer`.
    """
    n, channels, side = len(a), a.shape[1], a.shape[-1]
    net = Generator(n, side, inputs=channels, outputs=channels, widths=WIDTHS, seed=seed)
    net.to(a.device)
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> list[Tensor]:
        at = loss_weights(step, weights)
        whole = at.whole_appearance or at.whole_structure
        s = random_crops(a, generator, 1, CROP, flip=True)
        t = random_crops(b, generator, 1, CROP, flip=True)
        inputs = [s, t, *([a] if whole else [])]
        with encoder.evaluating():
            keys_t, class_t = _keys_and_class(encoder, normalise(t, encoder))
            keys_s = [_keys_and_class(encoder, normalise(x, encoder))[0]
                      for x in (s, *inputs[2:])]  # fmt: skip
        # One forward pass of the network for all inputs, and one of the encoder for all outputs.
        drawn = torch.cat([net(x) for x in inputs])
        with encoder.evaluating(gradients=True):
            keys, token = _keys_and_class(encoder, normalise(drawn, encoder))
        class_t = class_t.clone()
        targets = [self_similarity(k.clone()) for k in keys_s]
        terms = [
            at.appearance * relative_error(token[:n], class_t),
            at.structure * relative_error(self_similarity(keys[:n]), targets[0]),
            at.identity * relative_error(keys[n : 2 * n], keys_t.clone()),
        ]
        if whole:
            terms[0] = terms[0] + at.whole_appearance * relative_error(token[2 * n :], class_t)
            terms[1] = terms[1] + at.whole_structure * relative_error(
                self_similarity(keys[2 * n :]), targets[1]
            )
        return terms

    def draw() -> np.ndarray:
        with torch.no_grad():
            return pixels_of(net(a))

    return optimise("appearance transfer", list(net.parameters()), loss, draw, steps=steps, lr=lr,
                    betas=BETAS, on_preview=on_preview)  # fmt: skip


class LossWeights(NamedTuple):
    """Weights of the losses of one step: of crops, and of the whole structure image."""

    appearance: float
    structure: float
    identity: float
    whole_structure: float
    whole_appearance: float


def loss_weights(step: int, weights: tuple[float, float, float]) -> LossWeights:
    """The weights at a step, from those of appearance, structure and identity."""
    appearance, structure, identity = weights
    begun, whole = float(step > 0), float(step % WHOLE_EVERY == 0)
    return LossWeights(appearance, begun * structure, begun * identity, whole * structure,
                       whole * appearance)  # fmt: skip


def _keys_and_class(encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys of all tokens of the last layer, heads concatenated, [N, R + P, D], and its class token
    [N, D]."""
    key, token = encoder.backbone.facets_of(x, [(-1, "key"), (-1, "token")])
    assert key.prefix is not None  # noqa: S101 - only ViTs have attention
    return torch.cat([key.prefix, key.patches], 1).float(), token.pooled.float()


def by_gram(
    encoder: Encoder,
    a: Tensor,
    b: Tensor,
    style: float,
    content: float,
    steps: int,
    lr: float,
    seed: int,
) -> np.ndarray:
    """Style transfer by Gram matrices (Gatys et al., 2016).

    Args:
        encoder: the encoder whose layers are matched.
        a: content images, float [N, C, S, S] in 0..1.
        b: style images, float [N, C, S, S] in 0..1.
        style: weight of the Gram matrices.
        content: weight of the patch features of the middle layer.
        steps: number of steps.
        lr: of Adam.
        seed: of the network.

    Returns:
        uint8 [N, S, S, 3].
    """
    layers = range(encoder.backbone.depth)
    middle = len(layers) // 2

    def patches(x: Tensor) -> list[Tensor]:
        tokens = encoder.backbone.facets_of(normalise(x, encoder), [(i, "token") for i in layers])
        return [t.patches.float() for t in tokens]

    with encoder.evaluating():
        target, styles = patches(a)[middle].clone(), [gram_matrix(p) for p in patches(b)]
    channels = a.shape[1]
    net = Generator(len(a), a.shape[-1], inputs=channels, outputs=channels, widths=WIDTHS,
                    seed=seed).to(a.device)  # fmt: skip

    def loss(step: int) -> list[Tensor]:
        with encoder.evaluating(gradients=True):
            drawn = patches(net(a))
        errors = [relative_error(gram_matrix(p), s) for p, s in zip(drawn, styles, strict=True)]
        return [style * torch.stack(errors).mean(), content * relative_error(drawn[middle], target)]

    def draw() -> np.ndarray:
        with torch.no_grad():
            return pixels_of(net(a))

    found = optimise("style by Gram matrices", list(net.parameters()), loss, draw, steps=steps,
                     lr=lr, betas=BETAS)  # fmt: skip
    return found.previews[-1][1]


def gram_matrix(patches: Tensor) -> Tensor:
    """Mean over the patches of the outer product of the channels: [N, P, D] -> [N, D, D]."""
    return patches.transpose(1, 2) @ patches / patches.shape[1]


def self_similarity(keys: Tensor) -> Tensor:
    """Cosines between all tokens: [N, T, D] -> [N, T, T]."""
    z = torch.nn.functional.normalize(keys, dim=-1)
    return z @ z.transpose(1, 2)


def relative_error(x: Tensor, target: Tensor) -> Tensor:
    """Squared error divided by the squared norm of the target, summed over the N images.

    A sum, not a mean, so that the gradient of an image does not depend on N.

    Args:
        x: float [N, ...].
        target: float [N, ...].
    """
    dims = tuple(range(1, x.ndim))
    return ((x - target).square().sum(dims) / target.square().sum(dims).clamp_min(1e-12)).sum()


def _measure(
    images: ImagesOrSamples,
    firsts: np.ndarray,
    seconds: np.ndarray,
    results: dict[str, np.ndarray],
) -> dict[str, float]:
    """How well the object kept its outline and took the colours of the other.

    Baselines: the first image, the second, and the first with the colour statistics of the second.

    Args:
        images: 2 N images; the masks of Samples are used.
        firsts: structure images, uint8 [N, H, W, 3].
        seconds: appearance images, uint8 [N, H, W, 3].
        results: by suffix of the numbers, uint8 [N, H, W, 3] each.
    """
    samples, shape = samples_of(images), firsts.shape[1:3]
    masks = [s.mask for s in samples or () if s.mask is not None and s.mask.shape == shape]
    has_masks = len(masks) == 2 * len(firsts)
    inside = [m > 0 for m in masks] if has_masks else [np.ones(shape, bool)] * (2 * len(firsts))
    recoloured = [match_colour_statistics(f, s) for f, s in zip(firsts, seconds, strict=True)]
    candidates = {
        "": results[""],
        "first": firsts,
        "second": seconds,
        "colours": np.stack(recoloured),
        **{k: v for k, v in results.items() if k},
    }
    numbers: dict[str, float] = {}
    for name, pictures in candidates.items():
        suffix = f"_{name}" if name else ""
        distances = [
            colour_distance(y[inside[2 * i]], seconds[i][inside[2 * i + 1]])
            for i, y in enumerate(pictures)
        ]
        numbers[f"colour_distance{suffix}"] = float(np.mean(distances))
        if has_masks:
            overlaps = [outline_iou(y, inside[2 * i]) for i, y in enumerate(pictures)]
            numbers[f"outline{suffix}"] = float(np.mean(overlaps))
    return numbers


def _describe(numbers: dict[str, float]) -> str:
    """The numbers of `_measure` for the caption."""
    gram = "colour_distance_gram" in numbers
    text = (
        f". Distance of the object's colours from those of the other (0 is equal, 1 is black from "
        f"white; lower is better): {numbers['colour_distance']:.2f} (before "
        f"{numbers['colour_distance_first']:.2f}, by matching mean and deviation "
        f"{numbers['colour_distance_colours']:.2f}"
        + (f", by Gram matrices {numbers['colour_distance_gram']:.2f}" if gram else "")
        + ")"
    )
    if "outline" in numbers:
        text += (
            f". IoU of its outline with the true mask (higher is better): {numbers['outline']:.0%} "
            f"(before {numbers['outline_first']:.0%}, in the other image "
            f"{numbers['outline_second']:.0%}"
            + (f", by Gram matrices {numbers['outline_gram']:.0%}" if gram else "")
            + ")"
        )
    return text


def outline_iou(image: np.ndarray, mask: np.ndarray) -> float:
    """Whether an object is still visible at its place: IoU of the mask with a two-colour split.

    The split are the pixels that are nearer to the mean colour inside the mask than to that
    outside.

    Args:
        image: uint8 [H, W, 3].
        mask: bool [H, W].
    """
    x = image.astype(np.float64)
    near = np.square(x - x[mask].mean(0)).sum(-1) < np.square(x - x[~mask].mean(0)).sum(-1)
    return float((near & mask).sum() / max((near | mask).sum(), 1))


def colour_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance in 0..1 of the quantiles of each channel of pixels uint8 [M, 3] and [K, 3]."""
    at = (np.arange(LEVELS) + 0.5) / LEVELS
    p, q = (np.quantile(v.astype(np.float64), at, axis=0) for v in (a, b))
    return float(np.abs(p - q).mean() / 255)


def match_colour_statistics(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The image with the mean and deviation of each channel of another, uint8 [H, W, 3] all."""
    x, y = image.astype(np.float64), reference.astype(np.float64)
    z = (x - x.mean((0, 1))) / np.maximum(x.std((0, 1)), 1e-6) * y.std((0, 1)) + y.mean((0, 1))
    return z.clip(0, 255).astype(np.uint8)
