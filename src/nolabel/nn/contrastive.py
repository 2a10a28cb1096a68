"""Pairs: what to log of them, and losses of image-text learning over a matrix of similarities that
need never be held whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@torch.no_grad()
def pair_signals(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """What to log of embeddings [B, E] of two views: mean cosine of a picture's own views
    (`agreement`) and of different pictures' (`agreement_others`).  Both at 1 is a collapse."""
    a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
    own, n = (a * b).sum(), len(a)
    every = a.sum(0) @ b.sum(0)  # all pairs, without the matrix
    return {"agreement": own / n, "agreement_others": (every - own) / max(n * (n - 1), 1)}


def clip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    all_image: Tensor,
    all_text: Tensor,
    *,
    offset: int = 0,
    chunk: int = 0,
) -> Tensor:
    """Symmetric cross-entropy over the similarities of a batch (CLIP, figure 3).

    Args:
        image, text: unit embeddings [B, E] of this process's pairs.
        scale: factor of the similarities, a scalar.
        all_image, all_text: the same of all processes, [W*B, E], gathered with gradient.
        offset: place of this process's first pair in them.
        chunk: rows of the matrix held at once, computed again in the backward pass; 0 = all.

    Returns:
        Scalar: 1/2 (mean over images of -log p(own text) + mean over texts of -log p(own image)).
    """
    own = torch.arange(len(image), device=image.device) + offset

    def rows(a: Tensor, others: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(scale * a @ others.T, target, reduction="sum")

    both = _in_chunks(rows, image, all_text, own, chunk)
    both = both + _in_chunks(rows, text, all_image, own, chunk)
    return both / (2 * len(image))


def siglip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    offset: int = 0,
    chunk: int = 0,
) -> Tensor:
    """Every pair of an image and a text is a yes-or-no question of its own (SigLIP, equation 1).

    Args:
        image: unit embeddings [B, E] of this process's images.
        text: unit embeddings [W*B, E] of the texts of all processes, gathered with gradient.
        scale, bias: of the logits, scalars.
        offset: place of this process's first text among them.
        chunk: rows of the matrix held at once, computed again in the backward pass; 0 = all.

    Returns:
        Scalar: sum over all B * W*B pairs of -log sigmoid(+-logit), divided by B, not by the number
        of pairs.
    """
    own = torch.arange(len(image), device=image.device) + offset

    def rows(a: Tensor, others: Tensor, target: Tensor) -> Tensor:
        logits = scale * a @ others.T + bias
        sign = torch.full_like(logits, -1.0).scatter_(1, target[:, None], 1.0)
        return -F.logsigmoid(sign * logits).sum()

    return _in_chunks(rows, image, text, own, chunk) / len(image)


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
