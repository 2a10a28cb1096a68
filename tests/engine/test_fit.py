"""Network, image size and length for data, machine and time, chosen with a faked stopwatch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from nolabel import distributed
from nolabel.config import Request
from nolabel.data.facts import facts_of
from nolabel.data.source import Source
from nolabel.data.sources.items import Items
from nolabel.engine import fit as module
from nolabel.engine.calibrate import MORE
from nolabel.engine.fit import Trial, fit
from nolabel.engine.machine import Machine
from nolabel.engine.resolve import Resolved, resolve
from nolabel.types import Sample


def images(count: int = 40, side: int = 300) -> Items:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Items([np.roll(pixels, i, 0) for i in range(count)])


class Stopwatch:
    """A machine that does so many million multiplications a second, in steps of the batch."""

    def __init__(self, speed: float):
        self.speed, self.asked = speed, []

    def __call__(self, resolved: Resolved) -> float:
        s = resolved.run.settings
        self.asked.append((s.backbone, s.image_size))
        width = {"resnet_micro": 22, "resnet_tiny": 60, "resnet18": 120, "resnet50": 300}
        million = width.get(s.backbone, 22) * (s.image_size / 64) ** 2
        return 6 * million * s.batch_size / self.speed


def chosen(request: Request, source: Source, stopwatch: Stopwatch) -> tuple[str, int]:
    fitted = fit(request, source, stopwatch=stopwatch, quiet=True)
    s = fitted.request.settings
    assert s.backbone is not None and s.image_size is not None
    return s.backbone, s.image_size


def of(**options: Any) -> Request:
    return Request.of("simclr", data="list", out="unused", **options)


def test_more_time_and_a_faster_machine_take_larger_networks():
    source = images()
    slow, fast = Stopwatch(5e2), Stopwatch(1e5)
    small = chosen(of(minutes=10.0), source, slow)
    assert small == ("resnet_micro", 64)
    night = chosen(of(minutes=480.0), source, Stopwatch(5e2))
    assert night[1] > small[1]
    assert chosen(of(minutes=480.0), source, fast) == ("resnet50", 224)


def test_what_the_user_fixes_stays_and_the_rest_adapts():
    source = images()
    assert chosen(of(minutes=480.0, image_size=96), source, Stopwatch(1e5))[1] == 96
    network, size = chosen(of(minutes=480.0, backbone="resnet18"), source, Stopwatch(1e5))
    assert (network, size) == ("resnet18", 224)
    assert chosen(of(minutes=1.0, backbone="resnet18"), source, Stopwatch(1e3))[1] == 64


@pytest.mark.parametrize(
    "options",
    [{"steps": 5}, {"epochs": 2}, {"minutes": 1.0, "recipe": "paper"},
     {"minutes": 1.0, "backbone": "resnet18", "image_size": 64}],
    ids=["steps", "epochs", "the paper's recipe", "both are named"],
)  # fmt: skip
def test_nothing_is_timed_where_nothing_is_open(options):
    watch = Stopwatch(1e3)
    fitted = fit(of(**options), images(), stopwatch=watch, quiet=True)
    assert fitted.choice is None and not watch.asked
    assert fitted.request == of(**options)


def test_a_length_is_proposed_where_none_is_asked_for(capsys):
    fitted = fit(of(), images(), stopwatch=Stopwatch(1e3))
    assert fitted.request.settings.minutes == 40
    said = capsys.readouterr().err
    assert "40 minutes are proposed" in said and "network: " in said


def test_steps_that_would_take_long_are_not_tried():
    watch = Stopwatch(2e2)
    fit(of(minutes=600.0), images(), stopwatch=watch, quiet=True)
    assert len(watch.asked) == 1, "a step of 8 images takes more than 0.3 s from the second rung on"


def test_reading_counts_where_images_do_not_stay_in_memory():
    source = images()
    facts = dataclasses.replace(facts_of(source), seconds=0.05)
    watch = Stopwatch(5e3)
    kept = fit(of(minutes=60.0), source, facts=facts, stopwatch=watch, quiet=True)
    read = fit(of(minutes=60.0, cache="off"), source, facts=facts, stopwatch=watch, quiet=True)
    assert kept.choice and read.choice
    assert kept.choice.rung == read.choice.rung
    batch = resolve(kept.request, source=source, quiet=True).run.settings.batch_size
    seconds = (3600 - module.START_SECONDS) / np.array([kept.choice.steps, read.choice.steps])
    assert seconds[1] - seconds[0] == pytest.approx(0.05 * batch, rel=0.02)


def test_a_gpu_is_chosen_for_by_the_same_rule(monkeypatch):
    """A faked device with 24 GB on which a step takes milliseconds."""
    gpu = Machine(on_gpu=True, processes=1, usable_memory=24e9)
    monkeypatch.setattr(Machine, "here", lambda device: gpu)
    assert module.automatic_method()[0] == "dino"
    request = Request.of("dino", data="list", out="unused", minutes=60.0)
    fitted = fit(request, images(), stopwatch=lambda resolved: 0.05, quiet=True)
    s = fitted.request.settings
    assert (s.backbone, s.image_size) == ("vit_base", 224)
    run = resolve(fitted.request, source=images(), quiet=True).run
    assert run.options.prototypes > 1024, "not the heads of a brief run"


def test_each_process_tries_its_own_images(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    assert len(Trial(facts_of(images(5)), None).source) == 3 * MORE


def test_unreadable_images_do_not_end_the_choice():
    from nolabel.errors import BadImage

    class Broken(Source):
        name = "broken"

        def __len__(self) -> int:
            return 30

        def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
            if i % 2:
                raise BadImage(self.path(i), "broken")
            return Sample(image=np.full((20, 30, 3), i, np.uint8))

    facts = facts_of(Broken())
    assert facts.side == 20 and len(facts.sample) < 15
