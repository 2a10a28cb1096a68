"""Counting: zero-shot classification of synthetic scenes by their number of creatures.

Scenes of one to four creatures are rendered, so that everything but the number varies freely. The
baseline is the covered area, which predicts the number without counting: the class whose mean area
is nearest. A second control: among scenes of equal number, the answer should not correlate with the
area.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from scipy.stats import spearmanr

from nolabel.data.creatures.scenes import MAX_CREATURES, Scenes
from nolabel.encoders import Encoder
from nolabel.encoders.text import text_of
from nolabel.errors import UsageError
from nolabel.pictures._options import Help
from nolabel.pictures._tiles import Pictures, enlarge, heat, sheet
from nolabel.pictures.picture import Picture
from nolabel.protocols._scores import wilson

SENTENCES = ("one creature", "two creatures", "three creatures", "four creatures")
SHOWN = 3  # scenes of each number


def counting(
    encoder: Encoder,
    *,
    number: Annotated[int, Help("number of scenes, a multiple of four")] = 400,
    sentences: Annotated[
        tuple[str, str, str, str], Help("prompts for one, two, three and four creatures")
    ] = SENTENCES,
    seed: Annotated[int, Help("seed of the scenes")] = 0,
) -> Pictures:
    """The accuracy of counting, and how often each number gets each answer.

    Args:
        encoder: one with a text tower: a run of clip or siglip on scenes, or openclip:NAME/TAG.

    Raises:
        UsageError: too few scenes, not four sentences, or an encoder without a text tower.
    """
    text = text_of(encoder)
    if number < 2 * MAX_CREATURES or number % MAX_CREATURES or len(sentences) != MAX_CREATURES:
        raise UsageError(
            f"Counting needs a multiple of {MAX_CREATURES} scenes, {2 * MAX_CREATURES} or more, "
            f"and {MAX_CREATURES} sentences; got {number} and {len(sentences)}."
        )
    source = Scenes("test", size=encoder.image_size, count=number, seed=seed)
    samples = [source.read(i) for i in range(number)]
    z = text.project(encoder.embed([s.image for s in samples]))
    answers = (z @ text.embed(list(sentences)).T).argmax(1).numpy()
    truth = source.labels
    covered = np.array([np.mean(s.mask) for s in samples if s.mask is not None])
    table = np.zeros((MAX_CREATURES, MAX_CREATURES))
    np.add.at(table, (truth, answers), 1)
    table /= table.sum(1, keepdims=True)
    by_area = leave_one_out_nearest_mean(covered, truth)
    right = answers == truth
    low, high = wilson(int(right.sum()), number)
    correlations = [
        _rank_correlation(covered[truth == k], answers[truth == k]) for k in range(MAX_CREATURES)
    ]
    numbers = {
        "accuracy": float(right.mean()), "low": float(low), "high": float(high),
        "chance": 1 / MAX_CREATURES, "by_area": float((by_area == truth).mean()),
        "off_by": float(np.abs(answers - truth).mean()),
        "area_within_number": float(np.mean(correlations)),
        **{f"right_{k + 1}": float(table[k, k]) for k in range(MAX_CREATURES)},
    }  # fmt: skip
    if numbers["low"] <= numbers["chance"]:
        verdict = "no sign that it counts"
    elif numbers["low"] <= numbers["by_area"]:
        verdict = "no more than the covered area gives away"
    else:
        verdict = "more than the covered area gives away"
    caption = (
        f"Scenes of one to four creatures, counted by {encoder.name}: {numbers['accuracy']:.0%} of "
        f"{number} are right [95 % interval {low:.0%}, {high:.0%}] (chance "
        f"{numbers['chance']:.0%}, predicted from the covered area {numbers['by_area']:.0%}): "
        f"{verdict}. Rank correlation of answer and area among scenes of equal number "
        f"{numbers['area_within_number']:+.2f} (0 is best). The last column shows the share of "
        "each answer."
    )
    rows = []
    for k in range(MAX_CREATURES):
        examples = np.flatnonzero(truth == k)[:SHOWN]
        rows.append([*(samples[i].image for i in examples), enlarge(_bars(table[k]))])
    titles = [*(f"scene {i + 1}" for i in range(SHOWN)), "answers 1 to 4"]
    data = {"truth": truth + 1, "answers": answers + 1, "covered": covered, "table": table}
    return Pictures([Picture(name="counting", image=sheet(rows, titles), caption=caption,
                             data=data, numbers=numbers)])  # fmt: skip


def leave_one_out_nearest_mean(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Predicts each row's label as that of the nearest class mean, computed without the row.

    Args:
        values: float [N].
        labels: int [N].

    Returns:
        Predicted labels, int [N].
    """
    classes = np.unique(labels)
    sums = np.array([values[labels == k].sum() for k in classes])
    counts = np.array([(labels == k).sum() for k in classes])
    member = labels[:, None] == classes[None]
    means = (sums - member * values[:, None]) / np.maximum(counts - member, 1)
    return classes[np.abs(values[:, None] - means).argmin(1)]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of float [N]; 0 if one of them is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def _bars(shares: np.ndarray) -> np.ndarray:
    """A bar chart of shares float [4] as a heat map, uint8 [32, 32, 3]."""
    side = 32
    level = (np.arange(side)[::-1, None] + 0.5) / side
    filled = np.repeat(shares, side // len(shares))[None] > level
    return heat(np.where(filled, 0.8, 0.05))
