"""Label-free measures of the features of a batch, and the detection of collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel.nn.spectrum import effective_number


def feature_std(z: Tensor) -> float:
    """Spread of features [B, D]: the standard deviation of the unit-length features over the
    batch, mean over dimensions, times sqrt(D). About 1 if their directions are uniform, 0 if all
    are the same."""
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
    """A detected collapse."""

    sign: str  # what collapsed: features, embeddings, targets or prototypes
    why: str  # the measured value, in words


def collapse(line: Mapping[str, Any]) -> Collapse | None:
    """The collapse that a line of metrics.jsonl shows; None if it shows none.

    The thresholds lie between the values of runs that were made to collapse and those of healthy
    runs, both of some minutes on small images. Targets of DINO had a mutual information with the
    image of 0.03 to 0.05 nats without centring and sharpening, and of 0.1 to 1 in healthy runs.
    With a teacher temperature of zero they used 3 prototypes, in healthy runs 100 and more.
    Without the stop-gradient the embeddings of different images in BYOL had a cosine of 0.995, in
    healthy runs of 0.3. The first steps of a healthy run may have values like those of a collapse,
    so `doctor` ignores them.
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
            "the targets are nearly the same for all images (mutual information with the image: "
            f"{information:.2f} nats)",
        )
    if entropy + information < math.log(4):
        return Collapse(
            "prototypes",
            f"nearly all images share {math.exp(entropy + information):.1f} prototypes (the "
            "perplexity of the mean target)",
        )
    return None
