"""Signals that need no labels, and the guard against non-finite steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel.errors import GuardStop
from nolabel.nn.spectrum import effective_number


def feature_std(z: Tensor) -> float:
    """Spread of features [B, D]: mean over dimensions of the deviation of the unit-length
    features, times sqrt(D).  About 1 when they point everywhere, 0 when all are the same."""
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

    The limits lie between forced failures and healthy runs of minutes on small pictures.  Without
    centring and sharpening DINO's targets carried 0.03 to 0.05 nats, those of runs that learn 0.1
    to 1; with a teacher temperature of zero they used 3 prototypes, healthy ones 100 and more;
    without the stop of the gradient BYOL's embeddings of different pictures agreed by 0.995,
    healthy ones by 0.3.  In the first steps of a healthy run the signals may look the same: judge
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


class NonFiniteGuard:
    """Lets a step pass only if its loss and gradients are finite; stops after `limit` in a row."""

    def __init__(self, limit: int = 3):
        self.limit = limit
        self.consecutive = 0

    def check(self, loss: Tensor | float, gradient_norm: Tensor | float) -> bool:
        """True: update.  False: skip this step.

        `consecutive` is the guard's whole state: save it, and set it on resume.

        Raises:
            GuardStop: `limit` steps in a row were not finite.
        """
        loss, gradient_norm = torch.as_tensor(loss), torch.as_tensor(gradient_norm)
        if bool(torch.isfinite(loss) & torch.isfinite(gradient_norm)):  # one wait for the device
            self.consecutive = 0
            return True
        self.consecutive += 1
        if self.consecutive >= self.limit:
            what = "loss" if not bool(torch.isfinite(loss)) else "gradient norm"
            raise GuardStop(
                f"The {what} was not finite, {self.limit} steps in a row without a good one (the "
                f"last: loss {float(loss):g}, gradient norm {float(gradient_norm):g}); the weights "
                "are those of the last good step and the last checkpoint is whole. Likely causes: "
                "a learning rate that is too high, or too little precision. Try --optim.lr a third "
                "as large, --precision fp32, or --optim.clip 1."
            )
        return False
