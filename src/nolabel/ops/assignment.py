"""Assignment of samples to prototypes or codes, and how equal its shares are."""

from __future__ import annotations

import torch
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
    prototype = torch.zeros_like(x[:1])  # log scale of each prototype [1, K]
    sample = x.new_zeros(len(x), 1)  # log scale of each sample [N, 1]
    for _ in range(iterations):
        share = torch.logsumexp(x + sample, 0, keepdim=True)
        prototype = -torch.logsumexp(distributed.gather(share), 0, keepdim=True)
        sample = -torch.logsumexp(x + prototype, 1, keepdim=True)
    return (x + prototype).softmax(-1)


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
