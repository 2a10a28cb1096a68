"""Contrastive losses: each image or text against those of the whole batch, on all processes.

Callers pass what their own process has; gathering the others' and finding the own rows among them
happens here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nolabel import distributed


@torch.no_grad()
def pair_signals(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """What to log of embeddings [B, E] of two views: mean cosine of a picture's own views
    (`agreement`) and of different pictures' (`agreement_others`). Both at 1 is a collapse."""
    a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
    own, n = (a * b).sum(), len(a)
    every = a.sum(0) @ b.sum(0)  # all pairs, without the matrix
    return {"agreement": own / n, "agreement_others": (every - own) / max(n * (n - 1), 1)}


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy over 2N (SimCLR, equation 1).

    The embeddings of all processes are candidates, with gradient.

    Args:
        a, b: unit embeddings [B, D] of the two views of this process's images.
        temperature: T.

    Returns:
        Scalar: mean over the 2B anchors of -log(exp(s_pos / T) / sum over the other 2WB - 1).
    """
    anchors = torch.cat([a, b])  # [2B, D]
    candidates = torch.cat([distributed.gather_with_grad(x) for x in (a, b)])  # [2WB, D]
    logits = anchors @ candidates.T / temperature
    own = distributed.global_rows(len(a), 2, a.device)
    positive = own.view(2, -1).flip(0).flatten()  # the other view
    logits = logits.scatter(1, own[:, None], float("-inf"))  # an image is not its own negative
    return F.cross_entropy(logits.float(), positive)


def batch_info_nce(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """-log softmax_j(q_i . k_j / T) at j = i, over the keys of all processes, without gradient.

    Args:
        q, k: unit vectors [B, D] of this process's images.
        temperature: T.

    Returns:
        Scalar: mean over the B queries.
    """
    own = distributed.global_rows(len(q), device=q.device)
    return F.cross_entropy(q @ distributed.gather(k).T / temperature, own)


@torch.no_grad()
def encode_shuffled(network: nn.Module, x: Tensor, seed: int) -> Tensor:
    """network(x), each process encoding images drawn from all processes (MoCo, shuffling BN).

    Without it batch norm would tell which key belongs to a query. Within one process it sees the
    images together, and nothing is shuffled.

    Args:
        network: gives vectors [N, D].
        x: this process's images [B, C, H, W].
        seed: of the permutation, the same on all processes.

    Returns:
        [B, D] of this process's images.
    """
    if distributed.world_size() == 1:
        return network(x)
    everything = distributed.gather(x)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))
    own = distributed.global_rows(len(x))
    encoded = distributed.gather(network(everything[order[own].to(x.device)]))
    return encoded[order.argsort()[own].to(x.device)]


def view_distances(z: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of this process's views to the views of all processes, with gradient to both.

    Args:
        z: unit embeddings [V, B, D].

    Returns:
        |z_i - z_j|, [V*B, W*V*B], with a finite gradient where two coincide, and whether i and j
        are views of the same image, bool of the same shape.
    """
    views, b = z.shape[:2]
    image = distributed.global_rows(b, device=z.device).repeat(views)
    d = distances(z.flatten(0, 1), distributed.gather_with_grad(z.flatten(0, 1)))
    return d, image[:, None] == distributed.gather(image)[None]


def distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j| of unit vectors [N, D], [M, D] -> [N, M]; finite gradient where they coincide."""
    return (2 - 2 * a @ b.T).clamp_min(1e-8).sqrt()


def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """Cross-correlation over the whole batch of two views' embeddings (Barlow Twins, equation 2).

    Args:
        z1, z2: [N, D] of this process's images; those of all processes are gathered, with gradient.

    Returns:
        fp32 [D, D], entries between -1 and 1.
    """

    def normalise(z: Tensor) -> Tensor:
        z = z - z.mean(0)
        return z / (z.square().mean(0) + 1e-5).sqrt()

    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = (distributed.gather_with_grad(_wide(z)) for z in (z1, z2))
        return normalise(z1).T @ normalise(z2) / len(z1)


def clip_loss(image: Tensor, text: Tensor, scale: Tensor, *, chunk: int = 0) -> Tensor:
    """Symmetric cross-entropy over the similarities of a batch (CLIP, figure 3).

    The pairs of all processes are candidates, with gradient.

    Args:
        image, text: unit embeddings [B, E] of this process's pairs.
        scale: factor of the similarities, a scalar.
        chunk: rows of the matrix held at once, computed again in the backward pass; 0 = all.

    Returns:
        Scalar: 1/2 (mean over images of -log p(own text) + mean over texts of -log p(own image)).
    """
    own = distributed.global_rows(len(image), device=image.device)
    all_image, all_text = (distributed.gather_with_grad(x) for x in (image, text))

    def rows(a: Tensor, others: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(scale * a @ others.T, target, reduction="sum")

    both = _in_chunks(rows, image, all_text, own, chunk)
    both = both + _in_chunks(rows, text, all_image, own, chunk)
    return both / (2 * len(image))


def siglip_loss(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, *, chunk: int = 0
) -> Tensor:
    """Every pair of an image and a text is a yes-or-no question of its own (SigLIP, equation 1).

    The texts of all processes are gathered, with gradient.

    Args:
        image, text: unit embeddings [B, E] of this process's pairs.
        scale, bias: of the logits, scalars.
        chunk: rows of the matrix held at once, computed again in the backward pass; 0 = all.

    Returns:
        Scalar: sum over all B * W*B pairs of -log sigmoid(+-logit), divided by B, not by the number
        of pairs.
    """
    own = distributed.global_rows(len(image), device=image.device)

    def rows(a: Tensor, others: Tensor, target: Tensor) -> Tensor:
        logits = scale * a @ others.T + bias
        sign = torch.full_like(logits, -1.0).scatter_(1, target[:, None], 1.0)
        return -F.logsigmoid(sign * logits).sum()

    return _in_chunks(rows, image, distributed.gather_with_grad(text), own, chunk) / len(image)


def _in_chunks(
    rows: Callable[[Tensor, Tensor, Tensor], Tensor],
    a: Tensor,
    others: Tensor,
    target: Tensor,
    chunk: int,
) -> Tensor:
    """Sum of `rows` over blocks of a's rows, in full precision; each block's logits are freed
    after use and computed again for the gradient."""

    def exact(*parts: Tensor) -> Tensor:
        # A scale of up to 100 turns bf16's rounding of a cosine into whole units of a logit.
        with torch.autocast(a.device.type, enabled=False):
            return rows(*parts)

    a, others = _wide(a), _wide(others)
    if not 0 < chunk < len(a):
        return exact(a, others, target)
    total = a.new_zeros(())
    for part, place in zip(a.split(chunk), target.split(chunk), strict=True):
        total = total + checkpoint(
            exact, part, others, place, use_reentrant=False, preserve_rng_state=False
        )
    return total


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
