"""Feature inversion: images whose class token in a layer is that of a given image.

Tumanyan et al., "Splicing ViT Features for Semantic Appearance Transfer", 2022, arXiv 2201.00424,
section 3: a network generates an image from noise (`Generator`) and is trained until the class
token of the image after a layer, before the final norm, is the target. Inversions of shallow layers
reproduce the image; those of deep layers reproduce its content, with other positions and details
for each seed. Fresh noise is added to the network's input, of standard deviation 1, in each step:
10 times as strong in the first half, 2 times until three quarters, then half as strong.

Differs from the original: the squared error is divided by the variance of the token over images, so
that one learning rate suits all layers; fewer steps; the mean of the patches is inverted if there
is no class token.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F

from nolabel.backbones.base import layer_number
from nolabel.data.source import Source, Subset
from nolabel.data.sources._bands import to_rgb8
from nolabel.encoders import Encoder, load
from nolabel.encoders.features import extract
from nolabel.errors import UsageError
from nolabel.nn.knn import nearest
from nolabel.nn.pixels import to_pixels
from nolabel.pictures._dense import ImagesOrSamples, images_of, samples_of
from nolabel.pictures._optimise import (
    Generator,
    OnPreview,
    Optimisation,
    correlation,
    normalise,
    optimise,
    pixels_of,
)
from nolabel.pictures._options import Help
from nolabel.pictures._shown import shown_image
from nolabel.pictures._tiles import Pictures, chart, sheet
from nolabel.pictures.picture import Picture
from nolabel.types import Sample

NOISE = 32  # channels of the network's input
DEVIATIONS = (10.0, 2.0, 0.5)  # of the noise added to the input, whose own deviation is 1
STAGES = (0.5, 0.75)  # shares of the steps after which the next deviation holds
REFERENCES = 128  # images of the set that give the mean and variance of the tokens, at most
NEIGHBOURS = 20  # of the evaluator's k-NN classifier


def invert(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    gallery: Source | None = None,
    layers: Annotated[
        tuple[int, ...],
        Help("layers whose token is inverted; default: the first, the middle and the last"),
    ] = (),
    seeds: Annotated[int, Help("inversions of each image, each with its own noise")] = 2,
    steps: Annotated[int, Help("steps of the optimisation, for each layer")] = 400,
    lr: Annotated[float, Help("learning rate of Adam")] = 0.01,
    evaluator: Annotated[
        str, Help("another ENC, whose features compare each inversion with its image")
    ] = "pixels",
    on_preview: OnPreview | None = None,
) -> Pictures:
    """Images generated from the class token of some layers, with several seeds.

    Args:
        encoder: any.
        images: a few of what `Encoder.prepare` takes, or Samples.
        gallery: a set that gives the statistics of tokens and, if it has labels, the classes of
            the evaluator's k-NN classifier.
        on_preview: called with previews; True stops early.

    Raises:
        UsageError: no seeds or steps, or no such layer.
    """
    if seeds < 1 or steps < 1:
        raise UsageError(f"Give at least one seed and one step, got {seeds} and {steps}.")
    x = encoder.prepare(images_of(images))
    last = encoder.backbone.depth - 1
    deep = [layer_number(encoder.backbone, i) for i in layers or sorted({0, last // 2, last})]
    shown = to_pixels(x.cpu().numpy(), encoder.mean, encoder.std)
    n, made, cosines, runs = len(x), [], [], []
    references = x
    if gallery is not None:
        keys = np.linspace(0, len(gallery) - 1, min(len(gallery), REFERENCES)).astype(int)
        references = encoder.prepare([shown_image(gallery, int(i)) for i in keys])
    for layer in deep:
        run, cosine = _invert_layer(encoder, x, references, layer, seeds, steps, lr, on_preview)
        made.append(run.previews[-1][1].reshape(seeds, n, *shown.shape[1:]))
        cosines.append(cosine.reshape(seeds, n))
        runs.append(run)
        if run.stopped:
            break
    deep = deep[: len(made)]
    numbers: dict[str, float] = {}
    for layer, m, c in zip(deep, made, cosines, strict=True):
        with_image = [correlation(m[s, i], shown[i]) for s in range(seeds) for i in range(n)]
        numbers |= {f"cosine_{layer}": float(c.mean()),
                    f"pixels_{layer}": float(np.mean(with_image))}  # fmt: skip
        if seeds > 1:
            pairs = [(s, t) for s in range(seeds) for t in range(s)]
            between = [correlation(m[s, i], m[t, i]) for s, t in pairs for i in range(n)]
            numbers[f"seeds_{layer}"] = float(np.mean(between))
    numbers |= _evaluate(evaluator, images, shown, made, gallery).numbers(deep)
    rows = [[shown[i], *(m[s, i] for m in made for s in range(seeds))] for i in range(n)]
    titles = ["image", *(f"layer {w}, {s + 1}" for w in deep for s in range(seeds))]
    caption = _caption(encoder, deep, numbers, runs[-1], evaluator)
    errors = {
        f"layer_{w}": np.sum(r.losses, 1) / (n * seeds) for w, r in zip(deep, runs, strict=True)
    }
    lines = [(k.replace("_", " "), np.arange(1, len(e) + 1), e, "-") for k, e in errors.items()]
    return Pictures([
        Picture(name="invert", image=sheet(rows, titles), caption=caption, numbers=numbers,
                data={f"layer_{w}": m for w, m in zip(deep, made, strict=True)}),
        Picture(name="invert-curves", image=chart(lines, "step", "squared error / variance"),
                caption=f"Squared error of the class token of {encoder.name} during the inversion, "
                "as a share of its variance over images; it should fall towards 0.",
                data=errors, numbers={k: float(e[-1]) for k, e in errors.items() if len(e)}),
    ])  # fmt: skip


def _invert_layer(
    encoder: Encoder, x: torch.Tensor, references: torch.Tensor, layer: int, seeds: int,
    steps: int, lr: float, on_preview: OnPreview | None,
) -> tuple[Optimisation, np.ndarray]:  # fmt: skip
    """Inverts the class token of one layer.

    Args:
        encoder: the encoder.
        x: N prepared images, float [N, C, S, S].
        references: prepared images that give the mean and variance of the token.
        layer: the layer.
        seeds: inversions of each image.
        steps: number of steps.
        lr: of Adam.
        on_preview: as in `invert`.

    Returns:
        The optimisation of seeds * N images, seed by seed, and the cosine of each token with its
        target after the mean token is subtracted, float [seeds * N].
    """
    side, device = x.shape[-1], x.device
    with encoder.evaluating():
        target = encoder.backbone.facets(x, layer, "token").pooled.float()
        tokens = encoder.backbone.facets(references, layer, "token").pooled.float()
    target, centre = target.clone().repeat(seeds, 1), tokens.mean(0)
    # The mean token is the same for all images and often dominates the norm, hence the variance.
    variance = (tokens - centre).square().sum(1).mean().clone()
    count = len(target)
    net = Generator(count, side, inputs=NOISE, outputs=x.shape[1], seed=layer).to(device)
    generator = torch.Generator().manual_seed(layer)
    noise = torch.randn(count, NOISE, side, side, generator=generator).to(device)
    cosine = np.zeros(count)

    def loss(step: int) -> list[torch.Tensor]:
        more = noise_deviation(step, steps) * torch.randn(noise.shape, generator=generator)
        with encoder.evaluating(gradients=True):
            y = normalise(net(noise + more.to(device)), encoder)
            token = encoder.backbone.facets(y, layer, "token").pooled.float()
        return [(token - target).square().sum() / variance]

    def draw() -> np.ndarray:
        with torch.no_grad():
            y = net(noise)
        with encoder.evaluating():
            token = encoder.backbone.facets(normalise(y, encoder), layer, "token").pooled
        cosines = F.cosine_similarity(token.float() - centre, target - centre, dim=1)
        cosine[:] = cosines.cpu().numpy()
        return pixels_of(y)

    run = optimise(f"inverting layer {layer}", list(net.parameters()), loss, draw, steps=steps,
                   lr=lr, on_preview=on_preview)  # fmt: skip
    return run, cosine


def noise_deviation(step: int, steps: int) -> float:
    """Standard deviation of the noise that a step of the optimisation adds to the input."""
    return DEVIATIONS[sum(step >= round(steps * share) for share in STAGES)]


@dataclass(frozen=True)
class _Evaluation:
    """The evaluation of the inversions by another encoder.

    Attributes:
        retrieval: for each layer the share of inversions whose nearest image is their own.
        chance: of `retrieval`.
        knn: for each layer the accuracy of its k-NN classifier; empty without labels.
        knn_images: that on the images themselves; None without labels.
    """

    retrieval: list[float]
    chance: float
    knn: list[float] = field(default_factory=list)
    knn_images: float | None = None

    def numbers(self, layers: list[int]) -> dict[str, float]:
        """By their names in numbers.json."""
        out = {f"retrieval_{i}": v for i, v in zip(layers, self.retrieval, strict=True)}
        if self.knn:
            out |= {f"knn_{i}": v for i, v in zip(layers, self.knn, strict=True)}
        out["retrieval_chance"] = self.chance
        if self.knn_images is not None:
            out["knn_images"] = self.knn_images
        return out


class _InColour(Subset):
    """A source of any number of channels as it is shown: the evaluator compares what is shown."""

    def __init__(self, source: Source):
        super().__init__(source, range(len(source)))
        self.channels, self.in_memory, self.supports_draft = 3, False, False

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i in three channels. Raises BadImage."""
        sample = super().read(i)
        return replace(sample, image=to_rgb8(sample.image))


def _evaluate(
    evaluator: str,
    images: ImagesOrSamples,
    shown: np.ndarray,
    made: list[np.ndarray],
    gallery: Source | None,
) -> _Evaluation:
    """Evaluates inversions by another encoder.

    Args:
        evaluator: ENC.
        images: N images, whose labels are used if they have some.
        shown: the same, uint8 [N, S, S, 3].
        made: inversions of each layer, uint8 [seeds, N, S, S, 3].
        gallery: images of the k-NN classifier, if they have labels.
    """
    other = load(evaluator)
    originals = F.normalize(other.embed(list(shown)), dim=1)
    inversions = [
        F.normalize(other.embed(list(m.reshape(-1, *shown.shape[1:]))), dim=1) for m in made
    ]
    index = np.arange(len(shown))
    retrieval = [
        float(((z @ originals.T).argmax(1).numpy() == np.resize(index, len(z))).mean())
        for z in inversions
    ]
    evaluation = _Evaluation(retrieval, 1 / len(shown))
    labels = [s.label for s in samples_of(images) or ()]
    if gallery is None or gallery.labels is None or not labels or None in labels:
        return evaluation
    features = extract(other, _InColour(gallery) if gallery.channels != 3 else gallery)
    gallery_labels, z = features.labels, F.normalize(features.values, dim=1)
    if gallery_labels is None:
        return evaluation

    def accuracy(queries: torch.Tensor) -> float:
        votes = gallery_labels[nearest(queries, z, min(NEIGHBOURS, len(z)))[1]]
        predicted = votes.mode(1).values.numpy()
        return float((predicted == np.resize(np.array(labels), len(queries))).mean())

    return replace(
        evaluation, knn=[accuracy(q) for q in inversions], knn_images=accuracy(originals)
    )


def _caption(
    encoder: Encoder, layers: list[int], numbers: dict[str, float], last: Optimisation,
    evaluator: str,
) -> str:  # fmt: skip
    """What the picture shows, and the numbers of each layer."""
    parts = []
    for i in layers:
        part = (
            f"layer {i}: cosine with the target {numbers[f'cosine_{i}']:.2f}, pixel correlation "
            f"with the image {numbers[f'pixels_{i}']:.2f}"
        )
        if f"seeds_{i}" in numbers:
            part += f" and between seeds {numbers[f'seeds_{i}']:.2f}"
        part += f"; {numbers[f'retrieval_{i}']:.0%} are nearest to their own image by {evaluator}"
        if f"knn_{i}" in numbers:
            part += f", and {numbers[f'knn_{i}']:.0%} have its class by k-NN"
        parts.append(part)
    text = (
        f"Images generated so that their class token in a layer of {encoder.name} is that of the "
        f"image ({last.summary}); a cosine near 1 means that the inversion succeeded, a low pixel "
        "correlation that the layer has forgotten the pixels. "
        + ". ".join(parts)
        + f" (chance of the nearest image {numbers['retrieval_chance']:.0%}"
    )
    if "knn_images" in numbers:
        text += f"; k-NN accuracy on the images themselves {numbers['knn_images']:.0%}"
    return text + ")."
