"""`nolabel plan`: a run on N devices, on paper: memory, communication, time, how often to save.

The model of costs is `engine.cost`; here a step's counts become the figures of a whole run.
"""

from __future__ import annotations

import math
import time
from typing import Any, Literal

from nolabel import backbones, methods
from nolabel.config import Request, Run
from nolabel.engine import cost
from nolabel.engine.cost import DEEPER, FEW, FULL, GPUS, LATE, MORE, SHALLOW
from nolabel.engine.machine import Machine
from nolabel.engine.placeholder import Placeholder
from nolabel.engine.resolve import resolve
from nolabel.engine.synthetic import build_on, noise_batch
from nolabel.errors import UsageError, unknown
from nolabel.nn.random_state import preserve_rng

HOURS = 50_000.0  # between faults of one device (Llama 3: 16,384 of them, one fault in 3 hours)
DISK = 2e9  # bytes a second that a checkpoint is written at


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
    """Memory, communication, throughput, time and cost of a run.

    Args:
        method: a built-in name or path/to/file.py:Class.
        backbone: a preset or timm's name.
        devices: how many, up to 1,024 and beyond.
        gpu: one of `engine.cost.GPUS`.
        image_size, patch_size: pixels.
        batch_size: of one optimiser step, over all devices; None: the recipe's; "auto": the largest
            that the devices hold, within the paper's batch and an eighth of the data.
        recipe: paper, auto, or a config.yaml to take settings from.
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
        UsageError: an unknown device, impossible settings, or a batch that does not divide.
        OutOfMemory: with "auto", a single image of each device is too much.
    """
    if gpu not in GPUS:
        raise unknown("gpu", gpu, GPUS)
    if devices < 1 or not 0 < share <= 1:
        raise UsageError(f"Got {devices} devices and a share of {share:g}; take 1 and 0.4, say.")
    if precision not in ("bf16", "fp32"):
        raise unknown("precision", precision, ("bf16", "fp32"))
    device, kind = GPUS[gpu], methods.load(method)
    run = _resolved(
        method, images, Machine(on_gpu=True, processes=devices, room=FULL * device.memory),
        backbone=backbone, image_size=image_size, patch_size=patch_size, batch_size=batch_size,
        recipe=recipe, epochs=epochs, shard=shard, shard_layers=shard_layers, precision=precision,
    )  # fmt: skip
    s, batch = run.settings, run.settings.batch_size
    if batch % devices:
        near = max(batch // devices, 1) * devices
        raise UsageError(
            f"A batch of {batch} cannot be cut into {devices} equal parts. Use --batch-size "
            f"{near} or {near + devices}."
        )
    own = batch // devices
    c = cost.extrapolated(kind, run.options, backbone, image_size, s.patch_size, precision, own)
    parts = devices if shard else 1
    memory = cost.memory_of(c, run.optim, parts=parts, layers=shard_layers)
    needed = sum(memory.values())
    rate = share * device.flops / (1 if precision == "bf16" else 2)
    compute = c.flops / rate
    sent, waiting = cost.communication(
        c, devices, device, compute, shard=shard, layers=shard_layers
    )
    step = compute + waiting
    saved = cost.checkpoint_bytes(c.trained, c.held, run.optim)
    writing = saved / DISK
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
        "epochs": s.epochs, "steps": s.steps, "seconds": s.steps * step,
        "device_hours": s.steps * step * devices / 3600,
        "cost": price * s.steps * step * devices / 3600,
        "checkpoint_bytes": saved,
        "checkpoint_every_seconds": math.sqrt(2 * writing * HOURS * 3600 / devices),
        "lost_to_faults": math.sqrt(2 * writing * devices / (HOURS * 3600)),
    }  # fmt: skip


def _resolved(method: str, images: int, machine: Machine, **options: Any) -> Run:
    """A run as `pretrain` would resolve it, on that machine and so many images."""
    size = int(options["image_size"])
    request = Request.of(method, data="on paper", **options)
    return resolve(request, source=Placeholder(images, size), machine=machine, quiet=True).run


def _largest(memory: dict[str, float], own: int, room: float) -> int:
    """Images of a device that fit into so many bytes, beside what does not depend on them."""
    fixed = sum(v for k, v in memory.items() if k != "activations")
    return max(int((room - fixed) / (memory["activations"] / own)), 0)


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
    run = _resolved(
        method, images, Machine.here("cpu"), backbone=backbone, image_size=image_size,
        patch_size=patch_size, recipe=recipe,
    )  # fmt: skip
    options, patch_size = run.options, run.settings.patch_size
    deep = backbones.depth_of(backbone, patch_size)
    found = []
    for depth, n in ((SHALLOW, FEW), (DEEPER + 1, MORE)):
        kwargs = {} if deep is None or deep <= DEEPER else {"depth": depth}
        model = build_on(kind, options, backbone, image_size, patch_size, kwargs)
        c = cost.count(model, n, image_size, "fp32")
        batch = noise_batch(kind.views(options, image_size), n)
        times = []
        with preserve_rng():
            for _ in range(3):
                began = time.perf_counter()
                model.step(batch, LATE).loss.backward()
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
