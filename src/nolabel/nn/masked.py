"""Masked patches: losses of their pixels and prototypes, and a network with a head for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nolabel import distributed
from nolabel.nn.heads import PrototypeHead
from nolabel.types import Clock

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class PrototypeLogits:
    """Logits [N, K] = prototypes(z) / temperature + shift, computed lazily.

    The logits of many tokens and prototypes need more memory than anything else; with `chunk`, only
    so many rows are in memory at a time.
    """

    z: Tensor  # bottleneck vectors [N, D]
    prototypes: nn.Module  # the last layer, [N, D] -> [N, K]
    temperature: float
    chunk: int = 0  # rows at a time; 0 = all
    shift: Tensor | None = None  # [1, K], such as -centre / temperature, or Sinkhorn's log scales

    @classmethod
    def of_head(
        cls, head: PrototypeHead, x: Tensor, temperature: float, chunk: int = 0
    ) -> PrototypeLogits:
        """Of tokens x [N, D], as `head` computes them."""
        return cls(head.bottleneck(x), head.last_layer, temperature, chunk)

    def pieces(self) -> tuple[Tensor, ...]:
        """z in chunks of `chunk` rows: [n, D] each."""
        return self.z.split(self.chunk or max(len(self.z), 1))

    def of(self, z: Tensor) -> Tensor:
        """Logits of some rows z [n, D], fp32 [n, K]; gradient to z and the prototypes."""
        x = self.prototypes(z).float() / self.temperature
        return x if self.shift is None else x + self.shift

    def shifted(self, shift: Tensor) -> PrototypeLogits:
        """The same logits with another shift [1, K]."""
        return replace(self, shift=shift)

    def softmax(self) -> Tensor:
        """Probabilities fp32 [N, K], computed at once."""
        return self.of(self.z).softmax(-1)


def masked_cross_entropy(
    targets: PrototypeLogits, student: PrototypeLogits, mask: Tensor
) -> Tensor:
    """Mean over images of the mean over each one's masked tokens of H(P_t, P_s) (iBOT, equation 2).

    With `student.chunk` so many rows of logits are in memory at a time, recomputed in the backward
    pass.

    Args:
        targets: the teacher's logits of the M masked tokens, in the order of mask.nonzero().
        student: the student's logits of the same tokens.
        mask: bool [N, P]; an image without masked tokens counts as 0.

    Returns:
        scalar fp32, the mean over this rank's images; gradient to the student's vectors and
        prototypes only.
    """

    def rows(s: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            p = targets.of(t).softmax(-1)
        return -(p * F.log_softmax(student.of(s), -1)).sum(-1)

    if len(student.z) <= (student.chunk or len(student.z)):
        return mean_over_masked(rows(student.z, targets.z), mask)
    parts = zip(student.pieces(), targets.z.split(student.chunk), strict=True)
    losses: list[Tensor] = [checkpoint(rows, s, t, use_reentrant=False) for s, t in parts]
    return mean_over_masked(torch.cat(losses), mask)


def mean_over_masked(per_token: Tensor, mask: Tensor) -> Tensor:
    """Mean over images of the mean over each one's masked tokens; an image without any counts as 0.

    Args:
        per_token: [M], of the masked tokens in the order of mask.nonzero().
        mask: bool [N, P].

    Returns:
        scalar.
    """
    weight = mask / mask.sum(1, keepdim=True).clamp_min(1)  # [N, P]: 1 / n_i
    return (per_token * weight[mask]).sum() / len(mask)


def masked_l1(pred: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of masked pixels over the batches of all ranks (SimMIM, §3.4).

    Args:
        pred, x: predicted and true images [B, C, H, W] of this rank.
        mask: bool [B, 1, H, W], True = masked.

    Returns:
        scalar fp32; its mean over ranks is sum of m |x - y| / (sum of m + 1e-5) / C over all
        images.
    """
    error = ((x.float() - pred).abs() * mask).sum()
    hidden = distributed.sum(mask.sum()) + 1e-5
    return error * distributed.world_size() / hidden / x.shape[1]


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of the removed patches (MAE, §3).

    Args:
        pred, target: [B, P, values of a patch].
        mask: float [B, P], 1 = removed, 0 = visible.

    Returns:
        scalar fp32: mean over this rank's removed patches of the mean over their values.
    """
    per_patch = (pred.float() - target.float()).square().mean(-1)
    return (per_patch * mask).sum() / mask.sum()


class PatchNetwork(nn.Module, Generic[Net]):
    """A backbone with a head for the class token and one for patches (iBOT, §3).

    Args:
        backbone: any network.
        head: of the class token.
        patch_head: of the patches; may be the same module.
    """

    def __init__(self, backbone: Net, head: PrototypeHead, patch_head: PrototypeHead):
        super().__init__()
        self.backbone, self.head, self.patch_head = backbone, head, patch_head

    def freeze_first_epochs(self, epochs: float, clock: Clock) -> None:
        """See `PrototypeHead.freeze_first_epochs`, for both heads."""
        for head in (self.head, self.patch_head):
            head.freeze_first_epochs(epochs, clock)
