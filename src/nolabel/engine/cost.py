"""The cost model: memory, FLOP and communication of a training step.

`nolabel plan`, `nolabel scan`, `--batch-size auto` and the description of a run all use it.

Costs are counted, not taken from a table: the method takes one step on a few noise images, with two
shallow copies of the network, and the result is extrapolated linearly in depth and batch size. This
is exact for a transformer, whose blocks are equal, and includes heads, teachers, crops and masks of
any method.

    weights      4 bytes for each element of parameters, buffers and (where given) frozen inputs
    gradients    4 bytes for each trainable element
    moments      4 bytes for each trainable element, times `MOMENTS` of the optimiser
    activations  tensors that autograd saves for the backward pass, and the batch itself
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

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

SHALLOW, DEEPER = 2, 3  # blocks of the two copies that are counted
FEW, MORE = 2, 4  # images of the batches that are counted
LATE = Clock(600, 800, 1)  # a step late enough that no layer is frozen any more
DEVICES_PER_NODE = 8  # joined by the fast interconnect
OVERLAP = 2 / 3  # share of a step (the backward pass) during which gradients can be sent
USABLE_SHARE = 0.92  # of a device's memory
# Optimiser state: elements for each trainable element, beside its gradient.
MOMENTS = {"adamw": 2, "sgd": 1, "lars": 1, "larc": 1}


@dataclass(frozen=True)
class Gpu:
    """A GPU's figures by its data sheet."""

    flops: float  # per second, dense bf16 (fp16 where there is none)
    memory: float  # bytes
    intra_node: float  # bytes per second to another GPU of its machine, one way
    inter_node: float  # bytes per second to other machines


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
    """The counts of one step, for a number of images and a depth of the network."""

    flops: float  # forward and backward, teachers included
    activations: float  # bytes
    trainable: float  # elements of trainable parameters
    untrained: float  # elements in checkpoints that are not trained: EMA teachers, centres, queues
    units: float  # modules that `--shard-layers` all-gathers one at a time
    in_units: float  # elements in these modules
    gathered: float  # elements all-gathered in a step: at each use, forward and backward

    def __add__(self, other: Counts) -> Counts:
        a, b = dataclasses.astuple(self), dataclasses.astuple(other)
        return Counts(*(x + y for x, y in zip(a, b, strict=True)))

    def __mul__(self, factor: float) -> Counts:
        return Counts(*(x * factor for x in dataclasses.astuple(self)))

    def __sub__(self, other: Counts) -> Counts:
        return self + other * -1.0


def moments_of(optim: Optim) -> int:
    """Elements of optimiser state for each trainable element, beside its gradient.

    Raises:
        UsageError: unknown optimiser.
    """
    if optim.name not in MOMENTS:
        raise unknown("optimiser", optim.name, MOMENTS)
    if optim.name == "sgd" and not optim.beta1:
        return 0  # torch stores no momentum buffer then
    return MOMENTS[optim.name]


def state_elements(method: nn.Module) -> tuple[int, int]:
    """Elements of a method's state: trainable ones, and others (frozen parameters, buffers). Frozen
    inputs are not counted: checkpoints do not contain them."""
    trainable = count_parameters(method, trainable=True)
    total = sum(t.numel() for t in (*method.parameters(), *method.buffers()))
    return trainable, total - trainable


def frozen_parameters(method: nn.Module) -> int:
    """Number of parameters of a method's frozen inputs (a teacher, a tokenizer)."""
    modules = [value.module for value in vars(method).values() if isinstance(value, Frozen)]
    return sum(count_parameters(module) for module in modules)


def state_memory(
    trainable: float, untrained: float, optim: Optim, *, frozen: float = 0.0, shards: int = 1
) -> dict[str, float]:
    """Bytes on a device that do not depend on the batch: weights, gradients, moments.

    Args:
        trainable: trainable elements.
        untrained: other elements of the method's state.
        optim: the optimiser.
        frozen: elements of frozen inputs, which are never sharded.
        shards: devices over which weights, gradients and moments are sharded; 1: not sharded.

    Raises:
        UsageError: unknown optimiser.
    """
    return {
        "weights": 4 * (trainable + untrained) / shards + 4 * frozen,
        "gradients": 4 * trainable / shards,
        "moments": 4 * moments_of(optim) * trainable / shards,
    }


def method_memory(method: nn.Module, optim: Optim) -> float:
    """`state_memory` of a method on one device, in total. Raises UsageError."""
    frozen = frozen_parameters(method)
    return sum(state_memory(*state_elements(method), optim, frozen=frozen).values())


def memory_of(
    counts: Counts, optim: Optim, *, shards: int = 1, by_layer: bool = False
) -> dict[str, float]:
    """Bytes that a step needs on a device, by purpose.

    Args:
        counts: of a device's micro-batch.
        optim: the optimiser.
        shards: devices over which weights, gradients and moments are sharded; 1: not sharded.
        by_layer: whether sharded weights are all-gathered a layer at a time (`--shard-layers`).

    Returns:
        Bytes of weights, gradients, moments, all-gathered weights and activations.
    """
    gathered = 4 * (2 * counts.trainable + counts.untrained) if shards > 1 else 0.0
    if by_layer and counts.units:  # two layers at a time: the one in use and the next
        share = counts.in_units / (counts.trainable + counts.untrained)
        gathered *= 1 - share + share * 2 / counts.units
    return {
        **state_memory(counts.trainable, counts.untrained, optim, shards=shards),
        "gathered weights": gathered,
        "activations": counts.activations,
    }


def checkpoint_bytes(trainable: float, untrained: float, optim: Optim) -> float:
    """Size of a checkpoint: weights, buffers and moments."""
    return 4 * (trainable + untrained) + 4 * moments_of(optim) * trainable


def communication(
    counts: Counts, devices: int, gpu: Gpu, compute: float, *, shard: bool, by_layer: bool
) -> tuple[float, float]:
    """Communication of a device in one step.

    A ring all-reduce over W devices sends 2 (W - 1) / W of the data. The gradients' all-reduce
    overlaps with the backward pass, and a layer's all-gather with the layers before it; an
    all-gather of all weights at the start of a step overlaps with nothing.

    Args:
        counts: of a device's micro-batch.
        devices: number of devices.
        gpu: their model.
        compute: seconds of a step without communication.
        shard: whether weights, gradients and moments are sharded (`--shard`).
        by_layer: whether weights are all-gathered a layer at a time (`--shard-layers`).

    Returns:
        Bytes sent, and the seconds of waiting that do not overlap with computation.
    """
    if devices == 1:
        return 0.0, 0.0
    ring = (devices - 1) / devices
    speed = gpu.intra_node if devices <= DEVICES_PER_NODE else gpu.inter_node
    gradients = 4 * counts.trainable * ring * (1 if shard else 2)
    weights = 4 * (counts.trainable + counts.untrained) * ring if shard else 0.0
    layers = 0.0
    if by_layer:
        weights -= 4 * counts.in_units * ring
        layers = 4 * counts.gathered * ring
    exposed = max(gradients / speed - OVERLAP * compute, 0.0)
    if layers:
        exposed = max((gradients + layers) / speed - compute, exposed)
    return gradients + weights + layers, weights / speed + exposed


def activation_bytes(method: Method, batch: Batch, precision: str = "fp32") -> int:
    """Bytes of activations of a step: the batch, and the tensors that autograd saves for the
    backward pass except parameters and buffers, each storage once.

    Args:
        method: on the device of the batch.
        batch: the input of the step.
        precision: fp32 or bf16.
    """
    state = {t.untyped_storage().data_ptr() for t in (*method.parameters(), *method.buffers())}
    saved: dict[int, Tensor] = {}  # holds the tensors, so that no address is reused

    def save(x: Tensor) -> Tensor:
        address = x.untyped_storage().data_ptr()
        if address not in state:
            saved.setdefault(address, x)
        return x

    views = list(batch.views.values())
    for view in views:
        save(view)
    device = views[0].device
    with (
        preserve_rng(),
        torch.autograd.graph.saved_tensors_hooks(save, lambda x: x),
        autocast(precision, device),
    ):
        method.step(batch, LATE)
    return sum(x.untyped_storage().nbytes() for x in saved.values())


def count(method: Method, images: int, size: int, precision: str) -> Counts:
    """Counts one step of a method on the CPU, at a step when no layer is frozen any more.

    Args:
        method: on the CPU.
        images: of the step.
        size: side of the images in pixels.
        precision: fp32 or bf16, for the activations.
    """
    batch = noise_batch(type(method).views(method.options, size), images)
    units = shard_units(method)
    unit_size = {u: count_parameters(u) for u in units}
    gathered = 0

    def add_gathers(unit: nn.Module, args: tuple[object, ...]) -> None:
        nonlocal gathered
        backward = torch.is_grad_enabled() and any(p.requires_grad for p in unit.parameters())
        gathered += unit_size[unit] * (2 if backward else 1)

    hooks = [u.register_forward_pre_hook(add_gathers) for u in units]
    activations = activation_bytes(method, batch, precision)
    for hook in hooks:
        hook.remove()
    # FlopCounterMode does not count every fused attention; the unfused one has the same FLOP.
    with (
        preserve_rng(),
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        method.step(batch, LATE).loss.backward()
    trainable, untrained = state_elements(method)
    return Counts(
        float(counter.get_total_flops()), float(activations), trainable, untrained,
        len(units), sum(unit_size.values()), gathered,
    )  # fmt: skip


@functools.lru_cache(maxsize=8)
def _copies(
    method_class: type[Method], options: object, backbone: str, size: int, patch: int | None,
    precision: str, checkpoint_activations: bool,
) -> tuple[int, Counts, Counts, Counts]:  # fmt: skip
    """Depth of the network, and the counts of a shallow copy with few and with more images, and of
    a deeper copy. A network that is not a stack of equal blocks is counted as it is."""

    def count_copy(depth: int | None, images: int) -> Counts:
        kwargs = {} if depth is None else {"depth": depth}
        with preserve_rng():
            method = build_on(method_class, options, backbone, size, patch, kwargs)
        recompute(method, checkpoint_activations)
        return count(method, images, size, precision)

    depth = backbones.depth_of(backbone, patch)
    if depth is None or depth <= DEEPER:
        few = count_copy(None, FEW)
        return SHALLOW, few, count_copy(None, MORE), few
    few, more = count_copy(SHALLOW, FEW), count_copy(SHALLOW, MORE)
    return depth, few, more, count_copy(DEEPER, FEW)


def extrapolated(
    method_class: type[Method], options: object, backbone: str, size: int, patch: int | None,
    precision: str, images: int, checkpoint_activations: bool = False,
) -> Counts:  # fmt: skip
    """Counts of a step with `images` images on the full network, extrapolated.

    Args:
        method_class, options: the method.
        backbone: name of a preset or of timm.
        size, patch: sides in pixels of image and patch.
        precision: fp32 or bf16.
        images: of the step.
        checkpoint_activations: whether the backward pass recomputes activations.
    """
    depth, few, more, deeper = _copies(
        method_class, options, backbone, size, patch, precision, checkpoint_activations
    )
    per_image, per_layer = (more - few) * (1 / (MORE - FEW)), deeper - few
    shallow = few + per_image * (images - FEW)
    layer = dataclasses.replace(
        per_layer,
        flops=per_layer.flops * images / FEW,
        activations=per_layer.activations * images / FEW,
    )
    return shallow + layer * (depth - SHALLOW)


def extrapolated_activations(
    method: Method, batch: Batch, images: int, precision: str = "fp32"
) -> float:
    """Bytes of activations of a step of `images` images, measured on a few images of a batch.

    Args:
        method: on the batch's device.
        batch: of at least one image; at most four are used.
        images: of the step to predict.
        precision: fp32 or bf16.
    """
    small, large = min(FEW, batch.size), min(MORE, batch.size)
    a = activation_bytes(method, first(batch, small), precision)
    if small == large:
        return a * images / small
    b = activation_bytes(method, first(batch, large), precision)
    return a + (b - a) / (large - small) * (images - small)


def first(batch: Batch, n: int) -> Batch:
    """The first n images of a batch, copied."""

    def cut(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:n].clone()

    return dataclasses.replace(
        batch, views={name: view[:, :n].clone() for name, view in batch.views.items()},
        keys=cut(batch.keys), labels=cut(batch.labels), masks=cut(batch.masks),
        text=None if batch.text is None else batch.text[:n],
    )  # fmt: skip
