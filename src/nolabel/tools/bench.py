"""`nolabel bench`: measures the throughput of data loading, training steps and embedding."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nolabel.config import Request
from nolabel.data.loader import make_loader
from nolabel.data.read_ahead import read_images
from nolabel.data.source import Source
from nolabel.data.stages import measure_stages
from nolabel.device import cpu_cores, pick_device
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import chunks, embed_chunks
from nolabel.engine.build import build, plan_of
from nolabel.engine.calibrate import measure
from nolabel.engine.cost import count
from nolabel.engine.environment import environment
from nolabel.engine.resolve import resolve
from nolabel.errors import BadImage, DataError, UsageError, unknown
from nolabel.views import FastViews

_FEW_BYTES = 2**29  # of decoded images: a batch of photographs of 24 megapixels takes 18 GB
_WARM_UP = 2  # batches of each worker before timing starts


def bench_data(
    source: Source,
    method: str = "dino",
    *,
    image_size: int | None = None,
    workers: int = 0,
    batch_size: int | Literal["auto"] = 64,
    seconds: float = 5.0,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Images per second from the source to batches on the device, and the time of each stage.

    Args:
        source: where the images come from.
        method: its views are made, with the automatic recipe.
        image_size: side of the large views in pixels; None: chosen by the data.
        workers: data loading processes; 0: this process, in one thread.
        batch_size: images in a batch; "auto": as in training.
        seconds: how long the complete loading is measured, after a warm-up.
        device: where the batches go: "auto", "cpu" or "cuda".
        seed: of the order of the images.

    Returns:
        Rates in images per second, in total and per core used, seconds per image of each stage (of
        one core), the views, and the machine.

    Raises:
        UsageError: a number out of range.
        DataError: the images cannot be read.
    """
    for name, value, minimum in (("workers", workers, 0), ("batch-size", batch_size, 1)):
        if value != "auto" and value < minimum:
            raise UsageError(f"--{name} is {value}; it must be at least {minimum}.")
    if seconds <= 0:
        raise UsageError(f"--seconds is {seconds:g}; it must be above 0.")
    if batch_size != "auto":
        batch_size = min(batch_size, len(source))
    options = {"data": source.name, "out": "unused", "image_size": image_size, "device": device,
             "batch_size": batch_size}  # fmt: skip
    run = resolve(Request.of(method, **options), source=source, quiet=True).run
    batch_size = run.settings.batch_size
    plan, where = plan_of(run), pick_device(run.settings.device, fallback=True)
    stages = measure_stages(source, plan, device=where, workers=workers, seed=seed)
    threads = torch.get_num_threads()
    if workers == 0:
        torch.set_num_threads(1)
    try:
        rate = _loader_rate(
            source, FastViews(plan, seed), workers, batch_size, seconds, where, seed
        )
    finally:
        torch.set_num_threads(threads)
    cores = cpu_cores()
    used = min(max(workers, 1), cores)
    return {
        "images_per_second": rate,
        "images_per_second_per_core": rate / used,
        "stages": {
            name: {"seconds_per_image": each, "images_per_second": 1 / each if each else None,
                   "share": each / (sum(stages.values()) or 1)}
            for name, each in stages.items()
        },
        "recipe": method, "views": plan.describe(), "image_size": run.settings.image_size,
        "data": source.name, "images": len(source), "workers": workers, "cores_used": used,
        "batch_size": batch_size, "device": str(where), "environment": environment(),
    }  # fmt: skip


def _loader_rate(
    source: Source,
    views: FastViews,
    workers: int,
    batch_size: int,
    seconds: float,
    device: torch.device,
    seed: int,
) -> float:
    """Images per second of the loader that training uses, batches on the device included."""
    loader = make_loader(
        source, views, seed=seed, batch_size=batch_size, start_step=0, total_steps=10**9,
        workers=workers, pin=device.type == "cuda",
    )  # fmt: skip

    def batches() -> Generator[int, None, None]:
        for batch in loader:
            yield batch.to(device).size

    return _rate_of(batches(), seconds, device, warm_up=_WARM_UP * max(workers, 1))


def bench_step(
    method: str,
    *,
    backbone: str = "vit_small_patch16_224",
    image_size: int = 224,
    patch_size: int | None = None,
    batch_size: int | Literal["auto"] = 4,
    precision: str = "auto",
    device: str = "auto",
    recipe: str = "paper",
    teacher: str | None = None,
) -> dict[str, Any]:
    """Speed of a method's training step with its update, and the share of the peak FLOP/s.

    Args:
        method: a built-in name or path/to/file.py:Class.
        backbone: a preset or timm's name.
        image_size, patch_size: sides in pixels.
        batch_size: images of a step; "auto": as many as fit into memory.
        precision: auto (both are measured), fp32 or bf16.
        device: auto, cpu or cuda.
        recipe: auto or paper.
        teacher: for methods that learn from a frozen network.

    Returns:
        Images per second, FLOP per image and per second, the device's measured peak at the
        precision, and the share of it; seconds of a step at each precision.
    """
    options = {"data": "creatures", "out": "unused", "image_size": image_size, "backbone": backbone,
             "patch_size": patch_size, "batch_size": batch_size, "precision": precision,
             "device": device, "recipe": recipe, "steps": 1000, "workers": 0,
             "teacher": teacher}  # fmt: skip
    options = {k: v for k, v in options.items() if v is not None}
    resolved = resolve(Request.of(method, **options))
    run, source = resolved.run, resolved.source
    where, batch_size = pick_device(run.settings.device, fallback=True), run.settings.batch_size
    built = build(resolved)
    precisions = ("fp32", "bf16") if precision == "auto" else (precision,)
    found = measure(
        run, built.method.to(where), built.plan, source, where, precisions=precisions, whole=True
    )
    best = min(found.times, key=lambda k: found.times[k])
    peak_bytes = torch.cuda.max_memory_allocated() if where.type == "cuda" else None
    flops = count(built.method.cpu(), 2, image_size, "fp32").flops / 2  # copies of it were measured
    peak, rate = peak_flops(where, best), batch_size / found.times[best]
    return {
        "method": method, "backbone": backbone, "image_size": image_size,
        "batch_size": batch_size, "device": str(where), "precision": best,
        "step_seconds": found.times, "images_per_second": rate,
        "flops_per_image": flops, "flops_per_second": flops * rate,
        "peak_flops_per_second": peak, "share_of_peak": flops * rate / peak,
        "peak_bytes": peak_bytes, "data_seconds": found.data, "environment": environment(),
    }  # fmt: skip


def bench_embed(
    encoder: Encoder,
    source: Source,
    *,
    batch_size: int = 256,
    precision: str = "auto",
    seconds: float = 5.0,
) -> dict[str, Any]:
    """Speed of embedding, stage by stage, and the share of the peak FLOP/s.

    Args:
        encoder: on its device.
        source: the images; a small set is read repeatedly.
        batch_size: images of a batch.
        precision: auto (both are measured), fp32 or bf16.
        seconds: how long each stage is measured, after a warm-up.

    Returns:
        Images per second of reading alone and preparing alone, and at each precision of the bare
        network on one prepared batch and of the complete path; FLOP per image and per second, the
        device's measured peak at the faster precision, and the share of it.

    Raises:
        UsageError: a number out of range or an unknown precision.
        DataError: no image of the first batch could be read.
    """
    if batch_size < 1 or seconds <= 0:
        raise UsageError(
            f"--batch-size must be at least 1 and --seconds above 0, got {batch_size} and "
            f"{seconds:g}."
        )
    if precision not in ("auto", "fp32", "bf16"):
        raise unknown("precision", precision, ("auto", "fp32", "bf16"))
    batch_size = min(batch_size, len(source))
    first = source.images(np.arange(batch_size)) if source.in_memory else _few(source, batch_size)
    batch_size = min(batch_size, max(len(first), 1))
    if not len(first):
        raise DataError(f"No image of the first batch of {source.name!r} can be read.")
    stages = _stages(encoder, source, first, batch_size)
    device, before = encoder.device, encoder.precision
    rates = {name: _rate_of(stages[name](), seconds, device) for name in ("read", "prepare")}
    by_precision: dict[str, dict[str, float]] = {}
    try:
        for p in ("fp32", "bf16") if precision == "auto" else (precision,):
            encoder.precision = p
            by_precision[p] = {
                name: _rate_of(stages[name](), seconds, device) for name in ("network", "whole")
            }
        best = max(by_precision, key=lambda p: by_precision[p]["whole"])
        encoder.precision = best
        # FlopCounterMode does not count every fused attention; the unfused one has the same FLOP.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            images = next(stages["network"]())
    finally:
        encoder.precision = before
    flops, peak = counter.get_total_flops() / images, peak_flops(device, best)
    rate = by_precision[best]["whole"]
    return {
        "encoder": encoder.name, "image_size": encoder.size, "data": source.name,
        "images": len(source), "batch_size": batch_size, "device": str(device), "precision": best,
        "images_per_second": rate, "stages": rates, "precisions": by_precision,
        "share_of_network": rate / by_precision[best]["network"], "flops_per_image": flops,
        "flops_per_second": flops * rate, "peak_flops_per_second": peak,
        "share_of_peak": flops * rate / peak, "environment": environment(),
    }  # fmt: skip


def _few(source: Source, batch_size: int) -> list[np.ndarray]:
    """The first images of a source that can be read: a batch, or as many as take `_FEW_BYTES`."""
    few: list[np.ndarray] = []
    with contextlib.closing(read_images(source, range(batch_size))) as images:
        for image in images:
            if not isinstance(image, BadImage):
                few.append(image)
            if sum(i.nbytes for i in few) > _FEW_BYTES:
                break
    return few


def _stages(
    encoder: Encoder, source: Source, images: np.ndarray | list[np.ndarray], batch_size: int
) -> dict[str, Callable[[], Generator[int, None, None]]]:
    """The stages of embedding by name; each is a generator without end of numbers of images.

    Args:
        encoder: that embeds.
        source: that is read.
        images: of one batch, uint8 [B, H, W, C] or B of [H, W, C], for the stages after reading.
        batch_size: images of a batch.
    """
    x = encoder.prepare_pixels(images)

    def read() -> Generator[int, None, None]:
        while True:
            for c in chunks(source, batch_size, lambda images, _: torch.empty(len(images))):
                yield len(c.keys) + len(c.skipped)

    def prepare() -> Generator[int, None, None]:
        while True:
            yield len(encoder.prepare_pixels(images))

    def network() -> Generator[int, None, None]:
        while True:
            with encoder.evaluating():
                encoder.backbone(x)
            yield len(x)

    def whole() -> Generator[int, None, None]:
        while True:
            for c, _ in embed_chunks(encoder, source, batch_size):
                yield len(c.keys) + len(c.skipped)

    return {"read": read, "prepare": prepare, "network": network, "whole": whole}


def _rate_of(
    work: Generator[int, None, None], seconds: float, device: torch.device, warm_up: int = 1
) -> float:
    """Images per second of a generator that yields the number of images of each step; the first
    `warm_up` steps are not timed."""
    with contextlib.closing(work):
        for _ in range(warm_up):
            next(work)
        done, start = 0, time.perf_counter()
        while done == 0 or time.perf_counter() - start < seconds:
            done += next(work)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return done / (time.perf_counter() - start)


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product, the best of six."""
    n = 8192 if device.type == "cuda" else 1536
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else None)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def describe_step(found: dict[str, Any]) -> str:
    """The outcome of `bench_step` as lines to read."""
    times = ", ".join(f"{k} {v * 1e3:,.0f} ms" for k, v in found["step_seconds"].items())
    lines = [
        f"step        {found['method']} on {found['backbone']} at {found['image_size']} px, "
        f"{found['batch_size']} images, {found['device']}: {times}",
        f"speed       {found['images_per_second']:,.2f} images/s in {found['precision']}",
        f"work        {found['flops_per_image'] / 1e9:,.1f} GFLOP an image, "
        f"{found['flops_per_second'] / 1e12:,.3f} TFLOP/s",
        f"machine     {found['peak_flops_per_second'] / 1e12:,.3f} TFLOP/s in a matrix product; "
        f"the step reaches {found['share_of_peak']:.0%} of it",
    ]
    if found["peak_bytes"]:
        lines.append(f"memory      {found['peak_bytes'] / 1e9:,.2f} GB at most")
    return "\n".join(lines)


def describe_embed(found: dict[str, Any]) -> str:
    """The outcome of `bench_embed` as lines to read."""
    lines = [
        f"encoder     {found['encoder']} at {found['image_size']} px, {found['device']}, "
        f"batches of {found['batch_size']}",
        f"data        {found['data']}: {found['images']:,} images",
        f"read        {found['stages']['read']:10,.1f} images/s, alone",
        f"prepare     {found['stages']['prepare']:10,.1f} images/s, alone",
    ]
    for name, p in found["precisions"].items():
        lines += [
            f"network     {p['network']:10,.1f} images/s, alone, {name}",
            f"end to end  {p['whole']:10,.1f} images/s, {p['whole'] / p['network']:.0%} of the "
            f"bare network, {name}",
        ]
    lines += [
        f"work        {found['flops_per_image'] / 1e9:,.3f} GFLOP an image, "
        f"{found['flops_per_second'] / 1e12:,.3f} TFLOP/s in {found['precision']}",
        f"machine     {found['peak_flops_per_second'] / 1e12:,.3f} TFLOP/s in a matrix product; "
        f"{found['share_of_peak']:.0%} of it is reached",
    ]
    return "\n".join(lines)


def describe(found: dict[str, Any]) -> str:
    """The outcome of `bench_data` as lines to read."""
    lines = [
        f"data        {found['data']}: {found['images']:,} images",
        *(f"view        {line}" for line in found["views"]),
        f"end to end  {found['images_per_second']:,.1f} images/s with {found['workers']} workers, "
        f"{found['images_per_second_per_core']:,.1f} per core",
        "stage       ms an image   images/s   share   (one core, one thread)",
    ]
    for name, s in found["stages"].items():
        rate = f"{s['images_per_second']:10,.0f}" if s["images_per_second"] else f"{'-':>10}"
        lines.append(f"  {name:<10}{s['seconds_per_image'] * 1e3:10.3f}  {rate}  {s['share']:6.0%}")
    return "\n".join(lines)
