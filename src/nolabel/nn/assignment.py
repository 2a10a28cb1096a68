"""Assignment of samples to prototypes or codes, and how equal its shares are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel import distributed


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Sinkhorn-Knopp: soft assignments in which each prototype gets an equal share (SwAV §3.1).

    The official codes take exp(logits / temperature), which overflows in fp32; here only the
    logarithms of the row and column scales are kept, which is exact and as fast.

    Args:
        logits: [N, K] scores of this process's samples; N may differ between processes.
        temperature: epsilon of SwAV, the teacher's temperature in DINOv2.
        iterations: each one normalises the prototypes over all samples of all processes, then
            every sample over the prototypes.

    Returns:
        fp32 at least, [N, K], rows sum to 1; without gradient.
    """
    x = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return (x + sinkhorn_shift([x], iterations)).softmax(-1)


@torch.no_grad()
def sinkhorn_shift(
    rows: Sequence[Tensor], iterations: int = 3, logits: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """Sinkhorn's log scale of each prototype, [1, K]: softmax(x + scale) is the assignment.

    Args:
        rows: this process's scores over the temperature [n, K], in pieces of any length.
        iterations: see `sinkhorn`.
        logits: makes the scores of a piece from something smaller, once an iteration, so that
            only one piece of them exists at a time.
    """
    prototype: Tensor | None = None  # log scale of each prototype [1, K]
    for _ in range(iterations):
        shares = []
        for piece in rows:
            x = logits(piece)
            if prototype is not None:  # the log scale of each sample follows from it
                x = x - torch.logsumexp(x + prototype, 1, keepdim=True)
            shares.append(torch.logsumexp(x, 0, keepdim=True))
        share = torch.logsumexp(torch.cat(shares), 0, keepdim=True)
        prototype = -torch.logsumexp(distributed.gather(share), 0, keepdim=True)
    assert prototype is not None, "at least one iteration"  # noqa: S101
    return prototype


@torch.no_grad()
def spherical_kmeans(
    z: Tensor, centroids: Tensor, iterations: int, chunk: int = 16384
) -> tuple[Tensor, Tensor]:
    """K-means of unit vectors by dot product.

    Args:
        z: unit vectors [N, D].
        centroids: the first ones, unit vectors [K, D].
        iterations: of assigning and averaging.
        chunk: rows of z whose scores are held at once.

    Returns:
        Unit centroids [K, D] and the number of the nearest one int64 [N]. A centroid that loses
        all its vectors stays where it is.
    """
    for _ in range(iterations):
        near = _nearest(z, centroids, chunk)
        total = torch.zeros_like(centroids).index_add_(0, near, z)
        taken = near.bincount(minlength=len(centroids)) > 0
        centroids = torch.where(taken[:, None], F.normalize(total, dim=-1), centroids)
    return centroids, _nearest(z, centroids, chunk)


def _nearest(z: Tensor, centroids: Tensor, chunk: int) -> Tensor:
    return torch.cat([(rows @ centroids.T).argmax(1) for rows in z.split(chunk)])


@torch.no_grad()
def codes_in_use(ids: Tensor, vocabulary: int) -> dict[str, Tensor]:
    """How much of a vocabulary is used by ids (int64, any shape).

    Returns:
        codes_used: number of different ids; perplexity: exp of the entropy of their shares, the
        number of equally frequent codes that would be as diverse; both at most `vocabulary`.
    """
    count = torch.bincount(ids.flatten(), minlength=vocabulary)
    share = count / count.sum()
    perplexity = torch.exp(-torch.special.xlogy(share, share).sum())
    return {"codes_used": (count > 0).sum(), "perplexity": perplexity}
