"""The views of a run: the method's, those of --views, those that were asked, those that suit."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nolabel.config import Settings
from nolabel.data.decoded import enough_pixels
from nolabel.data.order import evenly_spaced
from nolabel.data.read_ahead import read_ahead
from nolabel.data.source import Source
from nolabel.engine.parallel import rank0_first
from nolabel.engine.placeholder import Placeholder
from nolabel.errors import BadImage, UsageError
from nolabel.methods.base import Method
from nolabel.recipes.choices import largest_blur
from nolabel.recipes.suited import reasons, suited_settings
from nolabel.views.fast import FastViews
from nolabel.views.fields import ORIENTATION, SHARED, orientation, with_fields
from nolabel.views.plan import ViewPlan
from nolabel.views.plan_file import read_views, to_line
from nolabel.views.suitability import LEAST_FOR_DETECTION, SIDE, Operations, measure_operations
from nolabel.views.view import View

SAMPLE = 256  # images on which the operations are measured
# For reading them; the rest is left out. The most are allowed for `LEAST_FOR_DETECTION` images.
SECONDS, MOST_SECONDS = 5.0, 10.0


def view_plan(kind: type[Method], options: Any, s: Settings) -> ViewPlan:
    """The views of a run, before its mean and std.

    Args:
        kind: the method.
        options: of the method.
        s: with the image size resolved.
    """
    plan = kind.views(options, s.image_size or 0)
    if s.views:
        plan = read_views(s.views, plan)
    return with_fields(plan, **{k: getattr(s, k) for k in SHARED if k not in _own(kind)})


def check_views(kind: type[Method], s: Settings) -> None:
    """Refuses a shared setting where the method has an option of this name.

    Raises:
        UsageError: there is such a setting, in a file.
    """
    for name in SHARED:
        if name in _own(kind) and getattr(s, name) is not None:
            raise UsageError(
                f"settings.{name} is for methods without an option of this name. Set "
                f"options.{name}."
            )


def fit_views(
    kind: type[Method], options: Any, s: Settings, operations: Operations | None
) -> Settings:
    """The settings with final values for what concerns the views.

    Args:
        kind: the method.
        options: of the method.
        s: with the image size resolved; what was asked for stays.
        operations: of the images; None: nothing is fitted.
    """
    plan = view_plan(kind, options, s)
    if s.views:
        s = dataclasses.replace(s, views=to_line(read_views(s.views, plan)))
    elif operations is not None:
        fitted: dict[str, Any] = suited_settings(plan, s.channels, operations)
        if "text" in kind.inputs:  # words may say left or above
            fitted = {k: v for k, v in fitted.items() if k not in ORIENTATION}
        open_ones = {
            k: v for k, v in fitted.items() if getattr(s, k) is None and k not in _own(kind)
        }
        s = dataclasses.replace(s, **open_ones)
        plan = view_plan(kind, options, s)
    return dataclasses.replace(s, **orientation(plan))


def reasons_for(
    before: ViewPlan, after: ViewPlan, operations: Operations | None
) -> tuple[str, ...]:
    """What fitting changed in the views, and why; see `recipes.suited.reasons`."""
    return () if operations is None else reasons(before, after, operations)


def _own(kind: type[Method]) -> frozenset[str]:
    """Names of the method's options."""
    return frozenset(f.name for f in dataclasses.fields(kind.Options))


def operations_on(source: Source, s: Settings) -> Operations | None:
    """Measures the operations on a sample of the data; on all ranks the result of rank 0.

    Args:
        source: the images; those that cannot be read are left out.
        s: with the image size resolved.

    Returns:
        None where nothing is to be learnt: see `measure_operations`.
    """
    if isinstance(source, Placeholder):  # black images
        return None
    size = s.image_size or SIDE
    return rank0_first(lambda: measured(*sample(source, size), size))


def measured(images: np.ndarray, details: np.ndarray, size: int) -> Operations | None:
    """The operations on a sample of `sample`, for a network's input of so many pixels."""
    return measure_operations(images, details, blur_sigma=largest_blur(size))


def sample(source: Source, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images at equal distances over the source: whole ones, shrunk, and their centres.

    Args:
        source: the images.
        size: side of the network's input in pixels.

    Returns:
        The middle square of each image, shrunk to at most `SIDE` pixels, and the middle `SIDE`
        pixels of it at the network's scale: uint8 [N, S, S, C] each.
    """
    side, c = min(SIDE, size), source.channels
    views = (
        View(name="whole", size=side, scale=None, flip=0.0),
        View(name="centre", size=side, scale=None, resize=size, flip=0.0),
    )
    make = FastViews(ViewPlan(views=views, mean=(0.0,) * c, std=(1.0,) * c))
    whole, centre = [], []
    # The golden ratio spreads the first few over the source too, should time end.
    indices = evenly_spaced(len(source), SAMPLE)
    order = np.argsort(np.arange(len(indices)) * 0.6180339887498949 % 1.0)
    began = time.monotonic()
    for images in _batches(source, indices[order], size):
        made = make(images, np.arange(len(images)), 0)
        for name, out in (("whole", whole), ("centre", centre)):
            pixels = made[name][0].permute(0, 2, 3, 1).numpy() * 255
            out.extend(pixels.round().astype(np.uint8))
        seconds = time.monotonic() - began
        if seconds > (SECONDS if len(whole) >= LEAST_FOR_DETECTION else MOST_SECONDS):
            break
    empty = np.zeros((0, side, side, c), np.uint8)
    return (np.stack(whole), np.stack(centre)) if whole else (empty, empty)


def _batches(source: Source, indices: np.ndarray, size: int) -> Iterator[Sequence[np.ndarray]]:
    """The images that can be read, some at a time; one at a time from files, which threads read."""
    if source.in_memory:
        for at in np.array_split(indices, -(-len(indices) // 64)):
            yield list(source.images(at))
        return

    def read(i: int) -> np.ndarray | None:
        try:
            if not source.supports_draft:
                return source.read(i).image
            return source.read(i, sufficient_pixels=enough_pixels(size)).image
        except BadImage:
            return None

    found = read_ahead(read, indices.tolist(), lambda image: 0 if image is None else image.nbytes)
    with contextlib.closing(found):  # threads stop when time ends
        yield from ([image] for image in found if image is not None)
