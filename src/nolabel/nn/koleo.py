"""A regulariser that spreads features evenly."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel import distributed


def koleo(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Kozachenko-Leonenko regulariser (Sablayrolles et al. 2018, arXiv 1806.03198; DINOv2 §4).

    -mean over i of log |x_i - x_nn(i)| of the unit vectors, nn(i) the nearest other one among those
    of all processes (in the official code of one, so that its strength depends on their number).

    Args:
        x: features [N, D], not yet of unit length; a lone one has no neighbour and costs 0.
    """
    if len(x) * distributed.world_size() < 2:
        return x.float().sum() * 0.0
    x = F.normalize(x.float(), dim=-1, eps=eps)
    everything = distributed.gather_with_grad(x)
    with torch.no_grad():
        own = torch.arange(len(x), device=x.device)[:, None] + distributed.rank() * len(x)
        nearest = (x @ everything.T).scatter_(1, own, -1.0).argmax(1)
    # torch's distance has eps inside, as the official code's.
    return -torch.log(F.pairwise_distance(x, everything[nearest], eps=eps) + eps).mean()
