"""Text-to-image by optimisation: the image whose embedding is nearest to that of a sentence.

After Galatolo et al., "Generating images from caption and vice versa via CLIP-Guided Generative
Latent Space Search", 2021, arXiv 2102.01645: an image, parametrised by its Fourier spectrum
(`Fourier`), is optimised so that random crops of it approach the sentence in the spherical distance
2 arcsin^2(|a - b| / 2) of the embeddings. Without crops the same optimisation finds adversarial
noise.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nolabel.data.source import Source
from nolabel.data.text.captions import has_texts, texts_of
from nolabel.encoders import Encoder, load
from nolabel.encoders.features import extract
from nolabel.encoders.text import TextEncoder, text_of
from nolabel.errors import UsageError
from nolabel.pictures._optimise import (
    Fourier,
    OnPreview,
    Optimisation,
    colour_mixing,
    normalise,
    optimise,
    pixels_of,
    random_crops,
    random_warp,
)
from nolabel.pictures._options import Help
from nolabel.pictures._shown import shown_image
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture

MAX_WRONG = 99  # sentences that compete with the right one, at most
COLOUR_IMAGES = 1_000  # images of the set that give the colour statistics, at most


def paint(
    encoder: Encoder,
    images: object = None,
    *,
    gallery: Source,
    words: Annotated[tuple[str, ...], Help("the sentences, an image for each")] = (),
    steps: Annotated[int, Help("steps of the optimisation")] = 300,
    cutouts: Annotated[
        int, Help("random crops a step; 0: only the whole image, which gives adversarial noise")
    ] = 16,
    lr: Annotated[float, Help("learning rate of Adam")] = 0.05,
    evaluator: Annotated[
        str, Help("another ENC with a text tower, for which the images are not optimised")
    ] = "",
    seed: Annotated[int, Help("seed of the initial images and the crops")] = 0,
    on_preview: OnPreview | None = None,
) -> Pictures:
    """An image optimised for each sentence, beside the most similar image of a set.

    Args:
        encoder: one with a text tower: a run of clip or siglip, or openclip:NAME/TAG.
        images: not used.
        gallery: a set, for its colour statistics, its most similar images, and its texts or class
            names as wrong answers.
        on_preview: called with previews; True stops early.

    Raises:
        UsageError: no sentence, no steps, or an encoder or evaluator without a text tower.
    """
    if not words or not all(w.strip() for w in words) or steps < 1 or cutouts < 0:
        raise UsageError(
            "Give one sentence or more, and one step or more: --words 'a red snail' 'a blue fish'."
        )
    text = text_of(encoder)
    second = load(evaluator) if evaluator else None
    if second is not None:
        text_of(second)  # an unsuitable evaluator is refused before the optimisation
    target = text.embed(list(words)).to(encoder.device).clone()
    features = extract(encoder, gallery)
    similarity = target.cpu() @ text.project(features.values).T  # [sentences, images]
    nearest = similarity.argmax(1).numpy()
    closest = [shown_image(gallery, int(features.keys[i])) for i in nearest]
    keys = features.keys.numpy()[:COLOUR_IMAGES]
    pixels = np.concatenate([_sparse_pixels(gallery.read(int(i)).image) for i in keys])
    found, z = _optimise_images(
        encoder, text, target, colour_mixing(pixels), steps, cutouts, lr, seed, on_preview
    )
    made = found.previews[-1][1]
    rows = [[*(shot[i] for _, shot in found.previews), closest[i]] for i in range(len(words))]
    titles = [*(f"{step:,} steps" for step, _ in found.previews), "best of the set"]
    cosines = (z * target.cpu()).sum(1)
    numbers = {"cosine": float(cosines.mean()), "cosine_best": float(similarity.amax(1).mean())}
    caption = (
        f"Images optimised for {', '.join(repr(w) for w in words)} by {encoder.name} "
        f"({found.summary}). Cosine with the sentence {numbers['cosine']:.2f} (most similar images "
        f"of {gallery.name} {numbers['cosine_best']:.2f})"
    )
    wrong = wrong_sentences(gallery, words)
    if wrong:
        numbers["chance"] = 1 / (len(wrong) + 1)
        numbers["recognised"] = recognised(text, z, words, wrong)
        caption += (
            f". {numbers['recognised']:.0%} of the images are nearest to their own of "
            f"{len(wrong) + 1} sentences (higher is better; chance {numbers['chance']:.0%})"
        )
        if second is not None:
            other_text = text_of(second)
            for name, pictures in (("", list(made)), ("best_", closest)):
                embedded = other_text.project(second.embed(pictures))
                key = f"{name}recognised_by_evaluator"
                numbers[key] = recognised(other_text, embedded, words, wrong)
            caption += (
                f"; by {evaluator} {numbers['recognised_by_evaluator']:.0%} (most similar images "
                f"{numbers['best_recognised_by_evaluator']:.0%})"
            )
    data = {"images": made, "cosines": cosines.numpy()}
    return Pictures([Picture(name="paint", image=sheet(rows, titles), caption=caption + ".",
                             data=data, numbers=numbers)])  # fmt: skip


def _optimise_images(
    encoder: Encoder,
    text: TextEncoder,
    target: Tensor,
    colours: Tensor,
    steps: int,
    cutouts: int,
    lr: float,
    seed: int,
    on_preview: OnPreview | None,
) -> tuple[Optimisation, Tensor]:
    """Optimises an image for each target.

    Args:
        encoder: the image encoder.
        text: its text tower, whose projection of images is used.
        target: embeddings of K sentences, unit vectors, float [K, E].
        colours: float [C, C] (`colour_mixing`).
        steps: number of steps.
        cutouts: random crops a step; 0: the whole image.
        lr: of Adam.
        seed: of the initial images and the crops.
        on_preview: as in `paint`.

    Returns:
        The optimisation, and the embeddings of the final images, unit vectors, float32 [K, E].
    """
    fourier = Fourier(len(target), encoder.image_size, colours, seed=seed)
    fourier.to(encoder.device)
    generator = torch.Generator().manual_seed(seed)

    def embed(y: Tensor) -> Tensor:
        """Unit vectors [N, E] of images in 0..1, differentiable."""
        h = encoder.backbone(normalise(y, encoder))
        return F.normalize(text.shared.image(h.float()), dim=-1)

    def loss(step: int) -> list[Tensor]:
        y = fourier()
        if cutouts:
            y = random_crops(y, generator, cutouts, (0.6, 1.0))
            y = random_warp(y, generator, turn=15.0)
            noise = torch.randn(y.shape, generator=generator).to(y.device)
            y = y + 0.05 * noise
        with encoder.evaluating(gradients=True):
            z = embed(y).unflatten(0, (-1, len(target)))  # [crops, K, E]
        half_chord = (z - target).norm(dim=-1).div(2).clamp(max=1 - 1e-6)
        return [2 * half_chord.asin().square().mean(0).sum()]

    found = optimise("painting", [fourier.spectrum], loss, lambda: pixels_of(fourier()),
                     steps=steps, lr=lr, on_preview=on_preview)  # fmt: skip
    with encoder.evaluating():
        return found, embed(fourier()).float().cpu()


def wrong_sentences(gallery: Source, words: tuple[str, ...]) -> list[str]:
    """Distinct texts of a set, or else its class names, that are none of the words."""
    if has_texts(gallery):
        keys = np.linspace(0, len(gallery) - 1, min(len(gallery), 4 * MAX_WRONG)).astype(int)
        candidates = [t for t in texts_of(gallery, keys) if t]
    else:
        candidates = [str(c) for c in gallery.classes or ()]
    return [t for t in dict.fromkeys(candidates) if t not in words][:MAX_WRONG]


def recognised(text: TextEncoder, z: Tensor, words: tuple[str, ...], wrong: list[str]) -> float:
    """Share of images that are nearer to their own sentence than to any wrong one.

    Args:
        text: the text tower.
        z: embeddings of an image for each sentence, unit vectors, float [N, E].
        words: N sentences.
        wrong: sentences that are wrong for all images.
    """
    right = (z * text.embed(list(words))).sum(1)
    return float((right > (z @ text.embed(wrong).T).amax(1)).float().mean())


def _sparse_pixels(image: np.ndarray) -> np.ndarray:
    """Pixels on a grid of about 16 x 16, uint8 [M, C], of an image [H, W, C]."""
    step = max(min(image.shape[:2]) // 16, 1)
    return image[::step, ::step].reshape(-1, image.shape[-1])
