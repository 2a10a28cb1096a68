"""Assignment of samples to prototypes or codes: Sinkhorn-Knopp, k-means, and usage metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel import distributed
from nolabel.device import in_fp32


@torch.no_grad()
@in_fp32
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Sinkhorn-Knopp: soft assignments with an equal share for each prototype (SwAV, §3.1).

    The official code computes exp(logits / temperature), which overflows in fp32; here the log
    scales of rows and columns are computed, which is exact and as fast. No gradient.

    Args:
        logits: scores [N, K] of this rank's samples; N may differ among ranks.
        temperature: epsilon in SwAV, the teacher's temperature in DINOv2.
        iterations: each normalises the prototypes over the samples of all ranks (all-gathered),
            then each sample over the prototypes.

    Returns:
        probabilities [N, K], at least fp32; rows sum to 1.
    """
    x = logits / temperature
    return (x + sinkhorn_shift([x], iterations)).softmax(-1)


@torch.no_grad()
def sinkhorn_shift(
    rows: Sequence[Tensor], iterations: int = 3, logits: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """Sinkhorn-Knopp's log scale of each prototype: softmax(x + scale) is the assignment.

    Args:
        rows: this rank's scores divided by the temperature, in chunks [n, K] of any length.
        iterations: see `sinkhorn`.
        logits: computes the scores of a chunk from an element of `rows`, in each iteration, so that
            one chunk is in memory at a time.

    Returns:
        [1, K], without gradient.
    """
    prototype: Tensor | None = None  # log scale of each prototype [1, K]
    for _ in range(iterations):
        shares = []
        for piece in rows:
            x = logits(piece)
            if prototype is not None:  # normalise each sample
                x = x - torch.logsumexp(x + prototype, 1, keepdim=True)
            shares.append(torch.logsumexp(x, 0, keepdim=True))
        share = torch.logsumexp(torch.cat(shares), 0, keepdim=True)
        prototype = -torch.logsumexp(distributed.gather(share), 0, keepdim=True)
    assert prototype is not None, "at least one iteration"  # noqa: S101
    return prototype


@torch.no_grad()
@in_fp32
def spherical_kmeans(
    z: Tensor, centroids: Tensor, iterations: int, chunk: int = 16384
) -> tuple[Tensor, Tensor]:
    """Spherical k-means, without gradient; nothing is gathered over ranks.

    Args:
        z: unit vectors [N, D].
        centroids: initial ones, unit vectors [K, D].
        iterations: number of assignments and averages.
        chunk: rows of z whose scores are in memory at a time.

    Returns:
        unit centroids [K, D], and the nearest one of each row, int64 [N]. A centroid without any
        rows does not move.
    """
    for _ in range(iterations):
        nearest = _nearest(z, centroids, chunk)
        total = torch.zeros_like(centroids).index_add_(0, nearest, z)
        has_rows = nearest.bincount(minlength=len(centroids)) > 0
        centroids = torch.where(has_rows[:, None], F.normalize(total, dim=-1), centroids)
    return centroids, _nearest(z, centroids, chunk)


def _nearest(z: Tensor, centroids: Tensor, chunk: int) -> Tensor:
    return torch.cat([(rows @ centroids.T).argmax(1) for rows in z.split(chunk)])


@torch.no_grad()
def codes_in_use(ids: Tensor, vocabulary: int) -> dict[str, Tensor]:
    """How many codes of a vocabulary a batch uses; this rank only.

    Args:
        ids: int64, any shape, in [0, vocabulary).
        vocabulary: number of codes.

    Returns:
        codes_used: number of different ids; perplexity: exp of the entropy of their shares. Both
        scalars in [1, vocabulary].
    """
    count = torch.bincount(ids.flatten(), minlength=vocabulary)
    share = count / count.sum()
    perplexity = torch.exp(-torch.special.xlogy(share, share).sum())
    return {"codes_used": (count > 0).sum(), "perplexity": perplexity}


@in_fp32
def prototype_scores(z: Tensor, prototypes: Tensor) -> Tensor:
    """z . c of vectors [..., D] and prototypes [K, D]: [..., K], at least fp32."""
    return F.linear(z, prototypes)
