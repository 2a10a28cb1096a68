"""Chooses network, image size and length of a run for its data, its machine and its time.

The rule is `nolabel.recipes.ladder`; here it gets what it needs: the size of the images, and the
seconds of a step, from trial steps on a few images. Values that the user gave are kept, and the
others adapt to them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from nolabel import distributed, methods, recipes
from nolabel.config import LENGTHS, Request, Settings
from nolabel.data.facts import Facts, facts_of
from nolabel.data.open import open_source, record_source
from nolabel.data.progress import phase
from nolabel.data.source import Source
from nolabel.data.sources.items import Items
from nolabel.device import pick_device
from nolabel.engine import parallel
from nolabel.engine.build import build
from nolabel.engine.calibrate import FEW, MORE, measure
from nolabel.engine.checks import check_settings
from nolabel.engine.log import say
from nolabel.engine.machine import Machine
from nolabel.engine.resolve import Resolved, resolve
from nolabel.methods.base import Method
from nolabel.recipes.ladder import PROPOSED_MINUTES, Choice, Rung, choose, enough_steps, ladder

LONG_TRIAL = 0.1  # seconds of a step of FEW images from which it is not tried, but extrapolated
TRIAL_SECONDS = 0.3  # of the trial steps of a network; the one that is taken is measured again
START_SECONDS = 8.0  # of M minutes, for reading, choosing and measuring

# Seconds that a step of a run takes, without reading the files.
Stopwatch = Callable[[Resolved], float]


class Fitted(NamedTuple):
    """The outcome of `fit`."""

    request: Request
    source: Source
    facts: Facts | None  # of the source, if they were needed
    choice: Choice | None  # if there was one to make


def fit(
    request: Request,
    source: Source | None = None,
    *,
    facts: Facts | None = None,
    stopwatch: Stopwatch | None = None,
    quiet: bool = False,
) -> Fitted:
    """The request with network, image size and length chosen, where the user left them open.

    A run whose steps or epochs are given is not measured: it takes the network that is usual for
    its image size. All ranks call it, and choose alike.

    Args:
        request: what the user asked for.
        source: the data, if they are open already.
        facts: of the source, if they are known already.
        stopwatch: None: trial steps on this machine (`Trial`).
        quiet: do not print the choice.

    Returns:
        The request, the opened data with what is known of them, and the choice.
    """
    request = dataclasses.replace(request, method=methods.name_by_hash(request.method))
    s, kind = request.settings, methods.load(request.method)
    check_settings(s)
    if source is None:
        source = open_source(
            record_source(s.data), image_size=s.image_size, download=s.download,
            channels=s.channels,
        )  # fmt: skip
    request, chosen_here = proposed(request)
    minutes = request.settings.minutes
    if minutes != s.minutes and not quiet:
        say(f"length: {minutes:g} minutes are proposed on this machine; --minutes M for another")
    if not chosen_here or minutes is None:
        return Fitted(request, source, facts, None)
    with phase("choosing a network that fits"):
        facts = facts or facts_of(source)
        rungs = _rungs(s, kind, facts.side)
        watch = stopwatch or Trial(facts, source if "text" in kind.inputs else None)
        on_gpu = Machine.here(s.device).on_gpu  # where steps take milliseconds
        known: list[tuple[float, float]] = []  # relative cost, seconds of an image

        def steps_of(rung: Rung) -> int:
            draft = resolve(_draft(request, s, rung), source=source, facts=facts, quiet=True)
            images = draft.run.settings.batch_size / distributed.world_size()
            ratio = rung.cost / known[-1][0] if known else 0.0
            if known and not on_gpu and known[-1][1] * ratio * FEW > LONG_TRIAL:
                # A trial step would take long; the cost tells enough.
                seconds = known[-1][1] * images * ratio
            else:
                seconds = parallel.broadcast_object(watch(draft))
            known.append((rung.cost, seconds / images))
            reading = facts.seconds * images if draft.run.settings.cache == "off" else 0.0
            return int((minutes * 60 - START_SECONDS) / (seconds + reading))

        choice = choose(rungs, steps_of, enough_steps(kind.needs))
    if not quiet:
        say(_reason(choice, minutes, enough_steps(kind.needs)))
    return Fitted(at_rung(request, s.patch_size, choice.rung), source, facts, choice)


def automatic_method(device: str = "auto") -> tuple[str, str]:
    """The method of a run for which none is named, and why.

    Args:
        device: auto, cpu or cuda.
    """
    if Machine.here(device).on_gpu:
        return "dino", "is the choice for a GPU"
    return "simclr", "learns most within minutes on a CPU"


def proposed(request: Request) -> tuple[Request, frozenset[str]]:
    """The request with a length, and the names of the settings that `fit` chooses by trial steps.

    They are open where an automatic run has a length in minutes and no network to continue from.
    """
    s = request.settings
    if s.recipe != "auto":
        return request, frozenset()
    if all(getattr(s, name) is None for name in LENGTHS):
        request = request.choose(minutes=PROPOSED_MINUTES)
    if request.settings.minutes is None or s.init or (s.backbone and s.image_size):
        return request, frozenset()
    names = ("backbone", "image_size", "patch_size")
    return request, frozenset(name for name in names if getattr(s, name) is None)


def _rungs(s: Settings, kind: type[Method], side: int) -> tuple[Rung, ...]:
    """The rungs that agree with what the user gave; that alone if none does."""
    vit = recipes.takes_vit(kind) or s.patch_size is not None
    rungs = ladder(kind.needs, side, vit=vit)
    if s.backbone is not None:
        sizes = sorted({r.image_size for r in rungs})
        if "_224" in s.backbone:
            sizes = [224]
        return tuple(Rung(s.backbone, size, cost=size**2) for size in sizes)
    if s.image_size is not None:
        networks = {r.backbone: r for r in rungs}  # the largest size of each
        return tuple(
            dataclasses.replace(
                r, image_size=s.image_size,
                patch_size=r.patch_size and max(s.image_size * r.patch_size // r.image_size, 1),
            )
            for r in networks.values()
        )  # fmt: skip
    return rungs


def _draft(request: Request, s: Settings, rung: Rung) -> Request:
    """The request on this rung, without what is measured on the images: the time is the same."""
    unmeasured: dict[str, Any] = {"fit_views": False}
    if s.channels != 3 and s.mean is None:
        unmeasured |= {"mean": (0.5,) * s.channels, "std": (0.25,) * s.channels}
    return at_rung(request, s.patch_size, rung).choose(**unmeasured)


def at_rung(request: Request, patch_size: int | None, rung: Rung) -> Request:
    """The request on this rung.

    Args:
        request: what the user asked for.
        patch_size: that the user named; None: the rung's.
        rung: network and image size.
    """
    patch = patch_size or rung.patch_size
    if patch is None:
        patch = recipes.default_patch(rung.backbone, rung.image_size)
    chosen = request.choose(backbone=rung.backbone, image_size=rung.image_size)
    return chosen if patch is None else chosen.choose(patch_size=patch)


def _reason(choice: Choice, minutes: float, enough: int) -> str:
    """The choice and its reason, in one line."""
    text = f"network: {choice.rung}, about {choice.steps:,} steps in {minutes:g} min"
    if choice.next is not None:
        text += f"; {choice.next} would make {choice.next_steps:,}, {enough:,} are wanted"
    elif choice.steps < enough:
        text += f"; the smallest one here, {enough:,} steps are wanted"
    return text


class Trial:
    """Trial steps on the images that were read. What was measured once is remembered.

    Args:
        facts: of the source.
        source: read from it, for methods that need more than images; None: use the facts' images.
    """

    def __init__(self, facts: Facts, source: Source | None):
        sample = facts.sample
        images = [sample[i % len(sample)] for i in range(MORE * distributed.world_size())]
        self.source = source or Items(images, channels=sample[0].shape[2])
        self.precisions: tuple[str, ...] = ("fp32", "bf16")
        self._known: dict[tuple[object, ...], float] = {}

    def __call__(self, resolved: Resolved) -> float:
        """Seconds of a step at the faster precision."""
        s = resolved.run.settings
        key = (resolved.run.method, s.backbone, s.image_size, s.patch_size, s.batch_size)
        if key in self._known:
            return self._known[key]
        asked = resolved.settings.precision
        device = pick_device(resolved.run.settings.device, fallback=True)
        built = build(resolved)
        measured = measure(
            resolved.run, built.method.to(device), built.plan, self.source, device,
            precisions=self.precisions if asked == "auto" else (asked,), may_split=True,
            seconds=TRIAL_SECONDS,
        )  # fmt: skip
        best = min(measured.times, key=lambda p: measured.times[p])
        self.precisions = (best,)  # the same for the other networks
        self._known[key] = (measured.times[best] + measured.data) * measured.accumulate
        return self._known[key]
