"""How far an update moves the weights, and how far a teacher is from its student."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nolabel.distributed import tensor_norms
from nolabel.nn.state import Ema


class UpdateSize:
    """Relative size of an update: construct it before the update, call it after."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.parameters = list(parameters)
        self.before = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """|after - before| / |before| over all parameters, a scalar."""
        return _relative_distance([p.detach() for p in self.parameters], self.before)


def update_metrics(method: nn.Module, size: UpdateSize | None) -> dict[str, float]:
    """Metrics of an update: its relative size, and the largest teacher-student distance.

    Args:
        size: constructed before the update; None leaves "update_size" out.
    """
    out = {} if size is None or not size.before else {"update_size": float(size())}
    teachers = [m for m in method.modules() if isinstance(m, Ema) and m.followed]
    if teachers:
        distances = torch.stack([teacher_distance(m) for m in teachers])
        out["momentum_distance"] = float(distances.max())
    return out


@torch.no_grad()
def teacher_distance(teacher: Ema) -> Tensor:
    """|teacher - student| / |student| over all parameters of an EMA teacher and its student; a
    scalar."""
    student = [p.detach() for p in teacher.followed[0].parameters()]
    return _relative_distance([p.detach() for p in teacher.module.parameters()], student)


def _relative_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """|a - b| / |b| over all tensors, a scalar."""
    difference = [x - y for x, y in zip(a, b, strict=True)]
    distance, size = (
        torch.linalg.vector_norm(torch.stack(tensor_norms(tensors))) for tensors in (difference, b)
    )
    return distance / size.clamp_min(1e-12)
