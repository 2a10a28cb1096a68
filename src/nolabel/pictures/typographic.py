"""Does it read? A wrong word written on the image, and whether the encoder believes it.

Goh et al., "Multimodal Neurons in Artificial Neural Networks", Distill 2021: networks that learnt
from captions take an apple with a label "iPod" for an iPod. A tag covers some of the image
whatever stands on it, so the wrong word is compared with an empty tag, with letters that mean
nothing, with the wrong word mirrored, and with the right word. What counts is how much more often
the written class is chosen than under meaningless letters, and than under the mirrored word, which
has the same ink; networks whose captions never told what is written do not read, and the probe says
so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nolabel.data.source import Source, require_labels
from nolabel.encoders import Encoder
from nolabel.encoders.text import text_of
from nolabel.pictures._bootstrap import difference
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture
from nolabel.protocols._scores import wilson
from nolabel.protocols.zeroshot import Options, class_vectors

TAGS = ("none", "blank", "nonsense", "mirrored", "right", "wrong")
LETTERS = "bcdfghjklmnpqrstvwxz"  # no vowels, so no words
SHOWN = 4
TAG = 0.3  # of the image's height


def typographic(
    encoder: Encoder,
    images: object = None,
    *,
    gallery: Source,
    number: int = 200,
    templates: tuple[str, ...] = Options().templates,
    seed: int = 0,
) -> Pictures:
    """Class decisions under six tags: none, blank, nonsense, mirrored, right, wrong.

    Args:
        encoder: one with a text tower: a run of clip or siglip, or openclip:NAME/TAG.
        images: not used.
        gallery: images with labels.
        number: images that are tagged, at most.
        templates: texts with one {} for the name of the class.
        seed: of the choice of images, wrong words and letters.

    Raises:
        UsageError: an encoder without a text tower.
        DataError: no labels, or fewer than two classes.
    """
    text = text_of(encoder)
    labels = require_labels(gallery)
    names = [c.replace("_", " ") for c in gallery.classes]
    vectors = class_vectors(text, names, Options(templates=templates).templates)
    chance = np.random.default_rng(seed)
    some = np.sort(chance.permutation(len(gallery))[:number])
    truth = labels[some]
    wrong = (truth + chance.integers(1, len(names), len(some))) % len(names)
    pictures = [gallery.read(int(i)).image for i in some]
    chosen: dict[str, np.ndarray] = {}
    tagged: dict[str, list[np.ndarray]] = {}
    for tag in TAGS:
        tagged[tag] = []
        for image, t, w in zip(pictures, truth, wrong, strict=True):
            letters = meaningless(len(names[w]), chance)
            word = {"blank": "", "nonsense": letters, "right": names[t]}.get(tag, names[w])
            tagged[tag].append(
                image if tag == "none" else write(image, word, mirrored=tag == "mirrored")
            )
        z = text.project(encoder.embed(tagged[tag]))
        chosen[tag] = (z @ vectors.T).argmax(1).numpy()
    numbers: dict[str, float] = {}
    for tag in TAGS:
        numbers[f"right_{tag}"] = float((chosen[tag] == truth).mean())
        numbers[f"written_{tag}"] = float((chosen[tag] == wrong).mean())
    fooled, control = (chosen[t] == wrong for t in ("wrong", "nonsense"))
    lift, low, high = difference(fooled.astype(float), control.astype(float), seed)
    numbers |= {"lift": lift, "lift_low": low, "lift_high": high}
    mirrored = (chosen["mirrored"] == wrong).astype(float)
    over, least, most = difference(fooled.astype(float), mirrored, seed)
    numbers |= {"over_mirrored": over, "over_mirrored_low": least, "over_mirrored_high": most}
    a, b = wilson(int(fooled.sum()), len(some))
    verdict = "It reads" if low > 0 and least > 0 else "No sign that it reads"
    caption = (
        f"{len(some)} images of {gallery.name} with a word on them, by {encoder.name}. The wrong "
        f"word is believed for {fooled.mean():.0%} [{a:.0%}, {b:.0%}], meaningless letters give "
        f"the same class for {control.mean():.0%}: {lift * 100:+.0f} points [{low * 100:+.0f}, "
        f"{high * 100:+.0f}]; above the mirrored word {over * 100:+.0f} [{least * 100:+.0f}, "
        f"{most * 100:+.0f}]. {verdict}. Right are {numbers['right_none']:.0%} without a tag, "
        f"{numbers['right_blank']:.0%} with an empty one, {numbers['right_right']:.0%} with the "
        f"right word, {numbers['right_wrong']:.0%} with the wrong one."
    )
    rows = [[tagged[tag][i] for tag in TAGS] for i in range(min(SHOWN, len(some)))]
    data = {"keys": some, "truth": truth, "wrong": wrong,
            **{f"chosen_{tag}": c for tag, c in chosen.items()}}  # fmt: skip
    return Pictures([Picture(name="typographic", image=sheet(rows, TAGS), caption=caption,
                             data=data, numbers=numbers)])  # fmt: skip


def meaningless(length: int, chance: np.random.Generator) -> str:
    """Letters that are no word."""
    return "".join(chance.choice(list(LETTERS), length))


def write(image: np.ndarray, word: str, *, mirrored: bool = False) -> np.ndarray:
    """The image [H, W, 3] with a white tag across its foot, and on it a word as wide as fits."""
    h, w = image.shape[:2]
    tall = max(round(TAG * h), 1)
    tag = Image.new("L", (w * 8, tall * 8), 255)
    if word:
        draw = ImageDraw.Draw(tag)
        size = tall * 8
        while size > 8:
            font: Any = ImageFont.load_default(size)
            left, top, right, bottom = draw.textbbox((0, 0), word, font=font)
            if right - left <= 0.96 * tag.width and bottom - top <= 0.9 * tag.height:
                draw.text(((tag.width - right - left) / 2, (tag.height - bottom - top) / 2), word,
                          fill=0, font=font)  # fmt: skip
                break
            size = int(size * 0.9)
    small = np.asarray(tag.resize((w, tall), Image.Resampling.BOX))
    out = image.copy()
    out[h - tall :] = (small[:, ::-1] if mirrored else small)[..., None]
    return out
