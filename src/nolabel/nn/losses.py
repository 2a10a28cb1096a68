"""Losses: stateless, checked against naive loops and official numbers in tests/."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def cross_entropy_views(targets: Tensor, logits: Tensor, *, skip_same: bool = True) -> Tensor:
    """Mean cross-entropy over all pairs (target view t, predicted view v) (DINO, equation 3).

    Args:
        targets: probabilities [T, B, K] of the teacher's views.
        logits: [V, B, K] of the student's views, already divided by the temperature; the first
            T of them are the same crops as the teacher's.
        skip_same: leave out the pairs t = v.

    Returns:
        Scalar: mean over pairs of the mean over images of -sum_K p log q.
    """
    log_q = F.log_softmax(logits.float(), -1)
    pairs = -torch.einsum("tbk,vbk->tvb", targets.float(), log_q).mean(-1)  # [T, V]
    if skip_same:
        same = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
        return pairs[~same].mean()
    return pairs.mean()


def squared_distance_views(targets: Tensor, logits: Tensor) -> Tensor:
    """Mean over the pairs t != v of the squared distance of unit vectors, 2 - 2 cos.

    Args:
        targets: [T, B, K] of the teacher's views.
        logits: [V, B, K] of the student's views; the first T are the same crops.
    """
    a, b = F.normalize(targets.float(), dim=-1), F.normalize(logits.float(), dim=-1)
    pairs = 2 - 2 * torch.einsum("tbk,vbk->tvb", a, b).mean(-1)  # [T, V]
    return pairs[~torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)].mean()


def entropy(p: Tensor) -> Tensor:
    """Mean entropy in nats of probabilities [..., K]; at most ln K."""
    return -torch.special.xlogy(p, p).sum(-1).mean()


def target_signals(p: Tensor) -> dict[str, Tensor]:
    """What to log of the targets p [..., K]: mean entropy, how many prototypes are someone's
    likeliest, and information: entropy of the mean less mean entropy, in nats.  That is 0 if all
    images have the same targets, one prototype or all alike: both ways to collapse (DINO, §5.3)."""
    p = p.detach().flatten(0, -2)
    h, used = entropy(p), p.new_zeros(p.shape[-1]).index_fill(0, p.argmax(-1), 1.0).sum()
    return {"target_entropy": h, "target_information": entropy(p.mean(0)) - h,
            "prototypes_used": used}  # fmt: skip


def prototype_cross_entropy(
    student: Tensor,
    prototypes: nn.Module,
    teacher: Tensor,
    teacher_prototypes: nn.Module,
    shift: Tensor,
    temperature: float,
    teacher_temperature: float,
    chunk: int = 0,
) -> Tensor:
    """Cross-entropy of each token between softmax(t / tau_t + shift) and softmax(s / tau_s).

    Logits of many tokens and prototypes are the largest thing in memory.  With `chunk` only so
    many rows of them exist at a time: the backward pass computes them again.

    Args:
        student, teacher: bottleneck vectors [N, D] of the same tokens.
        prototypes, teacher_prototypes: last layers, [N, D] -> logits [N, K].
        shift: [1, K]: minus the centre over tau_t, or Sinkhorn's log scale of each prototype.
        temperature, teacher_temperature: tau_s and tau_t.
        chunk: rows at a time; 0 = all, and nothing is computed twice.

    Returns:
        fp32 [N]; gradient to `student` and `prototypes` alone.
    """

    def rows(s: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            targets = (teacher_prototypes(t).float() / teacher_temperature + shift).softmax(-1)
        return -(targets * F.log_softmax(prototypes(s).float() / temperature, -1)).sum(-1)

    if not chunk or len(student) <= chunk:
        return rows(student, teacher)
    parts = zip(student.split(chunk), teacher.split(chunk), strict=True)
    return torch.cat([checkpoint(rows, s, t, use_reentrant=False) for s, t in parts])  # type: ignore[misc]


def mean_over_masked(per_token: Tensor, mask: Tensor) -> Tensor:
    """Mean over images of the mean over each one's masked tokens; an image without any counts as 0.

    Args:
        per_token: [masked tokens], in the order of mask.nonzero().
        mask: bool [N, P].
    """
    share = mask / mask.sum(1, keepdim=True).clamp_min(1)  # [N, P]: 1 / n_i
    return (per_token * share[mask]).sum() / len(mask)


def nt_xent(
    a: Tensor, b: Tensor, temperature: float, all_a: Tensor, all_b: Tensor, offset: int
) -> Tensor:
    """Normalised temperature-scaled cross-entropy over 2N (SimCLR, equation 1).

    Args:
        a, b: unit embeddings [B, D] of the two views of this process's images.
        all_a, all_b: the same of all processes, [W*B, D], gathered with gradient.
        offset: place of this process's first image in them.

    Returns:
        Scalar: mean over the 2B anchors of -log(exp(s_pos / T) / sum over the other 2WB - 1).
    """
    anchors = torch.cat([a, b])  # [2B, D]
    candidates = torch.cat([all_a, all_b])  # [2WB, D]
    n, total = len(a), len(all_a)
    logits = anchors @ candidates.T / temperature
    here = torch.arange(n, device=a.device) + offset
    own = torch.cat([here, here + total])
    positive = torch.cat([here + total, here])
    logits = logits.scatter(1, own[:, None], float("-inf"))  # an image is not its own negative
    return F.cross_entropy(logits.float(), positive)


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error per patch, averaged over the masked patches alone (MAE §3).

    Args:
        pred, target: [B, P, pixels of a patch].
        mask: [B, P], 1 where the patch was removed.
    """
    per_patch = (pred.float() - target.float()).square().mean(-1)
    return (per_patch * mask).sum() / mask.sum()
