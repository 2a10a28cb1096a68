"""`--compile`: the networks' layers, by torch.compile.

Layers are compiled, not the step. The layers of a network are alike and share one compiled graph,
and a method stays plain Python. Shapes do not change: crops have few sizes, and masks hide the same
number of patches in every batch.
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
        able, needs = importlib.util.find_spec("triton") is not None, "Triton (pip install triton)"
    else:
        names = (os.environ.get("CXX", ""), "g++", "clang++")
        able, needs = any(shutil.which(n) for n in names if n), "a C++ compiler (g++ or clang++)"
    if not able:
        raise UsageError(
            f"--compile needs {needs}, and there is none. Leave it out, or install it."
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
    """A context in which layers run eagerly: a probe's batches have other sizes, and would use up
    the compiler's limit of shapes.

    Args:
        compiled: whether there are compiled layers at all.
    """
    if not compiled:
        return contextlib.nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
