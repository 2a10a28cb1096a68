"""One image with the look of another: its parts keep their place and take the other's texture.

Tumanyan et al., "Splicing ViT Features for Semantic Appearance Transfer", 2022, arXiv 2201.00424.
A network G, trained on the two images alone, redraws the first: the cosines between the keys of all
places stay (structure), the class token becomes the second's (appearance), and the second image
itself is redrawn with the keys that it has (identity).

Differs from the original: the losses are relative to the size of what they compare, so that they
suit networks of any width; fewer steps; no colour jitter and no blur of the structure image.

With `gram`, the older way is searched for beside it, with the same network and steps: the products
of channels over all places become the second's, in every layer, and the first's patches stay
(Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", 2016, here with the
encoder's own layers).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nolabel.backbones.base import require
from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.nn.pixels import to_pixels
from nolabel.pictures._dense import ImagesOrSamples, images_of, samples_of
from nolabel.pictures._optimise import (
    Each,
    Generator,
    crops,
    normalised,
    pixels_of,
    search,
    unnormalised,
)
from nolabel.pictures._tiles import Pictures, chart, sheet
from nolabel.pictures.picture import Picture

WIDTHS = (16, 32, 64, 128, 128)
CROP = (0.95, 1.0)  # share of the side that a step sees
WHOLE = 75  # every so many steps the whole structure image is seen
LEVELS = 64  # of brightness at which distributions of colours are compared


def transfer(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    appearance: float = 10.0,
    structure: float = 1.0,
    identity: float = 1.0,
    steps: int = 1000,
    lr: float = 2e-3,
    gram: bool = False,
    seed: int = 0,
    each: Each | None = None,
) -> Pictures:
    """Pairs of images: the first keeps its structure and gets the appearance of the second.

    Args:
        encoder: a ViT with a class token.
        images: an even number of what `Encoder.prepare` takes, or Samples.
        appearance: weight of the class token's distance.
        structure: weight of the distance between self-similarities of keys.
        identity: weight of the keys' distance where the second image is redrawn.
        steps: of the search.
        lr: of Adam.
        gram: whether style transfer by Gram matrices is searched for too, to compare with; twice
            the time.
        seed: of the network and of the crops.
        each: called with previews; True ends the search.

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
    one, other = x[::2], x[1::2]
    n, channels, side = len(one), x.shape[1], x.shape[-1]
    net = Generator(n, side, inputs=channels, outputs=channels, widths=WIDTHS, seed=seed)
    net.to(x.device)
    chance = torch.Generator().manual_seed(seed)
    a, b = unnormalised(one, encoder), unnormalised(other, encoder)

    def loss(step: int) -> list[Tensor]:
        whole = step % WHOLE == 0
        s = a if whole else crops(a, chance, 1, CROP)
        t = crops(b, chance, 1, CROP)
        with encoder.evaluating():
            keys_s, _ = _keys_and_class(encoder, normalised(s, encoder))
            keys_t, class_t = _keys_and_class(encoder, normalised(t, encoder))
        # One pass of the network for both of its inputs, one of the encoder for both outputs.
        drawn = torch.cat([net(s), net(t)])
        with encoder.evaluating(gradients=True):
            keys, token = _keys_and_class(encoder, normalised(drawn, encoder))
        kept = self_similarity(keys_s.clone())
        return [
            appearance * relative(token[:n], class_t.clone()),
            structure * relative(self_similarity(keys[:n]), kept),
            identity * relative(keys[n:], keys_t.clone()),
        ]

    def draw() -> np.ndarray:
        with torch.no_grad():
            return pixels_of(net(a))

    found = search("appearance transfer", list(net.parameters()), loss, draw, steps=steps, lr=lr,
                   betas=(0.0, 0.99), each=each)  # fmt: skip
    shown = to_pixels(x.cpu().numpy(), encoder.mean, encoder.std)
    firsts, seconds, made = shown[::2], shown[1::2], found.shots[-1][1]
    rows = [[firsts[i], seconds[i], *(shot[i] for _, shot in found.shots)] for i in range(n)]
    titles = ["structure", "appearance", *(f"{step:,} steps" for step, _ in found.shots)]
    others: dict[str, np.ndarray] = {}
    if gram:
        others["gram"] = by_gram(encoder, a, b, appearance, structure, steps, lr, seed)
        titles.append("Gram matrices")
        rows = [[*row, others["gram"][i]] for i, row in enumerate(rows)]
    numbers, said = _measured(images, firsts, seconds, made, others)
    losses = np.array(found.losses).reshape(-1, 3)
    across = np.arange(1, len(losses) + 1)
    names = ("appearance", "structure", "identity")
    caption = f"Structure of one, appearance of the other, by {encoder.name} ({found.summary})"
    return Pictures([
        Picture(name="transfer", image=sheet(rows, titles), caption=caption + said + ".",
                numbers=numbers, data={"images": made, **others}),
        Picture(name="transfer-curves",
                image=chart([(k, across, losses[:, i], "-") for i, k in enumerate(names)],
                            "step", "loss"),
                caption="Losses of the transfer, weighted.", data={"losses": losses},
                numbers={k: float(losses[-1, i]) for i, k in enumerate(names)} if len(losses)
                else {}),
    ])  # fmt: skip


def _keys_and_class(encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys of the last layer, heads side by side, of all tokens [N, R + P, D], and the class token
    after it [N, D]."""
    key, token = encoder.backbone.facets_of(x, [(-1, "key"), (-1, "token")])
    assert key.prefix is not None  # noqa: S101 - only ViTs come here
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
    """Style transfer by Gram matrices: images uint8 [N, H, W, C] of the structure of a and the
    style of b, both [N, C, H, W] from 0 to 1."""
    layers = range(encoder.backbone.depth)
    middle = len(layers) // 2

    def patches(x: Tensor) -> list[Tensor]:
        found = encoder.backbone.facets_of(normalised(x, encoder), [(i, "token") for i in layers])
        return [f.patches.float() for f in found]

    with encoder.evaluating():
        kept, styles = patches(a)[middle].clone(), [gram_matrix(p) for p in patches(b)]
    channels = a.shape[1]
    net = Generator(len(a), a.shape[-1], inputs=channels, outputs=channels, widths=WIDTHS,
                    seed=seed).to(a.device)  # fmt: skip

    def loss(step: int) -> list[Tensor]:
        with encoder.evaluating(gradients=True):
            drawn = patches(net(a))
        apart = [relative(gram_matrix(p), s) for p, s in zip(drawn, styles, strict=True)]
        return [style * torch.stack(apart).mean(), content * relative(drawn[middle], kept)]

    def draw() -> np.ndarray:
        with torch.no_grad():
            return pixels_of(net(a))

    found = search("style by Gram matrices", list(net.parameters()), loss, draw, steps=steps,
                   lr=lr, betas=(0.0, 0.99))  # fmt: skip
    return found.shots[-1][1]


def gram_matrix(patches: Tensor) -> Tensor:
    """Mean over the places of the products of channels: [N, P, D] -> [N, D, D]."""
    return patches.transpose(1, 2) @ patches / patches.shape[1]


def self_similarity(keys: Tensor) -> Tensor:
    """Cosines between all places: [N, T, D] -> [N, T, T]."""
    z = torch.nn.functional.normalize(keys, dim=-1)
    return z @ z.transpose(1, 2)


def relative(x: Tensor, target: Tensor) -> Tensor:
    """Squared distance in units of the target's square, summed over the first axis, so that no
    image minds how many others there are."""
    dims = tuple(range(1, x.ndim))
    return ((x - target).square().sum(dims) / target.square().sum(dims).clamp_min(1e-12)).sum()


def _measured(
    images: ImagesOrSamples,
    firsts: np.ndarray,
    seconds: np.ndarray,
    made: np.ndarray,
    others: dict[str, np.ndarray],
) -> tuple[dict[str, float], str]:
    """How far the figure kept its outline and took the other's colours, beside three trivial
    answers: the first image, the second, and the first with the second's mean and deviation of
    each colour; and beside other ways."""
    samples, shape = samples_of(images), firsts.shape[1:3]
    masks = [s.mask for s in samples or () if s.mask is not None and s.mask.shape == shape]
    known = len(masks) == 2 * len(made)
    inside = [m > 0 for m in masks] if known else [np.ones(shape, bool)] * (2 * len(made))
    tries = {
        "": made, "_first": firsts, "_second": seconds,
        "_colours": np.stack([recoloured(f, s) for f, s in zip(firsts, seconds, strict=True)]),
        **{f"_{k}": v for k, v in others.items()},
    }  # fmt: skip
    numbers: dict[str, float] = {}
    for name, some in tries.items():
        pairs = list(enumerate(some))
        numbers[f"colour_distance{name}"] = float(
            np.mean([colour_distance(y[inside[2 * i]], seconds[i][inside[2 * i + 1]])
                     for i, y in pairs])
        )  # fmt: skip
        if known:
            numbers[f"outline{name}"] = float(
                np.mean([outline(y, inside[2 * i]) for i, y in pairs])
            )
    beside = f", by Gram matrices {numbers['colour_distance_gram']:.2f}" if "gram" in others else ""
    said = (
        f". The figure's colours are {numbers['colour_distance']:.2f} from the other's (before "
        f"{numbers['colour_distance_first']:.2f}, by matching mean and deviation "
        f"{numbers['colour_distance_colours']:.2f}{beside}; 1 is black from white)"
    )
    if "outline" in numbers:
        said += (
            f"; its outline is kept with an IoU of {numbers['outline']:.0%} (before "
            f"{numbers['outline_first']:.0%}, in the other image "
            f"{numbers['outline_second']:.0%}"
            + (f", by Gram matrices {numbers['outline_gram']:.0%})" if "gram" in others else ")")
        )
    return numbers, said


def outline(image: np.ndarray, mask: np.ndarray) -> float:
    """IoU of a mask [H, W] with the pixels that are nearer to the mean colour inside it than to the
    mean colour outside: whether the figure can be told from the ground where it should be."""
    x = image.astype(np.float64)
    near = np.square(x - x[mask].mean(0)).sum(-1) < np.square(x - x[~mask].mean(0)).sum(-1)
    return float((near & mask).sum() / max((near | mask).sum(), 1))


def colour_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance of the quantiles of each colour of pixels [M, 3] and [K, 3], from 0 to 1."""
    at = (np.arange(LEVELS) + 0.5) / LEVELS
    p, q = (np.quantile(v.astype(np.float64), at, axis=0) for v in (a, b))
    return float(np.abs(p - q).mean() / 255)


def recoloured(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The image with another's mean and deviation of each colour: the simplest transfer."""
    x, y = image.astype(np.float64), like.astype(np.float64)
    z = (x - x.mean((0, 1))) / np.maximum(x.std((0, 1)), 1e-6) * y.std((0, 1)) + y.mean((0, 1))
    return z.clip(0, 255).astype(np.uint8)
