"""`--compile`: torch.compile for the layers of the networks.

Layers are compiled, not the step: equal layers share one compiled graph, and a method stays plain
Python. Shapes are static: crops have few sizes, and masks hide the same number of patches in every
batch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from contextlib import AbstractContextManager

import torch
from torch import nn

from nolabel.backbones.base import HasUnits
from nolabel.backbones.blocks import Block
from nolabel.engine.log import say
from nolabel.errors import UsageError

BACKEND = "inductor"


def compile_layers(method: nn.Module, device: torch.device) -> int:
    """Marks the layers for compilation at their first use.

    Returns:
        The number of layers.

    Raises:
        UsageError: there is no compiler for the device.
    """
    if device.type == "cuda":
        available, compiler = (
            importlib.util.find_spec("triton") is not None,
            "Triton (pip install triton)",
        )
    else:
        names = (os.environ.get("CXX", ""), "g++", "clang++")
        available, compiler = (
            any(shutil.which(n) for n in names if n),
            "a C++ compiler (g++ or clang++)",
        )
    if not available:
        raise UsageError(
            f"--compile needs {compiler}, which was not found. Install it, or leave --compile out."
        )
    layers: list[nn.Module] = []
    for module in method.modules():
        if isinstance(module, Block):
            layers.append(module)
        elif isinstance(module, HasUnits):
            layers += module.compile_units
    for layer in layers:
        layer.compile(dynamic=False, backend=BACKEND)
    say(f"{len(layers)} layers are compiled: the first steps take a minute or two.")
    return len(layers)


def without_compile(compiled: bool) -> AbstractContextManager[None]:
    """A context in which compiled layers run in eager mode: the probe's batches have other shapes,
    which would reach torch.compile's limit of recompilations.

    Args:
        compiled: whether there are compiled layers.
    """
    if not compiled:
        return contextlib.nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
