"""Profiles data loading by stage: read, decode, crop, colour, blur, collate, transfer.

One thread runs the stages one after the other on the same images. The fast executor does not crop,
colour and blur in separate passes, so the cost of such a stage is the time saved without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch

from nolabel.data.batches import read_kwargs
from nolabel.data.order import index_at
from nolabel.data.source import Source
from nolabel.device import cpu_cores
from nolabel.errors import BadImage, DataError
from nolabel.views import FastViews, View, ViewPlan
from nolabel.views.images import Images

STAGES = ("read", "decode", "crop", "colour", "blur", "collate", "transfer")


def measure_stages(
    source: Source,
    plan: ViewPlan,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    images: int = 64,
    rounds: int = 3,
    seed: int = 0,
) -> dict[str, float]:
    """Seconds per image of each stage, in one thread.

    Args:
        source: where the images come from.
        plan: the views.
        device: device of training; "transfer" is the copy of the batch to it (0 on the CPU).
        workers: number of data workers; unless 0, "collate" is the cost of shared memory.
        images: number of images to use, drawn at random from the source.
        rounds: repetitions. The fastest counts, except for reading: there the first counts,
            because later ones read from the page cache.
        seed: seed of the choice of images and of the views.

    Returns:
        Stage (one of STAGES) -> seconds per image. In-memory sources have no "decode" (0).

    Raises:
        DataError: none of the images drawn can be read.
    """
    device = torch.device(device)
    n = min(images, len(source))
    indices = index_at(seed, 0, np.arange(n), len(source))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        out = dict.fromkeys(STAGES, 0.0)
        sample, out["read"], out["decode"] = _time_reading(source, plan, indices, rounds)
        n = len(sample)
        full = FastViews(plan, seed)
        without_colour = FastViews(_plan_without(plan, colour=True, blur=True), seed)
        without_blur = FastViews(_plan_without(plan, blur=True), seed)
        variants: dict[str, Callable[[int], dict[str, torch.Tensor]]] = {
            "crop": _views_call(without_colour, sample),
            "colour": _views_call(without_blur, sample),
            "blur": _views_call(full, sample),
        }
        if workers:
            shared = FastViews(plan, seed)
            shared.shared = True
            variants["collate"] = _views_call(shared, sample)
        best = dict.fromkeys(variants, float("inf"))
        for _ in range(rounds):  # interleaved, so that other load slows all variants alike
            for name, make in variants.items():
                tick = time.perf_counter()
                make(0)
                best[name] = min(best[name], time.perf_counter() - tick)
        previous = 0.0
        for name, seconds in best.items():
            out[name] = max(seconds - previous, 0.0) / n
            previous = seconds
        if device.type != "cpu":
            out["transfer"] = _time_transfer(variants["blur"](0), device) / n
        return out
    finally:
        torch.set_num_threads(threads)


def _time_reading(
    source: Source, plan: ViewPlan, indices: np.ndarray, rounds: int
) -> tuple[Images, float, float]:
    """The decoded images, and the seconds per image of reading and of decoding."""
    if source.in_memory:
        times = []
        for _ in range(rounds):
            tick = time.perf_counter()
            sample = source.images(indices)
            times.append(time.perf_counter() - tick)
        return sample, min(times) / len(indices), 0.0
    with contextlib.suppress(BadImage):  # warm-up: imports are not timed
        source.read(int(indices[-1]))
    kwargs = read_kwargs(source, plan)
    pixels, read, total = [], 0.0, 0.0
    for i in indices.tolist():
        try:
            tick = time.perf_counter()
            if source.has_files:
                source.read_bytes(i)
            read_seconds = time.perf_counter() - tick
            tick = time.perf_counter()
            pixels.append(source.read(i, **kwargs).image)
        except (BadImage, OSError):
            continue
        read, total = read + read_seconds, total + time.perf_counter() - tick
        if source.has_files:  # subtract reading again, from the page cache: decoding remains
            tick = time.perf_counter()
            source.read_bytes(i)
            total -= time.perf_counter() - tick
    if not pixels:
        raise DataError(
            f"{source.name!r}: none of {len(indices)} images drawn at random is readable."
        )
    return pixels, read / len(pixels), max(total, 0.0) / len(pixels)


def _views_call(views: FastViews, sample: Images) -> Callable[[int], dict[str, torch.Tensor]]:
    """A function of the epoch that makes the views of these images; called once to warm up."""
    keys = np.arange(len(sample))
    views(sample, keys, 0)
    return lambda epoch: views(sample, keys, epoch)


def _plan_without(plan: ViewPlan, *, colour: bool = False, blur: bool = False) -> ViewPlan:
    """The plan without colour operations or without blur."""

    def reduced(view: View) -> View:
        if colour:
            off = {"channel_jitter": 0.0, "grey": 0.0, "solarise": (0.0,), "noise": 0.0}
            view = dataclasses.replace(view, jitter=(0.0, 0.0, 0.0, 0.0), **off)
        return dataclasses.replace(view, blur=(0.0,)) if blur else view

    return dataclasses.replace(plan, views=tuple(reduced(view) for view in plan.views))


def _time_transfer(views: dict[str, torch.Tensor], device: torch.device) -> float:
    pinned = [v.pin_memory() if device.type == "cuda" else v for v in views.values()]
    times = []
    for _ in range(3):
        tick = time.perf_counter()
        moved = [v.to(device, non_blocking=True) for v in pinned]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - tick)
        del moved
    return min(times)


def explain_slow_loading(
    source: Source, plan: ViewPlan, *, device: torch.device, workers: int = 0
) -> str:
    """Advice for a training loop that waits for data, from a quick measurement of the stages.

    Args:
        source: where the images come from.
        plan: the views.
        device: device of training.
        workers: number of data workers.
    """
    try:
        stages = measure_stages(source, plan, device=device, workers=workers, images=32, rounds=1)
    except DataError as error:
        return str(error)
    cores = cpu_cores()
    return advice(stages, workers=workers, cores=cores, cpu=device.type == "cpu")


def advice(stages: dict[str, float], *, workers: int, cores: int, cpu: bool) -> str:
    """Names the slowest stage of data loading and says what to do, in one or two sentences.

    Args:
        stages: stage -> seconds per image, from `measure_stages`.
        workers: number of data workers.
        cores: number of CPU cores.
        cpu: whether training runs on the CPU too.
    """
    total = sum(stages.values()) or 1.0
    worst = max(stages, key=lambda k: stages[k])
    share_text = (
        f"Loading an image and making its views takes {total * 1e3:.1f} ms on one core, "
        f"{stages[worst] / total:.0%} of it for {worst}."
    )
    remedy = {
        "read": "The disk is slow: pack the images into shards (`nolabel pack`), on a local disk",
        "decode": "Shrink the images once (`nolabel pack --max-side 512`)",
        "crop": "Use fewer or smaller crops, or smaller images (`nolabel pack --max-side 512`)",
        "colour": "Use fewer or smaller crops",
        "blur": "Use fewer or smaller crops, or less blur",
        "collate": "Use fewer or smaller crops, or fewer workers with larger batches",
        "transfer": "Use fewer or smaller crops",
    }[worst]
    if not cpu and workers < cores:
        remedy = (
            f"Use more workers (--workers {cores}; now {workers}). "
            f"Or: {remedy[0].lower()}{remedy[1:]}"
        )
    elif cpu and workers == 0:
        remedy += "; with --workers 0 the views are made between the steps, on the same cores"
    return f"{share_text} {remedy}."
