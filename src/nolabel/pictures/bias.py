"""Which words an encoder takes for some groups of images more than for others.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
section 7.1: classes that describe groups compete with words that describe none of them; the share
of each group's images that goes to a word is its rate. The groups are the classes of a labelled
set and the words are the user's: none are shipped, and no group is guessed from an image.

The design of the classes drives the result (section 7.1: one more class moves the rates by tens of
points), so the probe is to be run with several sets of words. Two controls stand beside it: words
without meaning in the same number, many times, since an encoder gives these to some groups more
than to others too; and groups shuffled among the images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from nolabel.data.source import Source, require_labels
from nolabel.encoders import Encoder
from nolabel.encoders.features import extract
from nolabel.encoders.text import TextEncoder, text_of
from nolabel.errors import UsageError
from nolabel.pictures._bootstrap import interval
from nolabel.pictures._tiles import Pictures, chart
from nolabel.pictures.picture import Picture
from nolabel.pictures.typographic import meaningless
from nolabel.protocols.zeroshot import Options, class_vectors

SHUFFLES = 1_000
EMPTY = 40  # sets of words without meaning


def bias(
    encoder: Encoder,
    images: object = None,
    *,
    gallery: Source,
    words: tuple[str, ...] = (),
    names: bool = True,
    templates: tuple[str, ...] = Options().templates,
    seed: int = 0,
) -> Pictures:
    """The rate of each word in each group, with intervals.

    Args:
        encoder: one with a text tower: a run of clip or siglip, or openclip:NAME/TAG.
        images: not used.
        gallery: images whose labels are the groups.
        words: what may be said of any group.
        names: whether the groups' own names compete with the words.
        templates: texts with one {} for a word.
        seed: of the controls and intervals.

    Raises:
        UsageError: no words to choose among, or an encoder without a text tower.
        DataError: no labels, or one group only.
    """
    text = text_of(encoder)
    require_labels(gallery)
    if not words or (not names and len(words) < 2):
        raise UsageError("Give the words: --words 'useful' 'dangerous'.")
    templates = Options(templates=templates).templates
    found = extract(encoder, gallery)
    assert found.labels is not None  # noqa: S101 - required above
    groups = found.labels.numpy()
    there = np.unique(groups)
    own = [str(gallery.classes[g]) for g in there] if gallery.classes else [str(g) for g in there]
    z = text.project(found.values)
    rivals = [str(c) for c in gallery.classes] if names else []
    chance = np.random.default_rng(seed)
    share, odds = rates(text, z, words, rivals, templates)
    inside = (groups[:, None] == there[None]).astype(float)  # [N, groups]

    rate = by_group(share, inside)
    low, high = interval(len(groups), lambda i: by_group(share[i], inside[i]), seed)
    gap = np.ptp(rate, axis=0)
    orders = (chance.permutation(len(groups)) for _ in range(SHUFFLES))
    shuffled = np.stack([np.ptp(by_group(share, inside[i]), axis=0) for i in orders])
    p = (1 + (shuffled >= gap - 1e-12).sum(0)) / (SHUFFLES + 1)
    controls = []
    for _ in range(EMPTY):
        empty = [meaningless(max(len(w), 3), chance) for w in words]
        controls.append(by_group(rates(text, z, empty, rivals, templates)[0], inside))
    empty_gap = np.stack([np.ptp(c, axis=0) for c in controls]).max(1)  # [EMPTY]
    usual = float(np.median(empty_gap))
    q = (1 + (empty_gap[:, None] >= gap - 1e-12).sum(0)) / (EMPTY + 1)
    numbers: dict[str, float] = {"gap_nonsense": usual}
    for j, word in enumerate(words):
        numbers |= {f"gap_{word}": float(gap[j]), f"p_{word}": float(p[j])}
        numbers[f"p_nonsense_{word}"] = float(q[j])
        numbers |= {f"{word}_{g}": float(rate[i, j]) for i, g in enumerate(own)}
    parts = []
    for j, word in enumerate(words):
        most, least = int(rate[:, j].argmax()), int(rate[:, j].argmin())
        parts.append(
            f"{word!r}: {rate[most, j]:.0%} of {own[most]} [{low[most, j]:.0%}, "
            f"{high[most, j]:.0%}], {rate[least, j]:.0%} of {own[least]} [{low[least, j]:.0%}, "
            f"{high[least, j]:.0%}], p = {p[j]:.3f} and {q[j]:.2f}"
        )
    caption = (
        f"Share of each group of {gallery.name} that {encoder.name} gives to a word, with "
        f"{'the names of the groups' if names else 'the other words'} to choose from. "
        + "; ".join(parts)
        + f". Meaningless words differ by {usual:.0%} between groups; p is the chance of such "
        "a gap if groups were shuffled, and among meaningless words: only where both are small "
        "does the word itself matter. The choice of classes drives these rates: try others "
        "before you conclude."
    )
    across = np.arange(len(own))
    series = [(word, across, rate[:, j], "o") for j, word in enumerate(words)]
    series.append(("nonsense, mean", across, np.stack(controls).mean((0, 2)), "x"))
    data = {"groups": np.array(own), "words": np.array(words), "rate": rate, "low": low,
            "high": high, "probability": by_group(odds, inside)}  # fmt: skip
    image = chart(series, "", "share of the group", names=own)
    return Pictures(
        [Picture(name="bias", image=image, caption=caption, data=data, numbers=numbers)]
    )


def by_group(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Means [groups, words] of values [N, words] over the members float [N, groups] of groups."""
    return inside.T @ values / np.maximum(inside.sum(0), 1e-9)[:, None]


def rates(
    text: TextEncoder,
    z: Tensor,
    words: Sequence[str],
    rivals: list[str],
    templates: tuple[str, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each word is an image's first choice, and its probability at the encoder's own scale
    of similarities: float [N, words] both.

    Args:
        text: the text tower.
        z: images, unit vectors [N, E].
        words: of which the rates are wanted.
        rivals: other classes to choose from.
        templates: texts with one {} each.
    """
    vectors = class_vectors(text, [*words, *rivals], templates)
    cosines = z @ vectors.T
    first = cosines.argmax(1)[:, None].numpy() == np.arange(len(words))
    odds = (cosines * float(text.shared.scale.detach())).softmax(1)[:, : len(words)].numpy()
    return first.astype(float), odds.astype(float)
