"""Losses over hidden patches: of their pixels, and of their prototypes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nolabel import distributed


@dataclass(frozen=True)
class PrototypeLogits:
    """Logits [N, K] = prototypes(z) / temperature + shift, computed when they are needed.

    Logits of many tokens and prototypes are the largest thing in memory: with `chunk` only so many
    rows of them exist at a time.
    """

    z: Tensor  # bottleneck vectors [N, D]
    prototypes: nn.Module  # the last layer, [N, D] -> [N, K]
    temperature: float
    chunk: int = 0  # rows at a time; 0 = all
    shift: Tensor | None = None  # [1, K], such as minus a centre, or Sinkhorn's scales

    def pieces(self) -> tuple[Tensor, ...]:
        """z in pieces of `chunk` rows."""
        return self.z.split(self.chunk or max(len(self.z), 1))

    def of(self, z: Tensor) -> Tensor:
        """fp32 logits of some rows of z."""
        x = self.prototypes(z).float() / self.temperature
        return x if self.shift is None else x + self.shift

    def shifted(self, shift: Tensor) -> PrototypeLogits:
        """These logits with shift [1, K] added to each row."""
        return replace(self, shift=shift)

    def softmax(self) -> Tensor:
        """Probabilities [N, K], all of them."""
        return self.of(self.z).softmax(-1)


def masked_cross_entropy(
    targets: PrototypeLogits, student: PrototypeLogits, mask: Tensor
) -> Tensor:
    """Mean over images of the mean over each one's masked tokens of H(P_t, P_s) (iBOT, equation 2).

    The student's `chunk` rows exist at a time; the backward pass computes them again.

    Args:
        targets: the teacher's logits of the masked tokens, without gradient.
        student: the student's of the same tokens, in the order of mask.nonzero().
        mask: bool [N, P]; an image without masked tokens counts as 0.

    Returns:
        Scalar with gradient to the student's vectors and prototypes.
    """

    def rows(s: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            p = targets.of(t).softmax(-1)
        return -(p * F.log_softmax(student.of(s), -1)).sum(-1)

    if len(student.z) <= (student.chunk or len(student.z)):
        return mean_over_masked(rows(student.z, targets.z), mask)
    parts = zip(student.pieces(), targets.z.split(student.chunk), strict=True)
    each: list[Tensor] = [checkpoint(rows, s, t, use_reentrant=False) for s, t in parts]
    return mean_over_masked(torch.cat(each), mask)


def mean_over_masked(per_token: Tensor, mask: Tensor) -> Tensor:
    """Mean over images of the mean over each one's masked tokens; an image without any counts as 0.

    Args:
        per_token: [masked tokens], in the order of mask.nonzero().
        mask: bool [N, P].
    """
    share = mask / mask.sum(1, keepdim=True).clamp_min(1)  # [N, P]: 1 / n_i
    return (per_token * share[mask]).sum() / len(mask)


def masked_l1(pred: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of hidden pixels, over the whole batch of all processes (SimMIM).

    Args:
        pred, x: [B, C, H, W].
        mask: bool [B, 1, H, W], True = hidden.

    Returns:
        Scalar: sum of m |x - y| / (sum of m + 1e-5) / C, as a term of this process's loss.
    """
    error = ((x.float() - pred).abs() * mask).sum()
    hidden = distributed.sum(mask.sum()) + 1e-5
    return error * distributed.world_size() / hidden / x.shape[1]


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error per patch, averaged over the masked patches alone (MAE §3).

    Args:
        pred, target: [B, P, pixels of a patch].
        mask: [B, P], 1 where the patch was removed.
    """
    per_patch = (pred.float() - target.float()).square().mean(-1)
    return (per_patch * mask).sum() / mask.sum()
