"""Can it count? Scenes of one to four creatures, and a sentence for each number.

Scenes are drawn, so that everything but the number can vary freely. What gives numbers away
without counting is measured beside it: the share of the image that creatures cover. And among
scenes of the same number, answers should not grow with that share.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from nolabel.data.creatures.scenes import MOST, Scenes
from nolabel.encoders import Encoder
from nolabel.encoders.text import text_of
from nolabel.errors import UsageError
from nolabel.pictures._tiles import Pictures, enlarge, heat, sheet
from nolabel.pictures.picture import Picture
from nolabel.protocols._scores import wilson

SENTENCES = ("one creature", "two creatures", "three creatures", "four creatures")
SHOWN = 3  # scenes of each number


def counting(
    encoder: Encoder,
    *,
    number: int = 400,
    sentences: tuple[str, str, str, str] = SENTENCES,
    seed: int = 0,
) -> Pictures:
    """How many creatures an encoder takes each scene to show.

    Args:
        encoder: one with a text tower: a run of clip or siglip on scenes, or openclip:NAME/TAG.
        number: scenes; a multiple of four.
        sentences: for one, two, three and four.
        seed: of the scenes' world.

    Raises:
        UsageError: too few scenes, not four sentences, or an encoder without a text tower.
    """
    text = text_of(encoder)
    if number < 2 * MOST or number % MOST or len(sentences) != MOST:
        raise UsageError(
            f"Counting needs a multiple of {MOST} scenes, {2 * MOST} or more, and {MOST} "
            f"sentences; got {number} and {len(sentences)}."
        )
    source = Scenes("test", size=encoder.image_size, count=number, seed=seed)
    samples = [source.read(i) for i in range(number)]
    z = text.project(encoder.embed([s.image for s in samples]))
    answers = (z @ text.embed(list(sentences)).T).argmax(1).numpy()
    truth = source.labels
    covered = np.array([np.mean(s.mask) for s in samples if s.mask is not None])
    table = np.zeros((MOST, MOST))
    np.add.at(table, (truth, answers), 1)
    table /= table.sum(1, keepdims=True)
    by_area = nearest_mean(covered, truth)
    right = answers == truth
    low, high = wilson(int(right.sum()), number)
    inside = [_rank(covered[truth == k], answers[truth == k]) for k in range(MOST)]
    numbers = {
        "accuracy": float(right.mean()), "low": float(low), "high": float(high),
        "chance": 1 / MOST, "by_area": float((by_area == truth).mean()),
        "off_by": float(np.abs(answers - truth).mean()),
        "area_within_number": float(np.mean(inside)),
        **{f"right_{k + 1}": float(table[k, k]) for k in range(MOST)},
    }  # fmt: skip
    if numbers["low"] <= numbers["chance"]:
        verdict = "no sign that it counts"
    elif numbers["low"] <= numbers["by_area"]:
        verdict = "no more than the covered area gives away"
    else:
        verdict = "more than the covered area gives away"
    caption = (
        f"Numbers of creatures by {encoder.name}: {numbers['accuracy']:.0%} of {number} scenes are "
        f"right [{low:.0%}, {high:.0%}], by chance {numbers['chance']:.0%}, by the covered area "
        f"{numbers['by_area']:.0%}: {verdict}. Among scenes of one number the answer goes with the "
        f"area by a rank correlation of {numbers['area_within_number']:+.2f} (0 is right)."
    )
    rows = []
    for k in range(MOST):
        some = np.flatnonzero(truth == k)[:SHOWN]
        rows.append([*(samples[i].image for i in some), enlarge(_bars(table[k]))])
    titles = [*(f"scene {i + 1}" for i in range(SHOWN)), "answers 1 to 4"]
    data = {"truth": truth + 1, "answers": answers + 1, "covered": covered, "table": table}
    return Pictures([Picture(name="counting", image=sheet(rows, titles), caption=caption,
                             data=data, numbers=numbers)])  # fmt: skip


def nearest_mean(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label whose mean value, without the row's own, is nearest: int [N] of float [N]."""
    kinds = np.unique(labels)
    sums = np.array([values[labels == k].sum() for k in kinds])
    counts = np.array([(labels == k).sum() for k in kinds])
    own = labels[:, None] == kinds[None]
    means = (sums - own * values[:, None]) / np.maximum(counts - own, 1)
    return kinds[np.abs(values[:, None] - means).argmin(1)]


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation; 0 where one side never changes."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def _bars(shares: np.ndarray) -> np.ndarray:
    """Shares as columns of heat, uint8 [h, w, 3]."""
    side = 32
    level = (np.arange(side)[::-1, None] + 0.5) / side
    filled = np.repeat(shares, side // len(shares))[None] > level
    return heat(np.where(filled, 0.8, 0.05))
