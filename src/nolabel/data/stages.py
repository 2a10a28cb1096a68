"""Where the time of a batch goes: reading, decoding, cropping, colour, blur, and moving it.

One thread does one stage after the other on the same images. Crop, colour and blur are not
separate passes of the fast executor, so a stage is what leaving it out would save.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable

import numpy as np
import torch

from nolabel.data.batches import read_kwargs
from nolabel.data.order import index_at
from nolabel.data.source import Source
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
        device: where the batch goes; "transfer" is the way there (0 on the CPU).
        workers: with any, "collate" is the way into memory that processes share.
        images: how many images are used, drawn at random from the source.
        rounds: times everything is done; the fastest counts, but for reading, where the first
            does, since the system remembers what was read.
        seed: which images.

    Returns:
        Stage -> seconds. A set in memory is read in one go and has no "decode".

    Raises:
        DataError: no image of those drawn can be read.
    """
    device = torch.device(device)
    n = min(images, len(source))
    where = index_at(seed, 0, np.arange(n), len(source))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        out = dict.fromkeys(STAGES, 0.0)
        some, out["read"], out["decode"] = _time_reading(source, plan, where, rounds)
        n = len(some)
        full = FastViews(plan, seed)
        contestants: dict[str, Callable[[int], dict[str, torch.Tensor]]] = {
            "crop": _views_call(FastViews(_plan_without(plan, colour=True, blur=True), seed), some),
            "colour": _views_call(FastViews(_plan_without(plan, blur=True), seed), some),
            "blur": _views_call(full, some),
        }
        if workers:
            shared = FastViews(plan, seed)
            shared.shared = True
            contestants["collate"] = _views_call(shared, some)
        best = dict.fromkeys(contestants, float("inf"))
        for _ in range(rounds):  # in turns, so that a busy machine slows all of them
            for name, make in contestants.items():
                tick = time.perf_counter()
                make(0)
                best[name] = min(best[name], time.perf_counter() - tick)
        before = 0.0
        for name, seconds in best.items():
            out[name] = max(seconds - before, 0.0) / n
            before = seconds
        if device.type != "cpu":
            out["transfer"] = _time_transfer(contestants["blur"](0), device) / n
        return out
    finally:
        torch.set_num_threads(threads)


def _time_reading(
    source: Source, plan: ViewPlan, where: np.ndarray, rounds: int
) -> tuple[Images, float, float]:
    """The images, and the seconds that reading and decoding take for one."""
    if source.in_memory:
        times = []
        for _ in range(rounds):
            tick = time.perf_counter()
            some = source.images(where)
            times.append(time.perf_counter() - tick)
        return some, min(times) / len(where), 0.0
    with contextlib.suppress(BadImage):  # so that no import is timed
        source.read(int(where[-1]))
    kwargs = read_kwargs(source, plan)
    pixels, read, total = [], 0.0, 0.0
    for i in where.tolist():
        try:
            tick = time.perf_counter()
            if source.has_files:
                source.read_bytes(i)
            once = time.perf_counter() - tick
            tick = time.perf_counter()
            pixels.append(source.read(i, **kwargs).image)
        except (BadImage, OSError):
            continue
        read, total = read + once, total + time.perf_counter() - tick
        if source.has_files:  # what is read again now comes from the system's memory
            tick = time.perf_counter()
            source.read_bytes(i)
            total -= time.perf_counter() - tick
    if not pixels:
        raise DataError(
            f"{source.name!r}: none of {len(where)} images drawn at random is readable."
        )
    return pixels, read / len(pixels), max(total, 0.0) / len(pixels)


def _views_call(views: FastViews, some: Images) -> Callable[[int], dict[str, torch.Tensor]]:
    """A call that makes the views of these images in an epoch, warmed up by one call."""
    keys = np.arange(len(some))
    views(some, keys, 0)
    return lambda epoch: views(some, keys, epoch)


def _plan_without(plan: ViewPlan, *, colour: bool = False, blur: bool = False) -> ViewPlan:
    """The plan with operations switched off."""

    def reduced(view: View) -> View:
        if colour:
            view = dataclasses.replace(view, jitter=(0.0, 0.0, 0.0, 0.0), grey=0.0, solarise=(0.0,))
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


def why_starved(source: Source, plan: ViewPlan, *, device: torch.device, workers: int = 0) -> str:
    """What to do about data that come too late, from a quick measurement of their stages."""
    try:
        stages = measure_stages(source, plan, device=device, workers=workers, images=32, rounds=1)
    except DataError as error:
        return str(error)
    cores = os.cpu_count() or 1
    return advice(stages, workers=workers, cores=cores, cpu=device.type == "cpu")


def advice(stages: dict[str, float], *, workers: int, cores: int, cpu: bool) -> str:
    """One or two sentences: which stage costs most, and what to do about it.

    Args:
        stages: as `measure_stages` gives them.
        workers: processes that make the data.
        cores: cores of the machine.
        cpu: whether the training runs on the CPU too.
    """
    total = sum(stages.values()) or 1.0
    worst = max(stages, key=lambda k: stages[k])
    share = stages[worst] / total
    share_text = (
        f"Of making an image's views ({total * 1e3:.1f} ms on one core) {worst} is {share:.0%}."
    )
    do = {
        "read": "The disk is slow: pack the images into shards (`nolabel pack`), on a local disk",
        "decode": "Shrink the images once (`nolabel pack --max-side 512`)",
        "crop": "Fewer or smaller crops, or smaller images (`nolabel pack --max-side 512`)",
        "colour": "Fewer or smaller crops",
        "blur": "Fewer or smaller crops, or less blur",
        "collate": "Fewer or smaller crops, or larger batches of fewer workers",
        "transfer": "Fewer or smaller crops",
    }[worst]
    if not cpu and workers < cores:
        do = f"More workers (--workers {cores}; now {workers}). Or: {do[0].lower()}{do[1:]}"
    elif cpu and workers == 0:
        do += "; with --workers 0 the views are made between the steps, by the same cores"
    return f"{share_text} {do}."
