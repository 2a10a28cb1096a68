"""A run on N devices, on paper: memory, communication, time, and how often to save.

What a step costs is counted, not looked up: the method takes one step here on a few images of
noise, on two shallow copies of the network, and what grows with depth and with the batch is
extrapolated (exactly linear, for a transformer's blocks are alike).  So heads, teachers, crops and
masks are in it, whatever the method.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nolabel import backbones, methods, recipes
from nolabel.backbones.base import recompute
from nolabel.errors import UsageError, unknown
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.nn.heads import count_parameters
from nolabel.testing import build_on, noise_batch
from nolabel.types import Clock

SHALLOW, DEEPER = 2, 3  # blocks of the copies that are counted
FEW, MORE = 2, 4  # images of theirs
NODE = 8  # devices that a fast network joins
BACKWARD = 2 / 3  # of a step, beside which gradients travel
HOURS = 50_000.0  # between faults of one device (Llama 3: 16,384 of them, one fault in 3 hours)
FULL = 0.92  # of a device's memory: what may be planned for
DISK = 2e9  # bytes a second that a checkpoint is written at


@dataclass(frozen=True)
class Device:
    """What makers say of a device."""

    flops: float  # a second, dense bf16 (fp16 where there is none)
    memory: float  # bytes
    inside: float  # bytes a second to a neighbour in its machine, one way
    outside: float  # bytes a second to other machines


DEVICES = {
    "b200": Device(2250e12, 180e9, 900e9, 50e9),
    "h200": Device(989e12, 141e9, 450e9, 50e9),
    "h100": Device(989e12, 80e9, 450e9, 50e9),
    "a100": Device(312e12, 80e9, 300e9, 25e9),
    "a100-40": Device(312e12, 40e9, 300e9, 25e9),
    "l40s": Device(362e12, 48e9, 32e9, 12.5e9),
    "rtx4090": Device(165e12, 24e9, 16e9, 1.25e9),
    "v100": Device(125e12, 32e9, 150e9, 12.5e9),
}


@dataclass(frozen=True)
class Counts:
    """What a step of b images on a network of some depth is made of."""

    flops: float  # forward and backward, teachers included
    kept: float  # bytes that the forward pass keeps for the backward pass
    trained: float  # numbers that are trained
    held: float  # numbers that are not: teachers, centres, queues
    units: float  # modules that `--shard-layers` puts together one at a time
    alike: float  # numbers in them
    fetched: float  # numbers that it puts together in a step: at each use, there and back

    def __add__(self, other: Counts) -> Counts:
        a, b = dataclasses.astuple(self), dataclasses.astuple(other)
        return Counts(*(x + y for x, y in zip(a, b, strict=True)))

    def __mul__(self, factor: float) -> Counts:
        return Counts(*(x * factor for x in dataclasses.astuple(self)))

    def __sub__(self, other: Counts) -> Counts:
        return self + other * -1.0


def count(method: Method, images: int, size: int, precision: str) -> Counts:
    """Counts one step of a method, at a time when nothing is frozen any more."""
    batch = noise_batch(type(method).views(method.options, size), images)
    fixed = {t.untyped_storage().data_ptr() for t in (*method.parameters(), *method.buffers())}
    fixed |= {v.untyped_storage().data_ptr() for v in batch.views.values()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage is met twice under one address

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in fixed and storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    units = [u for m in method.modules() for u in getattr(m, "shard_units", ())]
    alike = {u: sum(p.numel() for p in u.parameters()) for u in units}
    fetched = 0

    def use(unit: nn.Module, given: Any) -> None:
        nonlocal fetched
        back = torch.is_grad_enabled() and any(p.requires_grad for p in unit.parameters())
        fetched += alike[unit] * (2 if back else 1)

    hooks = [u.register_forward_pre_hook(use) for u in units]
    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    clock = Clock(600, 800, 1)
    with torch.random.fork_rng(devices=[]):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), cast:
            loss = method.step(batch, clock).loss
        loss.backward()
        for hook in hooks:
            hook.remove()
        # Fused attention is not counted by torch's counter; the plain one is, and costs as much.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            method.step(batch, clock).loss.backward()
    trained = count_parameters(method, trainable=True)
    held = sum(t.numel() for t in (*method.parameters(), *method.buffers())) - trained
    return Counts(
        float(counter.get_total_flops()), float(sum(kept.values())), trained, held,
        len(units), sum(alike.values()), fetched,
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
    """Counts of a step of so many images on the whole network; `again`: with activations that are
    computed again instead of kept."""
    depth, few, more, deeper = _copies(kind, options, backbone, size, patch, precision, again)
    an_image, a_layer = (more - few) * (1 / (MORE - FEW)), deeper - few
    base = few + an_image * (images - FEW)
    extra = dataclasses.replace(
        a_layer, flops=a_layer.flops * images / FEW, kept=a_layer.kept * images / FEW
    )
    return base + extra * (depth - SHALLOW)


def plan(
    method: str,
    *,
    backbone: str = "vit_small_patch16_224",
    devices: int = 1,
    gpu: str = "h200",
    image_size: int = 224,
    patch_size: int | None = None,
    batch_size: int | None = None,
    recipe: str = "paper",
    images: int = 1_281_167,
    epochs: int | None = None,
    shard: bool = False,
    shard_layers: bool = False,
    precision: str = "bf16",
    share: float = 0.4,
    price: float = 0.0,
) -> dict[str, Any]:
    """Memory, communication, throughput, time and cost of a run.

    Args:
        method: a built-in name or path/to/file.py:Class.
        backbone: a preset or timm's name.
        devices: how many, up to 1,024 and beyond.
        gpu: one of `DEVICES`.
        image_size, patch_size: pixels.
        batch_size: of one optimiser step, over all devices; None: the recipe's.
        recipe: paper or auto.
        images: of the data.
        epochs: None: the recipe's.
        shard: whether weights, gradients and moments are shared out (`--shard`).
        shard_layers: whether weights also come together a layer at a time (`--shard-layers`).
        precision: bf16 or fp32.
        share: of the device's peak that a step reaches (`nolabel bench step` measures it).
        price: of one device for an hour.

    Returns:
        Fractions of one, seconds, bytes.

    Raises:
        UsageError: an unknown device, or a batch that does not divide.
    """
    if gpu not in DEVICES:
        raise unknown("gpu", gpu, DEVICES)
    if devices < 1 or not 0 < share <= 1:
        raise UsageError(f"Got {devices} devices and a share of {share:g}; take 1 and 0.4, say.")
    if precision not in ("bf16", "fp32"):
        raise unknown("precision", precision, ("bf16", "fp32"))
    device, kind = DEVICES[gpu], methods.load(method)
    told = _told(kind, recipe, backbone, image_size, patch_size, images, batch_size)
    batch = told.batch_size
    if batch % devices:
        near = max(batch // devices, 1) * devices
        raise UsageError(
            f"A batch of {batch} cannot be cut into {devices} equal parts. Use --batch-size "
            f"{near} or {near + devices}."
        )
    own = batch // devices
    c = extrapolated(kind, told.options, backbone, image_size, patch_size, precision, own)
    if shard_layers and not shard:
        raise UsageError("--shard-layers is for runs with --shard. Use both, or none.")
    parts = devices if shard else 1
    memory = memory_of(c, told.optim.name, parts, shard_layers)
    needed = sum(memory.values())
    rate = share * device.flops / (1 if precision == "bf16" else 2)
    compute = c.flops / rate
    sent, waiting = communication(c, devices, shard, shard_layers, compute, device)
    step = compute + waiting
    saved = 4 * (c.trained + c.held) + memory["moments"] * parts
    writing = saved / DISK
    length = epochs or told.epochs
    steps = max(images // batch, 1) * length
    return {
        "method": method, "backbone": backbone, "image_size": image_size, "devices": devices,
        "gpu": gpu, "batch_size": batch, "batch_of_a_device": own, "shard": shard,
        "shard_layers": shard_layers,
        "precision": precision, "share_of_peak": share, "recipe": recipe,
        "numbers_trained": c.trained, "numbers_held": c.held,
        "flops_per_image": c.flops / own,
        "memory": memory, "memory_bytes": needed, "memory_of_device": device.memory,
        "fits": needed <= FULL * device.memory,
        "largest_batch_of_a_device": _largest(memory, own, FULL * device.memory),
        "bytes_sent_per_step": sent, "compute_seconds": compute, "waiting_seconds": waiting,
        "step_seconds": step, "images_per_second": batch / step,
        "epochs": length, "steps": steps, "seconds": steps * step,
        "device_hours": steps * step * devices / 3600,
        "cost": price * steps * step * devices / 3600,
        "checkpoint_bytes": saved,
        "checkpoint_every_seconds": math.sqrt(2 * writing * HOURS * 3600 / devices),
        "lost_to_faults": math.sqrt(2 * writing * devices / (HOURS * 3600)),
    }  # fmt: skip


def _told(
    kind: type[Method], recipe: str, backbone: str, size: int, patch: int | None, images: int,
    batch: int | None = None,
) -> Recipe:  # fmt: skip
    """What a method's recipe says for such a run on GPUs."""
    context = RecipeContext(
        image_size=size, images=images, batch_size=batch, conv=backbones.is_convolutional(backbone),
        patch_size=backbones.stride_of(backbone, patch), device="cuda",
    )  # fmt: skip
    return recipes.recipe(kind, "paper" if recipe == "paper" else "auto", context)


def memory_of(c: Counts, optimiser: str, parts: int, layers: bool) -> dict[str, float]:
    """Bytes that a step needs on a device, by what for.

    Args:
        c: of the images that a device has at once.
        optimiser: its name.
        parts: devices that share weights, gradients and moments; 1: each has its own.
        layers: of sharing: whether weights come together a layer at a time.
    """
    together = 4 * (2 * c.trained + c.held) if parts > 1 else 0.0
    if layers and c.units:  # of those that are alike, one in use and one on its way
        share_alike = c.alike / (c.trained + c.held)
        together *= 1 - share_alike + share_alike * 2 / c.units
    return {
        "weights": 4 * (c.trained + c.held) / parts,
        "gradients": 4 * c.trained / parts,
        "moments": (8 if optimiser == "adamw" else 4) * c.trained / parts,
        "put together": together,
        "activations": c.kept,
    }


def _largest(memory: dict[str, float], own: int, room: float) -> int:
    """Images of a device that fit into so many bytes, beside what does not depend on them."""
    fixed = sum(v for k, v in memory.items() if k != "activations")
    return max(int((room - fixed) / (memory["activations"] / own)), 0)


def communication(
    c: Counts, devices: int, shard: bool, layers: bool, compute: float, device: Device
) -> tuple[float, float]:
    """Bytes that a device sends in a step, and seconds for which it waits for them.

    In a ring of W, an average moves 2 (W - 1) / W of what is averaged; gradients travel beside the
    backward pass, and so do layers beside the layers before them; weights that are put together at
    the start do not.
    """
    if devices == 1:
        return 0.0, 0.0
    ring = (devices - 1) / devices
    speed = device.inside if devices <= NODE else device.outside
    gradients = 4 * c.trained * ring * (1 if shard else 2)
    weights = 4 * (c.trained + c.held) * ring if shard else 0.0
    beside = 0.0
    if layers:
        weights -= 4 * c.alike * ring
        beside = 4 * c.fetched * ring
    late = max(gradients / speed - BACKWARD * compute, 0.0)
    if beside:
        late = max((gradients + beside) / speed - compute, late)
    return gradients + weights + beside, weights / speed + late


def check(
    method: str, *, backbone: str, image_size: int, patch_size: int | None = None,
    recipe: str = "paper", images: int = 1_281_167,
) -> dict[str, float]:  # fmt: skip
    """How far the counting is off: a step of a deeper copy and a larger batch, here, predicted from
    the rate of a shallow one.

    Returns:
        seconds predicted and measured, their ratio less one, and the machine's rate in FLOP/s.
    """
    kind = methods.load(method)
    options = _told(kind, recipe, backbone, image_size, patch_size, images).options
    deep = backbones.depth_of(backbone, patch_size)
    found = []
    for depth, n in ((SHALLOW, FEW), (DEEPER + 1, MORE)):
        kwargs = {} if deep is None or deep <= DEEPER else {"depth": depth}
        model = build_on(kind, options, backbone, image_size, patch_size, kwargs)
        c = count(model, n, image_size, "fp32")
        batch = noise_batch(kind.views(options, image_size), n)
        times = []
        with torch.random.fork_rng(devices=[]):
            for _ in range(3):
                began = time.perf_counter()
                model.step(batch, Clock(600, 800, 1)).loss.backward()
                times.append(time.perf_counter() - began)
        found.append((c.flops, min(times)))
    (few, short), (many, long) = found
    predicted = many * short / few
    return {"predicted_seconds": predicted, "measured_seconds": long,
            "error": predicted / long - 1, "flops_per_second": many / long}  # fmt: skip


def describe(p: dict[str, Any], error: float | None = None) -> str:
    """The plan as lines to read."""
    gb = {k: v / 1e9 for k, v in p["memory"].items() if v}
    held = ", ".join(f"{k} {v:,.1f}" for k, v in gb.items())
    fit = "fits" if p["fits"] else "DOES NOT FIT"
    lines = [
        f"run         {p['method']} on {p['backbone']} at {p['image_size']} px, {p['devices']} x "
        f"{p['gpu']}, batch {p['batch_size']:,} ({p['batch_of_a_device']} a device)",
        f"network     {p['numbers_trained'] / 1e6:,.1f} M trained, "
        f"{p['numbers_held'] / 1e6:,.1f} M held; {p['flops_per_image'] / 1e9:,.0f} GFLOP an "
        "image, forward and backward",
        f"memory      {p['memory_bytes'] / 1e9:,.1f} of {p['memory_of_device'] / 1e9:,.0f} GB a "
        f"device: {fit} (GB: {held}); at most {p['largest_batch_of_a_device']:,} images a device",
        f"network use {p['bytes_sent_per_step'] / 1e9:,.2f} GB a device and step, waited for "
        f"{p['waiting_seconds'] * 1e3:,.0f} of {p['step_seconds'] * 1e3:,.0f} ms",
        f"speed       {p['images_per_second']:,.0f} images/s at {p['share_of_peak']:.0%} of the "
        "peak",
        f"length      {p['epochs']:,} epochs, {p['steps']:,} steps: {_hours(p['seconds'])}, "
        f"{p['device_hours']:,.0f} device hours" + (f", {p['cost']:,.0f} to pay" * bool(p["cost"])),
        f"checkpoints {p['checkpoint_bytes'] / 1e9:,.1f} GB, best every "
        f"{p['checkpoint_every_seconds'] / 60:,.0f} min; faults cost {p['lost_to_faults']:.1%}",
    ]
    if not p["fits"]:
        more = " --shard," * (not p["shard"]) + " --shard-layers," * (not p["shard_layers"])
        lines.append(f"to fit      try{more} --accumulate, a smaller batch, or more devices")
    if error is not None:
        lines.append(f"checked     a deeper copy's step here was predicted within {error:+.0%}")
    return "\n".join(lines)


def _hours(seconds: float) -> str:
    if seconds < 2 * 86400:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 86400:,.1f} days"
