"""An image from a sentence: what the encoder takes the words to look like.

After Galatolo et al., "Generating images from caption and vice versa via CLIP-Guided Generative
Latent Space Search", 2021, and its kin: an image in Fourier space (`Fourier`) climbs the likeness
of its random cut-outs to the sentence, by the spherical distance 2 arcsin^2(|a - b| / 2). Without
the cut-outs the same search finds noise that only this network takes for the words.
"""

from __future__ import annotations

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
    Each,
    Fourier,
    colours_of,
    crops,
    normalised,
    pixels_of,
    search,
    warped,
)
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture

OTHERS = 99  # sentences that the right one competes with, at most
COLOURS = 1_000  # images whose colours are taken


def paint(
    encoder: Encoder,
    images: object = None,
    *,
    gallery: Source,
    words: tuple[str, ...] = (),
    steps: int = 300,
    cutouts: int = 16,
    lr: float = 0.05,
    judge: str = "",
    seed: int = 0,
    each: Each | None = None,
) -> Pictures:
    """An image for each sentence, beside the image of a set that suits it best.

    Args:
        encoder: one with a text tower: a run of clip or siglip, or openclip:NAME/TAG.
        images: not used.
        gallery: a set, for its colours, its best images, and its texts or class names as wrong
            answers.
        words: the sentences.
        steps: of the search.
        cutouts: random cut-outs a step; 0 looks at the whole image alone, which deceives.
        lr: of Adam.
        judge: another ENC with a text tower, trained apart, which is not as easily deceived.
        seed: of the start and of the cut-outs.
        each: called with previews; True ends the search.

    Raises:
        UsageError: no sentence, no steps, or an encoder or a judge without a text tower.
    """
    if not words or not all(w.strip() for w in words) or steps < 1 or cutouts < 0:
        raise UsageError(
            "Say what to paint, in one step or more: --words 'a red snail' 'a blue fish'."
        )
    text = text_of(encoder)
    other = None
    if judge:
        other = load(judge)
        text_of(other)  # refused before the search
    target = text.embed(list(words)).to(encoder.device).clone()
    found = extract(encoder, gallery)
    fit = target.cpu() @ text.project(found.values).T  # [sentences, images]
    some = found.keys.numpy()[:COLOURS]
    pixels = np.concatenate([_few(gallery.read(int(i)).image) for i in some])
    picture = Fourier(len(words), encoder.image_size, colours_of(pixels), seed=seed)
    picture.to(encoder.device)
    chance = torch.Generator().manual_seed(seed)

    def likeness(y: Tensor) -> Tensor:
        """Unit vectors [N, E] of images from 0 to 1, with gradient."""
        h = encoder.backbone(normalised(y, encoder))
        return F.normalize(text.shared.image(h.float()), dim=-1)

    def loss(step: int) -> list[Tensor]:
        y = picture()
        if cutouts:
            y = warped(crops(y, chance, cutouts, (0.6, 1.0)), chance, turn=15.0)
            noise = torch.randn(y.shape, generator=chance).to(y.device)
            y = y + 0.05 * noise
        with encoder.evaluating(gradients=True):
            z = likeness(y).unflatten(0, (-1, len(words)))  # [cut-outs, sentences, E]
        apart = (z - target).norm(dim=-1).div(2).clamp(max=1 - 1e-6)
        return [2 * apart.asin().square().mean(0).sum()]

    def draw() -> np.ndarray:
        return pixels_of(picture())

    hunt = search("painting", [picture.spectrum], loss, draw, steps=steps, lr=lr, each=each)
    with encoder.evaluating():
        z = likeness(picture()).float().cpu()
    made = hunt.shots[-1][1]
    best = fit.argmax(1).numpy()
    closest = [gallery.read(int(found.keys[i])).image for i in best]
    rows = [[*(shot[i] for _, shot in hunt.shots), closest[i]] for i in range(len(words))]
    titles = [*(f"{step:,} steps" for step, _ in hunt.shots), "best of the set"]
    cosines = (z * target.cpu()).sum(1)
    numbers = {"cosine": float(cosines.mean()), "cosine_best": float(fit.amax(1).mean())}
    caption = (
        f"{', '.join(repr(w) for w in words)} by {encoder.name} ({hunt.summary}); cosine "
        f"{numbers['cosine']:.2f}, of the best images of {gallery.name} "
        f"{numbers['cosine_best']:.2f}"
    )
    wrong = others(gallery, words)
    if wrong:
        numbers["chance"] = 1 / (len(wrong) + 1)
        numbers["recognised"] = recognised(text, z, words, wrong)
        caption += (
            f". Of {len(wrong) + 1} sentences it takes {numbers['recognised']:.0%} of the images "
            f"for the right one (chance {numbers['chance']:.0%})"
        )
        if other is not None:
            theirs = text_of(other)
            judged = theirs.project(other.embed(list(made)))
            numbers["recognised_by_judge"] = recognised(theirs, judged, words, wrong)
            real = theirs.project(other.embed(closest))
            numbers["best_recognised_by_judge"] = recognised(theirs, real, words, wrong)
            caption += (
                f"; the judge {judge} {numbers['recognised_by_judge']:.0%} (of the best images "
                f"{numbers['best_recognised_by_judge']:.0%})"
            )
    data = {"images": made, "cosines": cosines.numpy()}
    return Pictures([Picture(name="paint", image=sheet(rows, titles), caption=caption + ".",
                             data=data, numbers=numbers)])  # fmt: skip


def others(gallery: Source, words: tuple[str, ...]) -> list[str]:
    """Sentences of a set, or names of its classes, that are none of the words."""
    if has_texts(gallery):
        some = np.linspace(0, len(gallery) - 1, min(len(gallery), 4 * OTHERS)).astype(int)
        found = [t for t in texts_of(gallery, some) if t]
    else:
        found = [str(c) for c in gallery.classes or ()]
    return [t for t in dict.fromkeys(found) if t not in words][:OTHERS]


def recognised(text: TextEncoder, z: Tensor, words: tuple[str, ...], wrong: list[str]) -> float:
    """Share of images, unit vectors [N, E], that are nearer to their own of N sentences than to any
    wrong one."""
    own = (z * text.embed(list(words))).sum(1)
    return float((own > (z @ text.embed(wrong).T).amax(1)).float().mean())


def _few(image: np.ndarray) -> np.ndarray:
    """Some pixels of an image, uint8 [M, C]."""
    step = max(min(image.shape[:2]) // 16, 1)
    return image[::step, ::step].reshape(-1, image.shape[-1])
