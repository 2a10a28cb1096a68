"""KoLeo: a regulariser that spreads features evenly over the sphere."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel import distributed
from nolabel.device import in_fp32


@in_fp32
def koleo(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Kozachenko-Leonenko regulariser (Sablayrolles et al. 2018, arXiv 1806.03198; DINOv2 §4).

    -mean over i of log |x_i - x_nn(i)| of unit vectors, nn(i) the nearest other one among those of
    all ranks, all-gathered with gradient (in the official code of one rank, so that its strength
    depends on the number of ranks).

    Args:
        x: features [N, D] of this rank, normalised here.
        eps: added inside the distance and the logarithm.

    Returns:
        scalar fp32; 0 for a single vector, which has no neighbour.
    """
    if len(x) * distributed.world_size() < 2:
        return x.float().sum() * 0.0
    x = F.normalize(x.float(), dim=-1, eps=eps)
    all_x = distributed.gather_with_grad(x)  # [WN, D]
    with torch.no_grad():
        own = torch.arange(len(x), device=x.device)[:, None] + distributed.rank() * len(x)
        nearest = (x @ all_x.T).scatter_(1, own, -1.0).argmax(1)
    # pairwise_distance adds eps inside the norm, as the official code does.
    return -torch.log(F.pairwise_distance(x, all_x[nearest], eps=eps) + eps).mean()
