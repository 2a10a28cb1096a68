"""Winoground on synthetic scenes: pairs of images whose captions contain the same words.

Thrush et al., "Winoground: Probing Vision and Language Models for Visio-Linguistic
Compositionality", 2022, arXiv 2204.03162. A pair has two images and two captions, each of which
describes one of the images. Text score: each image is more similar to its own caption. Image score:
each caption is more similar to its own image. Group score: both.

Three kinds of pairs of rendered scenes with two creatures: one creature replaced by another kind (a
control: the words differ), the colours exchanged, left and right exchanged. A bag-of-words text
tower gives the two captions of the last two kinds the same embedding, so its scores are 0 there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
import torch

from nolabel.data.creatures.world import KINDS, Scene, draw_scene, render
from nolabel.encoders import Encoder
from nolabel.encoders.text import text_of
from nolabel.errors import UsageError
from nolabel.pictures._options import Help
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture
from nolabel.protocols._scores import wilson

PAIRS = ("kind", "colour", "side")
CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
SHOWN = 2  # pairs of each kind


def relations(
    encoder: Encoder,
    *,
    number: Annotated[int, Help("pairs of each kind")] = 200,
    seed: Annotated[int, Help("seed of the scenes")] = 0,
) -> Pictures:
    """Winoground's three scores for three kinds of pairs, with confidence intervals.

    Args:
        encoder: one with a text tower: a run of clip or siglip on scenes, or openclip:NAME/TAG.

    Raises:
        UsageError: fewer than one pair, or an encoder without a text tower.
    """
    text = text_of(encoder)
    if number < 1:
        raise UsageError(f"Give at least one pair, got {number}.")
    numbers: dict[str, float] = {}
    data: dict[str, np.ndarray] = {}
    rows, parts = [], []
    for kind, (images, captions) in scene_pairs(number, encoder.image_size, seed).items():
        z = text.project(encoder.embed(images)).unflatten(0, (-1, 2))
        t = text.embed(captions).unflatten(0, (-1, 2))
        cosines = torch.einsum("nie,nje->nij", z, t).numpy()  # [pairs, images, captions]
        right = winoground_scores(cosines)
        for name, hits in right.items():
            low, high = wilson(int(hits.sum()), number)
            numbers |= {f"{name}_{kind}": float(hits.mean()), f"{name}_{kind}_low": float(low),
                        f"{name}_{kind}_high": float(high)}  # fmt: skip
        numbers[f"captions_apart_{kind}"] = float(1 - (t[:, 0] * t[:, 1]).sum(1).mean())
        data[f"cosines_{kind}"] = cosines
        parts.append(
            f"{kind}: text {numbers[f'text_{kind}']:.0%}, image {numbers[f'image_{kind}']:.0%}, "
            f"group {numbers[f'group_{kind}']:.0%} [{numbers[f'group_{kind}_low']:.0%}, "
            f"{numbers[f'group_{kind}_high']:.0%}]"
        )
        rows += [[*images[2 * i : 2 * i + 2]] for i in range(min(SHOWN, number))]
    caption = (
        f"Winoground scores of {encoder.name} on {number} pairs of scenes for each kind of change "
        "(higher is better): "
        + "; ".join(parts)
        + ". Chance: text 25%, image 25%, group 17%. A model that ignores the order of words "
        "scores 0% for colour and side."
    )
    return Pictures([Picture(name="relations", image=sheet(rows, ("one", "other")),
                             caption=caption, data=data, numbers=numbers)])  # fmt: skip


def winoground_scores(cosines: np.ndarray) -> dict[str, np.ndarray]:
    """Winoground's scores of pairs.

    Args:
        cosines: float [pairs, 2 images, 2 captions].

    Returns:
        "text", "image" and "group", bool [pairs] each; a tie is wrong.
    """
    own = cosines[:, [0, 1], [0, 1]]
    text = np.all(own > cosines[:, [0, 1], [1, 0]], axis=1)
    image = np.all(own > cosines[:, [1, 0], [0, 1]], axis=1)
    return {"text": text, "image": image, "group": np.logical_and(text, image)}


def scene_pairs(
    number: int, size: int, seed: int = 0
) -> dict[str, tuple[list[np.ndarray], list[str]]]:
    """Renders pairs of scenes.

    Args:
        number: pairs of each kind.
        size: side of the images in pixels.
        seed: of the scenes.

    Returns:
        For each kind of `PAIRS` the images, uint8 [size, size, 3], and their captions, 2 * number
        each; those of a pair follow each other.
    """
    out: dict[str, tuple[list[np.ndarray], list[str]]] = {kind: ([], []) for kind in PAIRS}
    index = 0
    while len(out["kind"][0]) < 2 * number:
        scene = draw_scene(index, split="test", seed=seed, creatures=2)
        index += 1
        one, two = scene.creatures
        beside = abs(two["x"] - one["x"]) > 1.5 * abs(two["y"] - one["y"])
        if not beside or one["kind"] == two["kind"] or one["colour"] == two["colour"]:
            continue
        image = render(scene, size).image
        for kind, other in (
            ("kind", _another_kind(scene, index)), ("colour", _colours_exchanged(scene)),
        ):  # fmt: skip
            out[kind][0].extend([image, render(other, size).image])
            out[kind][1].extend([scene.caption, other.caption])
        out["side"][0].extend([image, np.ascontiguousarray(image[:, ::-1])])
        out["side"][1].extend([scene.caption, _mirrored(scene).caption])
    return out


def _another_kind(scene: Scene, index: int) -> Scene:
    """The scene with its first creature replaced by one of a third kind."""
    creatures = scene.creatures.copy()
    free = [k for k in range(len(KINDS)) if k not in creatures["kind"]]
    creatures["kind"][0] = free[index % len(free)]
    return replace(scene, creatures=creatures)


def _colours_exchanged(scene: Scene) -> Scene:
    """The scene whose two creatures have exchanged their colours."""
    creatures = scene.creatures.copy()
    for field in ("colour", "tones"):
        creatures[field] = creatures[field][::-1].copy()
    return replace(scene, creatures=creatures)


def _mirrored(scene: Scene) -> Scene:
    """The mirrored scene, for its caption: the same words in another order."""
    creatures = scene.creatures[::-1].copy()
    creatures["x"] = 1 - creatures["x"]
    return replace(scene, creatures=creatures)
