"""What a layer still knows of an image: other images that have the same class token there.

Tumanyan et al., "Splicing ViT Features for Semantic Appearance Transfer", 2022, arXiv 2201.00424,
section 3: a network draws an image from noise (`Generator`) until the encoder's class token after a
layer, before the final norm, is that of the image. Shallow layers give the image back; deep ones
give its content, elsewhere and otherwise at each try.

Differs from the original: the error is in units of the tokens' spread over images, so that one rate
suits all layers; fewer steps; without a class token the mean of the patches is inverted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nolabel.backbones.base import layer_number
from nolabel.data.source import Source
from nolabel.encoders import Encoder, load
from nolabel.encoders.features import extract
from nolabel.errors import UsageError
from nolabel.nn.knn import nearest
from nolabel.nn.pixels import to_pixels
from nolabel.pictures._dense import ImagesOrSamples, images_of, samples_of
from nolabel.pictures._optimise import (
    Each,
    Generator,
    Search,
    correlation,
    normalised,
    pixels_of,
    search,
)
from nolabel.pictures._tiles import Pictures, chart, sheet
from nolabel.pictures.picture import Picture

NOISE = 32  # channels that the network draws from
OTHERS = 128  # images of the set that tell how tokens usually are
NEAR = 20  # neighbours that the judge asks


def invert(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    gallery: Source | None = None,
    layers: tuple[int, ...] = (),
    seeds: int = 2,
    steps: int = 400,
    lr: float = 0.01,
    judge: str = "pixels",
    each: Each | None = None,
) -> Pictures:
    """Images made anew from the class token of some layers, by several seeds.

    Args:
        encoder: any.
        images: a few of what `Encoder.prepare` takes, or Samples.
        gallery: a set whose labels the judge knows, if it has some.
        layers: whose token; by default the first, the middle and the last.
        seeds: other noise and another network for each.
        steps: of the search, for each layer.
        lr: of Adam.
        judge: another ENC, which says whether an inversion still shows what the image did.
        each: called with previews; True ends the search.

    Raises:
        UsageError: no seeds or steps, or no such layer.
    """
    if seeds < 1 or steps < 1:
        raise UsageError(f"Give at least one seed and one step, got {seeds} and {steps}.")
    x = encoder.prepare(images_of(images))
    last = encoder.backbone.depth - 1
    wanted = [layer_number(encoder.backbone, i) for i in layers or sorted({0, last // 2, last})]
    shown = to_pixels(x.cpu().numpy(), encoder.mean, encoder.std)
    n, made, cosines, curves = len(x), [], [], []
    others = x
    if gallery is not None:
        some = np.linspace(0, len(gallery) - 1, min(len(gallery), OTHERS)).astype(int)
        others = encoder.prepare([gallery.read(int(i)).image for i in some])
    for layer in wanted:
        found, cosine = _inverted(encoder, x, others, layer, seeds, steps, lr, each)
        made.append(found.shots[-1][1].reshape(seeds, n, *shown.shape[1:]))
        cosines.append(cosine.reshape(seeds, n))
        curves.append(found)
        if found.stopped:
            break
    wanted = wanted[: len(made)]
    named = _judged(judge, images, shown, made, gallery)
    numbers: dict[str, float] = {}
    for layer, m, c in zip(wanted, made, cosines, strict=True):
        both = [correlation(m[s, i], shown[i]) for s in range(seeds) for i in range(n)]
        numbers |= {f"cosine_{layer}": float(c.mean()), f"pixels_{layer}": float(np.mean(both))}
        if seeds > 1:
            pairs = [(s, t) for s in range(seeds) for t in range(s)]
            same = [correlation(m[s, i], m[t, i]) for s, t in pairs for i in range(n)]
            numbers[f"seeds_{layer}"] = float(np.mean(same))
    numbers |= {f"{k}_{w}": v for k, some in named.items() if isinstance(some, list)
                for w, v in zip(wanted, some, strict=True)}  # fmt: skip
    numbers |= {k: v for k, v in named.items() if isinstance(v, float)}
    rows = [[shown[i], *(m[s, i] for m in made for s in range(seeds))] for i in range(n)]
    titles = ["image", *(f"layer {w}, {s + 1}" for w in wanted for s in range(seeds))]
    caption = _caption(encoder, wanted, numbers, curves[-1], judge)
    errors = {
        f"layer_{w}": np.sum(c.losses, 1) / (n * seeds) for w, c in zip(wanted, curves, strict=True)
    }
    lines = [(k.replace("_", " "), np.arange(1, len(e) + 1), e, "-") for k, e in errors.items()]
    return Pictures([
        Picture(name="invert", image=sheet(rows, titles), caption=caption, numbers=numbers,
                data={f"layer_{w}": m for w, m in zip(wanted, made, strict=True)}),
        Picture(name="invert-curves", image=chart(lines, "step", "squared error, share of spread"),
                caption=f"Error of the class token while {encoder.name} was inverted.",
                data=errors, numbers={k: float(e[-1]) for k, e in errors.items() if len(e)}),
    ])  # fmt: skip


def _inverted(
    encoder: Encoder, x: torch.Tensor, others: torch.Tensor, layer: int, seeds: int, steps: int,
    lr: float, each: Each | None,
) -> tuple[Search, np.ndarray]:  # fmt: skip
    """The search, images seed by seed, and the cosine of each with its target, both taken from the
    mean of other images' tokens."""
    side, device = x.shape[-1], x.device
    with encoder.evaluating():
        target = encoder.backbone.facets(x, layer, "token").pooled.float()
        usual = encoder.backbone.facets(others, layer, "token").pooled.float()
    target, centre = target.clone().repeat(seeds, 1), usual.mean(0)
    # What tokens have in common says nothing of an image, and often is most of them.
    spread = (usual - centre).square().sum(1).mean().clone()
    count = len(target)
    net = Generator(count, side, inputs=NOISE, outputs=x.shape[1], seed=layer).to(device)
    generator = torch.Generator().manual_seed(layer)
    noise = torch.randn(count, NOISE, side, side, generator=generator).to(device) / 10
    cosine = np.zeros(count)

    def loss(step: int) -> list[torch.Tensor]:
        jitter = 1.0 if step < steps / 2 else 0.2 if step < steps * 3 / 4 else 0.05
        more = torch.randn(noise.shape, generator=generator).to(device) / 10
        with encoder.evaluating(gradients=True):
            y = normalised(net(noise + jitter * more), encoder)
            token = encoder.backbone.facets(y, layer, "token").pooled.float()
        return [(token - target).square().sum() / spread]

    def draw() -> np.ndarray:
        with torch.no_grad():
            y = net(noise)
        with encoder.evaluating():
            token = encoder.backbone.facets(normalised(y, encoder), layer, "token").pooled
        apart = F.cosine_similarity(token.float() - centre, target - centre, dim=1)
        cosine[:] = apart.cpu().numpy()
        return pixels_of(y)

    title = f"inverting layer {layer}"
    found = search(title, list(net.parameters()), loss, draw, steps=steps, lr=lr, each=each)
    return found, cosine


def _judged(
    judge: str,
    images: ImagesOrSamples,
    shown: np.ndarray,
    made: list[np.ndarray],
    gallery: Source | None,
) -> dict[str, Any]:
    """What another encoder says: whose image an inversion is, among those given; and, where the
    gallery's labels are known, whether its neighbours there are of the image's class."""
    other = load(judge)
    own = F.normalize(other.embed(list(shown)), dim=1)
    tries = [F.normalize(other.embed(list(m.reshape(-1, *shown.shape[1:]))), dim=1) for m in made]
    truth = np.arange(len(shown))
    out: dict[str, Any] = {
        "found": [
            float(((z @ own.T).argmax(1).numpy() == np.resize(truth, len(z))).mean()) for z in tries
        ],
        "found_chance": 1 / len(shown),
    }
    labels = [s.label for s in samples_of(images) or ()]
    if gallery is None or gallery.labels is None or not labels or None in labels:
        return out
    known = extract(other, gallery)
    theirs, z = known.labels, F.normalize(known.values, dim=1)
    if theirs is None:
        return out

    def right(q: torch.Tensor) -> float:
        near = theirs[nearest(q, z, min(NEAR, len(z)))[1]]
        guess = near.mode(1).values.numpy()
        return float((guess == np.resize(np.array(labels), len(q))).mean())

    out["named"] = [right(q) for q in tries]
    out["named_original"] = right(own)
    return out


def _caption(
    encoder: Encoder, wanted: list[int], numbers: dict[str, float], last: Search, judge: str
) -> str:
    parts = []
    for w in wanted:
        said = (
            f"layer {w}: cosine {numbers[f'cosine_{w}']:.2f}, pixels correlate "
            f"{numbers[f'pixels_{w}']:.2f} with the image"
        )
        if f"seeds_{w}" in numbers:
            said += f" and {numbers[f'seeds_{w}']:.2f} between seeds"
        said += f", {judge} finds the image for {numbers[f'found_{w}']:.0%}"
        if f"named_{w}" in numbers:
            said += f" and names its class for {numbers[f'named_{w}']:.0%}"
        parts.append(said)
    text = (
        f"Images with the class token of the image in a layer of {encoder.name} ({last.summary}). "
        + "; ".join(parts)
        + f" (by chance {numbers['found_chance']:.0%} are found"
    )
    if "named_original" in numbers:
        text += f"; of the images themselves {numbers['named_original']:.0%} are named"
    return text + ")."
