"""Cross-entropy between views, and metrics of its targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel.device import in_fp32


@in_fp32
def cross_entropy_views(targets: Tensor, logits: Tensor, *, skip_same: bool = True) -> Tensor:
    """Mean cross-entropy over all pairs (target view t, predicted view v) (DINO, equation 3).

    Args:
        targets: probabilities [T, B, K] of the teacher's views.
        logits: [V, B, K] of the student's views, already divided by the temperature; the first
            T of them are the same crops as the teacher's.
        skip_same: leave out the pairs t = v.

    Returns:
        scalar fp32: mean over pairs of the mean over images of -sum_K p log q; gradient to both.
    """
    log_q = F.log_softmax(logits.float(), -1)
    pairs = -torch.einsum("tbk,vbk->tvb", targets.float(), log_q).mean(-1)  # [T, V]
    if skip_same:
        same = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
        return pairs[~same].mean()
    return pairs.mean()


def entropy(p: Tensor) -> Tensor:
    """Mean entropy of probabilities [..., K], a scalar in nats in [0, ln K]."""
    return -torch.special.xlogy(p, p).sum(-1).mean()


def target_signals(p: Tensor) -> dict[str, Tensor]:
    """Metrics of targets p, probabilities [..., K]; no gradient, this rank only.

    Returns:
        target_entropy: mean entropy in nats; target_information: entropy of the mean minus mean
        entropy, in nats, which is 0 if all images have the same target, be it one prototype or the
        uniform distribution: both kinds of collapse (DINO, §5.3); prototypes_used: number of
        prototypes that are the most likely one of some image.
    """
    p = p.detach().flatten(0, -2)
    h, used = entropy(p), p.new_zeros(p.shape[-1]).index_fill(0, p.argmax(-1), 1.0).sum()
    return {"target_entropy": h, "target_information": entropy(p.mean(0)) - h,
            "prototypes_used": used}  # fmt: skip
