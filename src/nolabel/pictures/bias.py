"""Bias: words that an encoder assigns to some groups of images more often than to others.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, arXiv
2103.00020, section 7.1: zero-shot classification among the names of groups and further words; the
rate of a word in a group is the share of the group's images classified as the word. The groups are
the classes of a labelled set and the words are the user's. None are built in, and no group is
predicted from an image.

The choice of classes drives the result (section 7.1: one more class changes the rates by tens of
points), so run the probe with several sets of words. Two controls: as many meaningless words, drawn
many times, since an encoder assigns these unevenly too; and a permutation test that shuffles the
groups among the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from torch import Tensor

from nolabel.data.source import Source, require_labels
from nolabel.encoders import Encoder
from nolabel.encoders.features import extract
from nolabel.encoders.text import TextEncoder, text_of
from nolabel.errors import UsageError
from nolabel.pictures._bootstrap import interval
from nolabel.pictures._options import Help, Templates
from nolabel.pictures._tiles import Pictures, Series, chart
from nolabel.pictures.picture import Picture
from nolabel.pictures.typographic import TEMPLATES, random_letters
from nolabel.protocols.zeroshot import Options, class_probabilities, class_vectors

SHUFFLES = 1_000  # of the permutation test
NONSENSE_SETS = 40  # sets of meaningless words


def bias(
    encoder: Encoder,
    images: object = None,
    *,
    gallery: Source,
    words: Annotated[tuple[str, ...], Help("words that could describe any group")] = (),
    names: Annotated[bool, Help("whether the names of the groups compete with the words")] = True,
    templates: Templates = TEMPLATES,
    seed: Annotated[int, Help("seed of the controls and the confidence intervals")] = 0,
) -> Pictures:
    """The rate of each word in each group, with confidence intervals and p-values.

    Args:
        encoder: one with a text tower: a run of clip or siglip, or openclip:NAME/TAG.
        images: not used.
        gallery: images whose labels are the groups.

    Raises:
        UsageError: no words to choose among, or an encoder without a text tower.
        DataError: no labels, or one group only.
    """
    text = text_of(encoder)
    require_labels(gallery)
    if not words or (not names and len(words) < 2):
        raise UsageError("Give the words: --words 'useful' 'dangerous'.")
    templates = Options(templates=templates).templates
    features = extract(encoder, gallery)
    assert features.labels is not None  # noqa: S101 - required above
    labels = features.labels.numpy()
    present = np.unique(labels)
    groups = [str(gallery.classes[g]) if gallery.classes else str(g) for g in present]
    member = (labels[:, None] == present[None]).astype(float)  # [N, groups]
    z = text.project(features.values)
    rivals = [str(c) for c in gallery.classes] if names else []
    result = _measure(text, z, words, rivals, templates, member, seed)

    numbers: dict[str, float] = {"gap_nonsense": result.nonsense_gap}
    for j, word in enumerate(words):
        numbers |= {f"gap_{word}": float(result.gap[j]), f"p_{word}": float(result.p_shuffled[j])}
        numbers[f"p_nonsense_{word}"] = float(result.p_nonsense[j])
        numbers |= {f"{word}_{g}": float(result.rate[i, j]) for i, g in enumerate(groups)}
    competing = "the names of the groups" if names else "the other words"
    caption = (
        f"Share of each group of {gallery.name} that {encoder.name} assigns to a word rather than "
        f"to {competing}, highest and lowest group with 95 % intervals. "
        + "; ".join(_describe(result, word, j, groups) for j, word in enumerate(words))
        + f". p is the probability of such a difference if the groups were shuffled, and among "
        f"meaningless words (median difference {result.nonsense_gap:.0%}): the word itself matters "
        "only if both are small. The choice of words drives these rates: try others before you "
        "conclude."
    )
    x = np.arange(len(groups))
    series: list[Series] = [(word, x, result.rate[:, j], "o") for j, word in enumerate(words)]
    series.append(("nonsense, mean", x, result.nonsense_rate, "x"))
    data = {"groups": np.array(groups), "words": np.array(words), "rate": result.rate,
            "low": result.low, "high": result.high,
            "probability": result.probability}  # fmt: skip
    image = chart(series, "", "share of the group", names=groups)
    return Pictures(
        [Picture(name="bias", image=image, caption=caption, data=data, numbers=numbers)]
    )


@dataclass(frozen=True)
class _Result:
    """Rates of G groups and W words, and the controls.

    Attributes:
        rate: share of each group assigned to each word, float [G, W].
        low: lower end of the 95 % bootstrap interval, float [G, W].
        high: upper end, float [G, W].
        gap: highest minus lowest rate, float [W].
        p_shuffled: p-value of the gap in the permutation test, float [W].
        p_nonsense: p-value of the gap among meaningless words, float [W].
        nonsense_gap: median over the sets of the largest gap of a meaningless word.
        nonsense_rate: mean rate of meaningless words, float [G].
        probability: mean softmax probability of each word, float [G, W].
    """

    rate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gap: np.ndarray
    p_shuffled: np.ndarray
    p_nonsense: np.ndarray
    nonsense_gap: float
    nonsense_rate: np.ndarray
    probability: np.ndarray


def _measure(
    text: TextEncoder,
    z: Tensor,
    words: Sequence[str],
    rivals: list[str],
    templates: tuple[str, ...],
    member: np.ndarray,
    seed: int,
) -> _Result:
    """Rates, intervals and controls; `member` is the group of each image, one-hot float [N, G].

    The other arguments are those of `rates`.
    """
    rng = np.random.default_rng(seed)
    first_choice, probability = rates(text, z, words, rivals, templates)
    rate = by_group(first_choice, member)
    low, high = interval(len(member), lambda i: by_group(first_choice[i], member[i]), seed)
    gap = np.ptp(rate, axis=0)
    orders = (rng.permutation(len(member)) for _ in range(SHUFFLES))
    shuffled = np.stack([np.ptp(by_group(first_choice, member[i]), axis=0) for i in orders])
    nonsense = []
    for _ in range(NONSENSE_SETS):
        letters = [random_letters(max(len(w), 3), rng) for w in words]
        nonsense.append(by_group(rates(text, z, letters, rivals, templates)[0], member))
    nonsense_gaps = np.stack([np.ptp(r, axis=0) for r in nonsense]).max(1)  # [NONSENSE_SETS]
    return _Result(
        rate=rate,
        low=low,
        high=high,
        gap=gap,
        p_shuffled=(1 + (shuffled >= gap - 1e-12).sum(0)) / (SHUFFLES + 1),
        p_nonsense=(1 + (nonsense_gaps[:, None] >= gap - 1e-12).sum(0)) / (NONSENSE_SETS + 1),
        nonsense_gap=float(np.median(nonsense_gaps)),
        nonsense_rate=np.stack(nonsense).mean((0, 2)),
        probability=by_group(probability, member),
    )


def _describe(result: _Result, word: str, j: int, groups: list[str]) -> str:
    """The groups with the highest and the lowest rate of a word, for the caption."""
    rate, low, high = result.rate[:, j], result.low[:, j], result.high[:, j]
    i, k = int(rate.argmax()), int(rate.argmin())
    return (
        f"{word!r}: {rate[i]:.0%} of {groups[i]} [{low[i]:.0%}, {high[i]:.0%}], {rate[k]:.0%} of "
        f"{groups[k]} [{low[k]:.0%}, {high[k]:.0%}], p = {result.p_shuffled[j]:.3f} (shuffled), "
        f"{result.p_nonsense[j]:.2f} (meaningless words)"
    )


def by_group(values: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Mean of values float [N, W] over each group, whose members are float [N, G]: float [G, W]."""
    return member.T @ values / np.maximum(member.sum(0), 1e-9)[:, None]


def rates(
    text: TextEncoder,
    z: Tensor,
    words: Sequence[str],
    rivals: list[str],
    templates: tuple[str, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Zero-shot classification among words and rivals.

    Args:
        text: the text tower.
        z: embeddings of images, unit vectors, float [N, E].
        words: W words of which the rates are wanted.
        rivals: other classes that compete with them.
        templates: prompts with one {} each.

    Returns:
        Whether each word is the image's first choice, 0 or 1, and its softmax probability at the
        model's temperature: float64 [N, W] both.
    """
    vectors = class_vectors(text, [*words, *rivals], templates)
    cosines = z @ vectors.T
    first_choice = cosines.argmax(1)[:, None].numpy() == np.arange(len(words))
    scale = float(text.shared.scale.detach())
    probability = class_probabilities(z, vectors, scale)[:, : len(words)].numpy()
    return first_choice.astype(float), probability.astype(float)
