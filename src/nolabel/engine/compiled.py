"""`--compile`: the networks' layers, by torch.compile.

Layers are compiled, not the step.  Those of a network are alike and share what was compiled, and a
method stays the plain Python that it is.  Their shapes do not change: crops have few sizes, and
masks hide the same number of patches in every batch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from typing import Any

import torch
from torch import nn

from nolabel.backbones.blocks import Block
from nolabel.engine.log import say
from nolabel.errors import UsageError

BACKEND = "inductor"


def compile_layers(method: nn.Module, device: torch.device) -> int:
    """Has the layers compiled when they are first used; how many they are.

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
    layers = [
        layer for module in method.modules()
        for layer in (
            [module] if isinstance(module, Block) else getattr(module, "compile_units", ())
        )
    ]  # fmt: skip
    for layer in layers:
        layer.compile(dynamic=False, backend=BACKEND)
    say(f"{len(layers)} layers are compiled: the first steps take a minute or two.")
    return len(layers)


def plainly(compiled: bool) -> Any:
    """A context in which nothing is compiled: looks have batches of other sizes, and would use up
    what is kept of shapes."""
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
