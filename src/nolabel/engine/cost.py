"""What a run costs: memory, work and communication. The only such model in the project.

`nolabel plan`, `nolabel scan`, `--batch-size auto` and the description of a run all use it.

A step is counted, not looked up: the method takes one step on a few images of noise, on two shallow
copies of the network, and what grows with depth and with the batch is extrapolated. This is exact
for a transformer, whose blocks are equal. Heads, teachers, crops and masks are therefore included,
whatever the method.

    weights      4 bytes a number: parameters and buffers, and frozen inputs where they are given
    gradients    4 bytes a number that is trained
    moments      4 bytes a number that is trained, times `MOMENTS` of the optimiser
    activations  what the forward pass keeps for the backward pass, and the batch itself
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nolabel import backbones
from nolabel.backbones.base import recompute, shard_units
from nolabel.device import autocast
from nolabel.engine.synthetic import build_on, noise_batch
from nolabel.errors import unknown
from nolabel.methods.base import Method
from nolabel.nn.frozen import Frozen
from nolabel.nn.parameters import count_parameters
from nolabel.nn.random_state import preserve_rng
from nolabel.types import Batch, Clock, Optim

SHALLOW, DEEPER = 2, 3  # blocks of the copies that are counted
FEW, MORE = 2, 4  # images of theirs
LATE = Clock(600, 800, 1)  # a step at which nothing is frozen any more
NODE = 8  # devices that a fast network joins
BACKWARD = 2 / 3  # share of a step during which gradients can be sent
FULL = 0.92  # share of a device's memory that may be planned for
# Numbers that an optimiser keeps for each number that is trained, beside its gradient.
MOMENTS = {"adamw": 2, "sgd": 1, "lars": 1, "larc": 1}


@dataclass(frozen=True)
class Gpu:
    """What makers state about a GPU."""

    flops: float  # a second, dense bf16 (fp16 where there is none)
    memory: float  # bytes
    inside: float  # bytes a second to a neighbour in its machine, one way
    outside: float  # bytes a second to other machines


GPUS = {
    "b200": Gpu(2250e12, 180e9, 900e9, 50e9),
    "h200": Gpu(989e12, 141e9, 450e9, 50e9),
    "h100": Gpu(989e12, 80e9, 450e9, 50e9),
    "a100": Gpu(312e12, 80e9, 300e9, 25e9),
    "a100-40": Gpu(312e12, 40e9, 300e9, 25e9),
    "l40s": Gpu(362e12, 48e9, 32e9, 12.5e9),
    "rtx4090": Gpu(165e12, 24e9, 16e9, 1.25e9),
    "v100": Gpu(125e12, 32e9, 150e9, 12.5e9),
}


@dataclass(frozen=True)
class Counts:
    """What a step of some images on a network of some depth is made of."""

    flops: float  # forward and backward, teachers included
    kept: float  # bytes of activations
    trained: float  # numbers that are trained
    held: float  # numbers that are not, but are saved: teachers, centres, queues
    units: float  # modules that `--shard-layers` gathers one at a time
    in_units: float  # numbers in them
    gathered: float  # numbers that it gathers in a step: at each use, forward and backward

    def __add__(self, other: Counts) -> Counts:
        a, b = dataclasses.astuple(self), dataclasses.astuple(other)
        return Counts(*(x + y for x, y in zip(a, b, strict=True)))

    def __mul__(self, factor: float) -> Counts:
        return Counts(*(x * factor for x in dataclasses.astuple(self)))

    def __sub__(self, other: Counts) -> Counts:
        return self + other * -1.0


def moments_of(optim: Optim) -> int:
    """Numbers that the optimiser keeps for each trained number, beside its gradient.

    Raises:
        UsageError: unknown optimiser.
    """
    if optim.name not in MOMENTS:
        raise unknown("optimiser", optim.name, MOMENTS)
    if optim.name == "sgd" and not optim.beta1:
        return 0  # torch keeps no momentum then
    return MOMENTS[optim.name]


def numbers_of(method: nn.Module) -> tuple[int, int]:
    """Numbers of a method's state: those that are trained, and those that are not (frozen
    parameters and buffers). Frozen inputs, which are never saved, are not among them."""
    trained = count_parameters(method, trainable=True)
    return trained, sum(t.numel() for t in (*method.parameters(), *method.buffers())) - trained


def frozen_numbers(method: nn.Module) -> int:
    """Parameters of the frozen networks that a method holds (a teacher, a tokenizer)."""
    held = [value.module for value in vars(method).values() if isinstance(value, Frozen)]
    return sum(count_parameters(module) for module in held)


def state_memory(
    trained: float, held: float, optim: Optim, *, frozen: float = 0.0, parts: int = 1
) -> dict[str, float]:
    """Bytes on a device that do not depend on the batch: weights, gradients, moments.

    Args:
        trained: numbers that are trained.
        held: numbers of the method that are not.
        optim: the optimiser.
        frozen: numbers of frozen inputs, which every device has as a whole.
        parts: devices that share weights, gradients and moments; 1: each has its own.

    Raises:
        UsageError: unknown optimiser.
    """
    return {
        "weights": 4 * (trained + held) / parts + 4 * frozen,
        "gradients": 4 * trained / parts,
        "moments": 4 * moments_of(optim) * trained / parts,
    }


def memory_of(
    counts: Counts, optim: Optim, *, parts: int = 1, layers: bool = False
) -> dict[str, float]:
    """Bytes that a step needs on a device, by what for.

    Args:
        counts: of the images that a device has at once.
        optim: the optimiser.
        parts: devices that share weights, gradients and moments; 1: each has its own.
        layers: of sharing: whether weights are gathered a layer at a time.
    """
    gathered = 4 * (2 * counts.trained + counts.held) if parts > 1 else 0.0
    if layers and counts.units:  # of equal ones, one in use and one on its way
        share = counts.in_units / (counts.trained + counts.held)
        gathered *= 1 - share + share * 2 / counts.units
    return {
        **state_memory(counts.trained, counts.held, optim, parts=parts),
        "put together": gathered,
        "activations": counts.kept,
    }


def checkpoint_bytes(trained: float, held: float, optim: Optim) -> float:
    """Size of a checkpoint: weights, buffers and moments."""
    return 4 * (trained + held) + 4 * moments_of(optim) * trained


def communication(
    counts: Counts, devices: int, gpu: Gpu, compute: float, *, shard: bool, layers: bool
) -> tuple[float, float]:
    """Bytes that a device sends in a step, and seconds for which it waits for them.

    In a ring of W, an average moves 2 (W - 1) / W of what is averaged. Gradients travel during the
    backward pass, and layers during the layers before them; weights that are gathered at the start
    do not.

    Args:
        counts: of the images that a device has at once.
        devices: how many.
        gpu: what they are.
        compute: seconds of a step without communication.
        shard: whether weights, gradients and moments are shared (`--shard`).
        layers: whether weights are gathered a layer at a time (`--shard-layers`).
    """
    if devices == 1:
        return 0.0, 0.0
    ring = (devices - 1) / devices
    speed = gpu.inside if devices <= NODE else gpu.outside
    gradients = 4 * counts.trained * ring * (1 if shard else 2)
    weights = 4 * (counts.trained + counts.held) * ring if shard else 0.0
    during = 0.0
    if layers:
        weights -= 4 * counts.in_units * ring
        during = 4 * counts.gathered * ring
    late = max(gradients / speed - BACKWARD * compute, 0.0)
    if during:
        late = max((gradients + during) / speed - compute, late)
    return gradients + weights + during, weights / speed + late


def kept_bytes(method: Method, batch: Batch, precision: str = "fp32") -> int:
    """Bytes of activations of a step: the batch, and what the forward pass keeps for the backward
    pass beside parameters and buffers, each storage once.

    Args:
        method: on the device of the batch.
        batch: what the step gets.
        precision: fp32 or bf16.
    """
    own = {t.untyped_storage().data_ptr() for t in (*method.parameters(), *method.buffers())}
    kept: dict[int, Tensor] = {}  # tensors are held, so that no address is used twice

    def keep(x: Tensor) -> Tensor:
        address = x.untyped_storage().data_ptr()
        if address not in own:
            kept.setdefault(address, x)
        return x

    views = list(batch.views.values())
    for view in views:
        keep(view)
    device = views[0].device
    with (
        preserve_rng(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        autocast(precision, device),
    ):
        method.step(batch, LATE)
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def count(method: Method, images: int, size: int, precision: str) -> Counts:
    """Counts one step of a method on the CPU, at a time when nothing is frozen any more.

    Args:
        method: on the CPU.
        images: of the step.
        size: side of its images in pixels.
        precision: fp32 or bf16, for the activations.
    """
    batch = noise_batch(type(method).views(method.options, size), images)
    units = shard_units(method)
    in_unit = {u: count_parameters(u) for u in units}
    gathered = 0

    def use(unit: nn.Module, args: tuple[object, ...]) -> None:
        nonlocal gathered
        back = torch.is_grad_enabled() and any(p.requires_grad for p in unit.parameters())
        gathered += in_unit[unit] * (2 if back else 1)

    hooks = [u.register_forward_pre_hook(use) for u in units]
    kept = kept_bytes(method, batch, precision)
    for hook in hooks:
        hook.remove()
    # torch's counter does not know fused attention; the plain one does the same products.
    with (
        preserve_rng(),
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        method.step(batch, LATE).loss.backward()
    trained, held = numbers_of(method)
    return Counts(
        float(counter.get_total_flops()), float(kept), trained, held,
        len(units), sum(in_unit.values()), gathered,
    )  # fmt: skip


@functools.lru_cache(maxsize=8)
def _copies(
    kind: type[Method], options: Any, backbone: str, size: int, patch: int | None, precision: str,
    again: bool,
) -> tuple[int, Counts, Counts, Counts]:  # fmt: skip
    """Depth of the whole network, and the counts of a shallow copy with few and with more images,
    and of a deeper one; a network without a stack of equal blocks is its own copy."""

    def at(depth: int | None, n: int) -> Counts:
        kwargs = {} if depth is None else {"depth": depth}
        with preserve_rng():
            method = build_on(kind, options, backbone, size, patch, kwargs)
        recompute(method, again)
        return count(method, n, size, precision)

    depth = backbones.depth_of(backbone, patch)
    if depth is None or depth <= DEEPER:
        few = at(None, FEW)
        return SHALLOW, few, at(None, MORE), few
    return depth, at(SHALLOW, FEW), at(SHALLOW, MORE), at(DEEPER, FEW)


def extrapolated(
    kind: type[Method], options: Any, backbone: str, size: int, patch: int | None,
    precision: str, images: int, again: bool = False,
) -> Counts:  # fmt: skip
    """Counts of a step of so many images on the whole network.

    Args:
        kind, options: the method.
        backbone: a preset or timm's name.
        size, patch: sides in pixels of image and patch.
        precision: fp32 or bf16.
        images: of the step.
        again: whether activations are computed again instead of kept (`--checkpoint-activations`).
    """
    depth, few, more, deeper = _copies(kind, options, backbone, size, patch, precision, again)
    an_image, a_layer = (more - few) * (1 / (MORE - FEW)), deeper - few
    base = few + an_image * (images - FEW)
    extra = dataclasses.replace(
        a_layer, flops=a_layer.flops * images / FEW, kept=a_layer.kept * images / FEW
    )
    return base + extra * (depth - SHALLOW)


def activations(method: Method, batch: Batch, images: int, precision: str = "fp32") -> float:
    """Bytes of activations of a step of `images` images, measured on a few images of a batch.

    Args:
        method: on the batch's device.
        batch: at least one image; four are looked at.
        images: of the step that is asked for.
        precision: fp32 or bf16.
    """
    small, large = min(FEW, batch.size), min(MORE, batch.size)
    a = kept_bytes(method, _first(batch, small), precision)
    if small == large:
        return a * images / small
    b = kept_bytes(method, _first(batch, large), precision)
    return a + (b - a) / (large - small) * (images - small)


def _first(batch: Batch, n: int) -> Batch:
    """The first n images of a batch, as tensors of their own."""

    def some(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:n].clone()

    return dataclasses.replace(
        batch, views={name: view[:, :n].clone() for name, view in batch.views.items()},
        keys=some(batch.keys), labels=some(batch.labels), masks=some(batch.masks),
        text=None if batch.text is None else batch.text[:n],
    )  # fmt: skip
