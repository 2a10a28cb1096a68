"""The newest checkpoint of a run that can be resumed from: what is in it is checked, not trusted.

The digest of a checkpoint shows that it is as it was written, not that a run wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nolabel.engine.checkpoint import LoadedCheckpoint, load_checkpoint

_MOST_SKIPPED = 1_000_000  # steps in a row that were not finite; a run stops after a few


def load_state(folder: Path) -> LoadedCheckpoint:
    """The newest checkpoint that holds the state of a trainer; others are skipped and noted.

    Raises:
        FileDamaged: there is no checkpoint, or none can be used.
    """
    return load_checkpoint(folder, state_problem)


def state_problem(state: object) -> str:
    """What is wrong with a trainer's state as it was read; "" if nothing is."""
    if not isinstance(state, Mapping):
        return "it holds no named parts"
    learner = state.get("learner")
    if not isinstance(learner, Mapping):
        return "it has no learner"
    return (
        _tensors_problem(learner.get("method"))
        or _optimiser_problem(learner.get("optimiser"))
        or _random_problem(state.get("rng"))
        or ("" if _is_count(state.get("guard"), _MOST_SKIPPED) else "its guard is no count")
    )


def _tensors_problem(tensors: object) -> str:
    if not isinstance(tensors, Mapping) or not tensors:
        return "it has no weights"
    for name, value in tensors.items():
        if not isinstance(name, str):
            return "names of weights are no texts"
        if not isinstance(value, Tensor) or not _is_plain(value):
            return f"{name[:80]} is no plain tensor"
    return ""


def _optimiser_problem(optimiser: object) -> str:
    if not isinstance(optimiser, Mapping):
        return "it has no optimiser"
    groups, moments = optimiser.get("param_groups"), optimiser.get("state")
    if not isinstance(groups, list) or not isinstance(moments, Mapping):
        return "its optimiser has no groups and moments"
    for group in groups:
        numbers = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(numbers, list) or not all(isinstance(n, int) for n in numbers):
            return "a group of its optimiser has no list of parameters"
    for about in moments.values():
        if not isinstance(about, Mapping):
            return "moments of its optimiser have no names"
        if not all(_is_plain(v) for v in about.values() if isinstance(v, Tensor)):
            return "a moment of its optimiser is no plain tensor"
    return ""


def _random_problem(rng: object) -> str:
    if not isinstance(rng, Mapping) or not isinstance(rng.get("cuda"), list):
        return "it has no random state"
    if not all(isinstance(t, Tensor) for t in rng["cuda"]):
        return "its random state of GPUs is no list of tensors"
    cpu = rng.get("cpu")
    if not isinstance(cpu, Tensor):
        return "its random state is no tensor"
    try:
        torch.Generator().set_state(cpu)
    except (RuntimeError, TypeError):
        return "its random state is none of torch's"
    return ""


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu"


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < most
