"""Signals of a healthy representation that need no labels, and the signs of collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel.nn.spectrum import effective_number


def feature_std(z: Tensor) -> float:
    """Spread of features [B, D]: mean over dimensions of the deviation of the unit-length
    features, times sqrt(D). About 1 when they point everywhere, 0 when all are the same."""
    z = F.normalize(z.float(), dim=-1)
    return float(z.std(0, correction=0).mean() * z.shape[1] ** 0.5)


def effective_rank(z: Tensor) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885): exp of the entropy of the normalised
    singular values of features [B, D]; between 1 and min(B, D)."""
    return effective_number(torch.linalg.svdvals(z.float()))


def signals(features: Tensor) -> dict[str, float]:
    """Both signals of a batch's features."""
    z = features.detach().float()
    if not torch.isfinite(z).all():
        return {"feature_std": float("nan"), "effective_rank": float("nan")}
    return {"feature_std": feature_std(z), "effective_rank": effective_rank(z)}


class Collapse(NamedTuple):
    """A sign of collapse."""

    sign: str  # features, embeddings, targets or prototypes
    why: str


def collapse(line: Mapping[str, Any]) -> Collapse | None:
    """The sign of collapse that a line of metrics.jsonl shows; None if it shows none.

    The limits lie between forced failures and healthy runs of minutes on small pictures. Without
    centring and sharpening DINO's targets carried 0.03 to 0.05 nats, those of runs that learn 0.1
    to 1; with a teacher temperature of zero they used 3 prototypes, healthy ones 100 and more;
    without the stop of the gradient BYOL's embeddings of different pictures agreed by 0.995,
    healthy ones by 0.3. In the first steps of a healthy run the signals may look the same: judge
    later ones (`doctor`).
    """
    names = ("feature_std", "target_entropy", "target_information", "agreement_others", "agreement")
    values = (math.nan if line.get(name) is None else float(line[name]) for name in names)
    spread, entropy, information, others, own = values  # absent or not finite: no sign
    if spread < 0.1:
        return Collapse(
            "features",
            f"the features of different images are nearly the same (spread {spread:.2f}, healthy "
            "runs are near 1)",
        )
    if others > 0.95:
        return Collapse(
            "embeddings",
            f"the embeddings of different images are nearly the same (their mean cosine is "
            f"{others:.3f}, that of an image's own views {own:.3f})",
        )
    if information < 0.075:
        return Collapse(
            "targets",
            f"the targets are nearly the same for all images (they tell {information:.2f} nats of "
            "the image)",
        )
    if entropy + information < math.log(4):
        return Collapse(
            "prototypes",
            f"nearly all images share {math.exp(entropy + information):.1f} prototypes (the "
            "perplexity of the mean target)",
        )
    return None
