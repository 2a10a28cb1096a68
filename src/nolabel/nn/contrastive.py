"""Contrastive losses over the whole batch, that is the images and texts of all ranks.

Callers pass the embeddings of their own rank; the losses all-gather the others'. W is the number of
ranks, B the images of one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nolabel import distributed
from nolabel.device import in_fp32


@torch.no_grad()
@in_fp32
def pair_signals(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Metrics of the embeddings of two views; no gradient, this rank only.

    Args:
        a, b: [B, E] of the two views.

    Returns:
        agreement: mean cosine similarity of the two views of an image; agreement_others: the mean
        over pairs of different images. Both scalars in [-1, 1]; both at 1 is a collapse.
    """
    a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
    same, n = (a * b).sum(), len(a)
    total = a.sum(0) @ b.sum(0)  # over all pairs, without the [B, B] matrix
    return {"agreement": same / n, "agreement_others": (total - same) / max(n * (n - 1), 1)}


@in_fp32
def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy, NT-Xent (SimCLR, equation 1).

    The embeddings of all ranks are candidates, all-gathered with gradient.

    Args:
        a, b: unit embeddings [B, D] of the two views of this rank's images.
        temperature: T.

    Returns:
        scalar fp32: mean over the 2B anchors of -log(exp(s_pos / T) / sum over the other 2WB - 1).
    """
    anchors = torch.cat([a, b])  # [2B, D]
    candidates = torch.cat([distributed.gather_with_grad(x) for x in (a, b)])  # [2WB, D]
    logits = anchors @ candidates.T / temperature
    rows = distributed.global_rows(len(a), 2, a.device)  # [2B]: of the anchors among candidates
    positive = rows.view(2, -1).flip(0).flatten()  # the other view
    logits = logits.scatter(1, rows[:, None], float("-inf"))  # an image is not its own negative
    return F.cross_entropy(logits.float(), positive)


@in_fp32
def batch_info_nce(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """InfoNCE with in-batch negatives: -log softmax_j(q_i . k_j / T) at j = i (MoCo v3, algorithm
    1).

    The keys of all ranks are candidates, all-gathered; no gradient to them.

    Args:
        q, k: unit vectors [B, D] of this rank's images.
        temperature: T.

    Returns:
        scalar: mean over the B queries.
    """
    rows = distributed.global_rows(len(q), device=q.device)
    return F.cross_entropy(q @ distributed.gather(k).T / temperature, rows)


@torch.no_grad()
def encode_shuffled(network: nn.Module, x: Tensor, seed: int) -> Tensor:
    """Embeddings with shuffled batch norm (MoCo, §3.3): each rank encodes images of all ranks.

    Otherwise the batch norm's statistics would reveal which key belongs to a query. With one rank
    nothing is shuffled. No gradient.

    Args:
        network: images [N, C, H, W] -> embeddings [N, D].
        x: this rank's images [B, C, H, W].
        seed: of the permutation, equal on all ranks.

    Returns:
        [B, D], of this rank's images.
    """
    if distributed.world_size() == 1:
        return network(x)
    images = distributed.gather(x)  # [WB, C, H, W]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    rows = distributed.global_rows(len(x))
    encoded = distributed.gather(network(images[order[rows].to(x.device)]))
    return encoded[order.argsort()[rows].to(x.device)]


@in_fp32
def view_distances(z: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of this rank's views to those of all ranks, all-gathered; gradient to both.

    Args:
        z: unit embeddings [V, B, D] of this rank.

    Returns:
        |z_i - z_j| [V*B, W*V*B], and whether i and j are views of the same image, bool of the same
        shape.
    """
    views, b = z.shape[:2]
    image = distributed.global_rows(b, device=z.device).repeat(views)
    d = distances(z.flatten(0, 1), distributed.gather_with_grad(z.flatten(0, 1)))
    return d, image[:, None] == distributed.gather(image)[None]


@in_fp32
def distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j| of unit vectors [N, D] and [M, D], [N, M]; the gradient is finite at 0."""
    return (2 - 2 * a @ b.T).clamp_min(1e-8).sqrt()


@in_fp32
def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """Cross-correlation matrix of two views' embeddings over the whole batch (Barlow Twins, eq. 2).

    Args:
        z1, z2: [B, D] of this rank's images; all-gathered with gradient.

    Returns:
        fp32 [D, D], entries in [-1, 1].
    """

    def normalise(z: Tensor) -> Tensor:
        z = z - z.mean(0)
        return z / (z.square().mean(0) + 1e-5).sqrt()

    z1, z2 = (distributed.gather_with_grad(z) for z in (z1, z2))
    return normalise(z1).T @ normalise(z2) / len(z1)


@in_fp32
def clip_loss(image: Tensor, text: Tensor, scale: Tensor, *, chunk: int = 0) -> Tensor:
    """Symmetric cross-entropy over the similarities of a batch (CLIP, figure 3).

    The pairs of all ranks are candidates, all-gathered with gradient.

    Args:
        image, text: unit embeddings [B, E] of this rank's pairs.
        scale: s, the factor of the similarities, a scalar.
        chunk: rows of the logits in memory at a time, recomputed in the backward pass; 0 = all.

    Returns:
        scalar fp32: 1/2 (mean over images of -log p(own text) + mean over texts of -log p(own
        image)).
    """
    rows_of_pairs = distributed.global_rows(len(image), device=image.device)
    all_image, all_text = (distributed.gather_with_grad(x) for x in (image, text))

    def rows(a: Tensor, others: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(scale * a @ others.T, target, reduction="sum")

    total = _sum_in_chunks(rows, image, all_text, rows_of_pairs, chunk)
    total = total + _sum_in_chunks(rows, text, all_image, rows_of_pairs, chunk)
    return total / (2 * len(image))


@in_fp32
def siglip_loss(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, *, chunk: int = 0
) -> Tensor:
    """Binary cross-entropy of every pair of an image and a text (SigLIP, equation 1).

    The texts of all ranks are all-gathered with gradient.

    Args:
        image, text: unit embeddings [B, E] of this rank's pairs.
        scale, bias: t and b of the logits, scalars.
        chunk: rows of the logits in memory at a time, recomputed in the backward pass; 0 = all.

    Returns:
        scalar fp32: sum over the B * W*B pairs of -log sigmoid(+-logit), divided by B, not by the
        number of pairs.
    """
    rows_of_pairs = distributed.global_rows(len(image), device=image.device)

    def rows(a: Tensor, others: Tensor, target: Tensor) -> Tensor:
        logits = scale * a @ others.T + bias
        sign = torch.full_like(logits, -1.0).scatter_(1, target[:, None], 1.0)
        return -F.logsigmoid(sign * logits).sum()

    all_text = distributed.gather_with_grad(text)
    return _sum_in_chunks(rows, image, all_text, rows_of_pairs, chunk) / len(image)


def _sum_in_chunks(
    rows: Callable[[Tensor, Tensor, Tensor], Tensor],
    a: Tensor,
    others: Tensor,
    target: Tensor,
    chunk: int,
) -> Tensor:
    """Sum of `rows` over chunks of the rows of a, with activation checkpointing of each."""
    if not 0 < chunk < len(a):
        return rows(a, others, target)
    total = a.new_zeros(())
    for part, part_target in zip(a.split(chunk), target.split(chunk), strict=True):
        total = total + checkpoint(
            rows, part, others, part_target, use_reentrant=False, preserve_rng_state=False
        )
    return total
