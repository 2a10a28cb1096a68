"""`nolabel plan`: predicts memory, communication, time and cost of a run on N devices.

The cost model is `engine.cost`; this file turns the counts of a step into the figures of a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Literal

from nolabel import backbones, limits, methods
from nolabel.config import Request, Run
from nolabel.engine import cost
from nolabel.engine.cost import DEEPER, FEW, GPUS, LATE, MORE, SHALLOW, USABLE_SHARE, Counts, Gpu
from nolabel.engine.machine import Machine
from nolabel.engine.placeholder import Placeholder
from nolabel.engine.resolve import resolve
from nolabel.engine.synthetic import build_on, noise_batch
from nolabel.errors import UsageError, unknown
from nolabel.nn.random_state import preserve_rng

# Mean time between failures of one device in hours (Llama 3: 16,384 GPUs, a failure every 3 hours).
MTBF_HOURS = 50_000.0
DISK = 2e9  # bytes per second at which a checkpoint is written


def plan(
    method: str,
    *,
    backbone: str = "vit_small_patch16_224",
    devices: int = 1,
    gpu: str = "h200",
    image_size: int = 224,
    patch_size: int | None = None,
    batch_size: int | Literal["auto"] | None = None,
    recipe: str = "paper",
    images: int = 1_281_167,
    epochs: int | None = None,
    shard: bool = False,
    shard_layers: bool = False,
    precision: str = "bf16",
    share: float = 0.4,
    price: float = 0.0,
) -> dict[str, Any]:
    """Predicts memory, communication, throughput, time and cost of a run.

    Args:
        method: a built-in name or path/to/file.py:Class.
        backbone: name of a preset or of timm.
        devices: number of devices, up to 1,024 and beyond.
        gpu: one of `engine.cost.GPUS`.
        image_size, patch_size: sides in pixels.
        batch_size: of one optimiser step, over all devices; None: the recipe's; "auto": the largest
            that fits, at most the paper's batch and an eighth of the data.
        recipe: paper, auto, or a config.yaml to take settings from.
        images: in the data set.
        epochs: None: the recipe's.
        shard: whether weights, gradients and moments are sharded (`--shard`).
        shard_layers: whether weights are all-gathered a layer at a time (`--shard-layers`).
        precision: bf16 or fp32.
        share: of the GPU's peak FLOP/s that a step reaches (`nolabel bench step` measures it).
        price: of a GPU hour.

    Returns:
        What `--json` writes: fractions of one, seconds, bytes.

    Raises:
        UsageError: an unknown device, impossible settings, or a batch that does not divide.
        OutOfMemory: with "auto", one image a device does not fit.
    """
    _check(gpu, devices, share, precision)
    limits.positive("--images", images)
    device = GPUS[gpu]
    usable = USABLE_SHARE * device.memory
    run = _resolved(
        method, images, Machine(on_gpu=True, processes=devices, usable_memory=usable),
        backbone=backbone, image_size=image_size, patch_size=patch_size, batch_size=batch_size,
        recipe=recipe, epochs=epochs, shard=shard, shard_layers=shard_layers, precision=precision,
    )  # fmt: skip
    s, batch = run.settings, run.settings.batch_size
    if batch % devices:
        lower = max(batch // devices, 1) * devices
        raise UsageError(
            f"A batch of {batch} cannot be cut into {devices} equal parts. Use --batch-size "
            f"{lower} or {lower + devices}."
        )
    per_device = batch // devices
    counts = cost.extrapolated(
        methods.load(method), run.options, backbone, image_size, s.patch_size, precision, per_device
    )
    memory = cost.memory_of(
        counts, run.optim, shards=devices if shard else 1, by_layer=shard_layers
    )
    return {
        "method": method, "backbone": backbone, "image_size": image_size, "devices": devices,
        "gpu": gpu, "batch_size": batch, "batch_of_a_device": per_device, "shard": shard,
        "shard_layers": shard_layers,
        "precision": precision, "share_of_peak": share, "recipe": recipe,
        "trainable_parameters": counts.trainable, "other_parameters": counts.untrained,
        "flops_per_image": counts.flops / per_device,
        "memory": memory, "memory_bytes": sum(memory.values()), "memory_of_device": device.memory,
        "fits": sum(memory.values()) <= usable,
        "largest_batch_of_a_device": _largest(memory, per_device, usable),
        **_times(run, counts, devices, device, share, price),
    }  # fmt: skip


def _check(gpu: str, devices: int, share: float, precision: str) -> None:
    """Refuses machines that do not exist."""
    if gpu not in GPUS:
        raise unknown("gpu", gpu, GPUS)
    if devices < 1 or not 0 < share <= 1:
        raise UsageError(
            f"Got {devices} devices and a share of {share:g}; devices must be at least 1, the "
            "share above 0 and at most 1."
        )
    if precision not in ("bf16", "fp32"):
        raise unknown("precision", precision, ("bf16", "fp32"))


def _times(
    run: Run, counts: Counts, devices: int, device: Gpu, share: float, price: float
) -> dict[str, Any]:
    """Communication and time of a step and of the run, its price, and its checkpoints.

    Args:
        run: resolved, for its length, precision and sharding.
        counts: of a device's part of the batch.
        devices: number of devices.
        device: their model.
        share: of the peak FLOP/s that a step reaches.
        price: of a GPU hour.
    """
    s = run.settings
    compute = counts.flops / (share * device.flops / (1 if s.precision == "bf16" else 2))
    sent, waiting = cost.communication(
        counts, devices, device, compute, shard=s.shard, by_layer=s.shard_layers
    )
    step = compute + waiting
    device_hours = s.steps * step * devices / 3600
    checkpoint = cost.checkpoint_bytes(counts.trainable, counts.untrained, run.optim)
    writing, mtbf = checkpoint / DISK, MTBF_HOURS * 3600 / devices  # seconds
    return {
        "bytes_sent_per_step": sent, "compute_seconds": compute, "waiting_seconds": waiting,
        "step_seconds": step, "images_per_second": s.batch_size / step,
        "epochs": s.epochs, "steps": s.steps, "seconds": s.steps * step,
        "device_hours": device_hours, "cost": price * device_hours,
        "checkpoint_bytes": checkpoint,
        # Young's optimal interval, and the share of time lost at it.
        "checkpoint_every_seconds": math.sqrt(2 * writing * mtbf),
        "lost_to_faults": math.sqrt(2 * writing / mtbf),
    }  # fmt: skip


def _resolved(method: str, images: int, machine: Machine, **options: Any) -> Run:
    """The run as `pretrain` would resolve it, on that machine and that many images."""
    size = int(options["image_size"])
    request = Request.of(method, data="on paper", **options)
    return resolve(request, source=Placeholder(images, size), machine=machine, quiet=True).run


def _largest(memory: Mapping[str, float], images: int, usable: float) -> int:
    """The largest micro-batch of a device that fits.

    Args:
        memory: bytes by purpose at a micro-batch of `images`.
        images: of the device.
        usable: bytes of the device.
    """
    fixed = sum(v for k, v in memory.items() if k != "activations")
    return max(int((usable - fixed) / (memory["activations"] / images)), 0)


def check(
    method: str, *, backbone: str, image_size: int, patch_size: int | None = None,
    recipe: str = "paper", images: int = 1_281_167,
) -> dict[str, float]:  # fmt: skip
    """Compares a predicted with a measured step on this machine's CPU.

    A shallow copy with few images gives the machine's rate; it predicts the time of a deeper copy
    with more images.

    Returns:
        Seconds predicted and measured, their ratio less one, and the machine's rate in FLOP/s.
    """
    method_class = methods.load(method)
    run = _resolved(
        method, images, Machine.here("cpu"), backbone=backbone, image_size=image_size,
        patch_size=patch_size, recipe=recipe,
    )  # fmt: skip
    options, patch_size = run.options, run.settings.patch_size
    depth_of_network = backbones.depth_of(backbone, patch_size)
    fixed_depth = depth_of_network is None or depth_of_network <= DEEPER
    measured = []
    for depth, n in ((SHALLOW, FEW), (DEEPER + 1, MORE)):
        kwargs = {} if fixed_depth else {"depth": depth}
        model = build_on(method_class, options, backbone, image_size, patch_size, kwargs)
        flops = cost.count(model, n, image_size, "fp32").flops
        batch = noise_batch(method_class.views(options, image_size), n)
        times = []
        with preserve_rng():
            for _ in range(3):
                began = time.perf_counter()
                model.step(batch, LATE).loss.backward()
                times.append(time.perf_counter() - began)
        measured.append((flops, min(times)))
    (flops, seconds), (more_flops, more_seconds) = measured
    predicted = more_flops * seconds / flops
    return {"predicted_seconds": predicted, "measured_seconds": more_seconds,
            "error": predicted / more_seconds - 1,
            "flops_per_second": more_flops / more_seconds}  # fmt: skip


def describe(p: Mapping[str, Any], error: float | None = None) -> str:
    """The plan as lines to read.

    Args:
        p: from `plan`.
        error: from `check`, as a fraction.
    """
    memory = ", ".join(f"{k} {v / 1e9:,.1f}" for k, v in p["memory"].items() if v)
    fit = "fits" if p["fits"] else "DOES NOT FIT"
    lines = [
        f"run         {p['method']} on {p['backbone']} at {p['image_size']} px, {p['devices']} x "
        f"{p['gpu']}, batch {p['batch_size']:,} ({p['batch_of_a_device']} a device)",
        f"network     {p['trainable_parameters'] / 1e6:,.1f} M trainable and "
        f"{p['other_parameters'] / 1e6:,.1f} M other parameters, "
        f"{p['flops_per_image'] / 1e9:,.0f} GFLOP an image, forward and backward",
        f"memory      {p['memory_bytes'] / 1e9:,.1f} of {p['memory_of_device'] / 1e9:,.0f} GB a "
        f"device: {fit} (GB: {memory}); at most {p['largest_batch_of_a_device']:,} images a device",
        f"network use {p['bytes_sent_per_step'] / 1e9:,.2f} GB a device and step; waiting takes "
        f"{p['waiting_seconds'] * 1e3:,.0f} of {p['step_seconds'] * 1e3:,.0f} ms",
        f"speed       {p['images_per_second']:,.0f} images/s at {p['share_of_peak']:.0%} of the "
        "peak",
        f"length      {p['epochs']:,} epochs, {p['steps']:,} steps: {_hours(p['seconds'])}, "
        f"{p['device_hours']:,.0f} device hours" + (f", price {p['cost']:,.0f}" * bool(p["cost"])),
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
