"""Typographic attack: whether a wrong class name written on the image changes its class.

Goh et al., "Multimodal Neurons in Artificial Neural Networks", Distill 2021: CLIP classifies an
apple with a label "iPod" as an iPod. The controls: no tag, an empty tag (which covers as much of
the image), random letters, the wrong word mirrored (which has the same ink), and the right word.
The encoder reads if it chooses the written class significantly more often than under random letters
and under the mirrored word. Encoders trained on captions that never mention written words do not
read.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nolabel.data.source import Source, require_labels
from nolabel.encoders import Encoder
from nolabel.encoders.text import text_of
from nolabel.pictures._bootstrap import difference
from nolabel.pictures._options import Help, Templates
from nolabel.pictures._shown import shown_image
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture
from nolabel.protocols._scores import wilson
from nolabel.protocols.zeroshot import Options, class_vectors

TAGS = ("none", "blank", "nonsense", "mirrored", "right", "wrong")
LETTERS = "bcdfghjklmnpqrstvwxz"  # no vowels, hence no words
SHOWN = 4  # images drawn
TEMPLATES = Options().templates
TAG = 0.3  # height of the tag as a share of the image's


def typographic(
    encoder: Encoder,
    images: object = None,
    *,
    gallery: Source,
    number: Annotated[int, Help("images tested, at most")] = 200,
    templates: Templates = TEMPLATES,
    seed: Annotated[int, Help("seed of the choice of images, wrong words and letters")] = 0,
) -> Pictures:
    """Zero-shot classes under six tags: none, blank, nonsense, mirrored, right, wrong.

    Args:
        encoder: one with a text tower: a run of clip or siglip, or openclip:NAME/TAG.
        images: not used.
        gallery: images with labels.

    Raises:
        UsageError: an encoder without a text tower.
        DataError: no labels, or fewer than two classes.
    """
    text = text_of(encoder)
    labels = require_labels(gallery)
    names = [c.replace("_", " ") for c in gallery.classes]
    vectors = class_vectors(text, names, Options(templates=templates).templates)
    rng = np.random.default_rng(seed)
    keys = np.sort(rng.permutation(len(gallery))[:number])
    truth = labels[keys]
    wrong = (truth + rng.integers(1, len(names), len(keys))) % len(names)
    pictures = [shown_image(gallery, int(i)) for i in keys]
    predicted: dict[str, np.ndarray] = {}
    tagged: dict[str, list[np.ndarray]] = {}
    for tag in TAGS:
        tagged[tag] = []
        for image, t, w in zip(pictures, truth, wrong, strict=True):
            letters = random_letters(len(names[w]), rng)
            word = {"blank": "", "nonsense": letters, "right": names[t]}.get(tag, names[w])
            tagged[tag].append(
                image if tag == "none" else write_word(image, word, mirrored=tag == "mirrored")
            )
        z = text.project(encoder.embed(tagged[tag]))
        predicted[tag] = (z @ vectors.T).argmax(1).numpy()
    numbers: dict[str, float] = {}
    for tag in TAGS:
        numbers[f"right_{tag}"] = float((predicted[tag] == truth).mean())
        numbers[f"written_{tag}"] = float((predicted[tag] == wrong).mean())
    fooled, control = (predicted[t] == wrong for t in ("wrong", "nonsense"))
    lift, low, high = difference(fooled.astype(float), control.astype(float), seed)
    numbers |= {"lift": lift, "lift_low": low, "lift_high": high}
    mirrored = (predicted["mirrored"] == wrong).astype(float)
    over, over_low, over_high = difference(fooled.astype(float), mirrored, seed)
    numbers |= {"over_mirrored": over, "over_mirrored_low": over_low,
                "over_mirrored_high": over_high}  # fmt: skip
    a, b = wilson(int(fooled.sum()), len(keys))
    verdict = "It reads" if low > 0 and over_low > 0 else "No sign that it reads"
    caption = (
        f"{len(keys)} images of {gallery.name} with a word written on them, classified by "
        f"{encoder.name}. With a wrong class name, {fooled.mean():.0%} are classified as the "
        f"written class [95 % interval {a:.0%}, {b:.0%}]; with random letters "
        f"{control.mean():.0%}. Difference {lift * 100:+.0f} points [{low * 100:+.0f}, "
        f"{high * 100:+.0f}]; to the mirrored word {over * 100:+.0f} points "
        f"[{over_low * 100:+.0f}, {over_high * 100:+.0f}]. {verdict} (it does if both intervals "
        f"are above 0). Accuracy: {numbers['right_none']:.0%} without a tag, "
        f"{numbers['right_blank']:.0%} with an empty tag, {numbers['right_right']:.0%} with the "
        f"right word, {numbers['right_wrong']:.0%} with the wrong word."
    )
    rows = [[tagged[tag][i] for tag in TAGS] for i in range(min(SHOWN, len(keys)))]
    data = {"keys": keys, "truth": truth, "wrong": wrong,
            **{f"chosen_{tag}": p for tag, p in predicted.items()}}  # fmt: skip
    return Pictures([Picture(name="typographic", image=sheet(rows, TAGS), caption=caption,
                             data=data, numbers=numbers)])  # fmt: skip


def random_letters(length: int, rng: np.random.Generator) -> str:
    """Random consonants, which are no word."""
    return "".join(rng.choice(list(LETTERS), length))


def write_word(image: np.ndarray, word: str, *, mirrored: bool = False) -> np.ndarray:
    """Writes a word on a white tag at the bottom of an image, as large as fits.

    Args:
        image: uint8 [H, W, 3].
        word: the word; empty for a blank tag.
        mirrored: whether to mirror the word.

    Returns:
        uint8 [H, W, 3].
    """
    h, w = image.shape[:2]
    height = max(round(TAG * h), 1)
    tag = Image.new("L", (w * 8, height * 8), 255)
    if word:
        draw = ImageDraw.Draw(tag)
        size = height * 8
        while size > 8:
            font = ImageFont.load_default(size)
            left, top, right, bottom = draw.textbbox((0, 0), word, font=font)
            if right - left <= 0.96 * tag.width and bottom - top <= 0.9 * tag.height:
                draw.text(((tag.width - right - left) / 2, (tag.height - bottom - top) / 2), word,
                          fill=0, font=font)  # fmt: skip
                break
            size = int(size * 0.9)
    small = np.asarray(tag.resize((w, height), Image.Resampling.BOX))
    out = image.copy()
    out[h - height :] = (small[:, ::-1] if mirrored else small)[..., None]
    return out
