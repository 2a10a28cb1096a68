"""The automatic recipes over images, image size, steps and machine: everything within bounds."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest

from nolabel import methods, recipes
from nolabel.config import Request
from nolabel.engine.machine import Machine
from nolabel.engine.placeholder import Placeholder
from nolabel.engine.resolve import resolve
from nolabel.methods.base import RecipeContext


class Case(NamedTuple):
    images: int
    size: int
    steps: int
    device: str

    def context(self, *, conv: bool = False) -> RecipeContext:
        patch = 1 if conv else 16 if self.size == 224 else self.size // 8
        return RecipeContext(
            image_size=self.size, images=self.images, steps=self.steps, device=self.device,
            conv=conv, patch_size=patch,
        )  # fmt: skip


CASES = [
    Case(1_000, 32, 300, "cpu"),
    Case(5_000, 32, 1_000, "cpu"),
    Case(60_000, 32, 20_000, "cpu"),
    Case(2_000, 224, 500, "cpu"),
    Case(50_000, 32, 20_000, "cuda"),
    Case(100_000, 96, 312_000, "cuda"),
    Case(100_000, 224, 78_000, "cuda"),
    Case(1_281_167, 224, 1_000, "cuda"),
    Case(1_281_167, 224, 1_000_000, "cuda"),
]
EMA = ("teacher_momentum", "target_momentum", "key_momentum")
# Options that depend on the length: a run of minutes knows its length only after it was built.
OF_LENGTH = {
    *EMA, "freeze_last_layer", "warmup_teacher_temperature_epochs", "queue_from_epoch",
    "freeze_prototypes",
}  # fmt: skip


def found(method: str, case: Case, *, conv: bool = False):
    return recipes.automatic(methods.load(method), case.context(conv=conv))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", methods.METHODS)
def test_what_follows_the_length_of_the_run_stays_a_small_part_of_it(method, case):
    for conv in (False, True):
        recipe = found(method, case, conv=conv)
        options = dataclasses.asdict(recipe.options)
        for name in EMA:
            if name in options:
                horizon = 1 / (1 - options[name])
                most = max(0.03 * case.steps, 25.1)  # see `ema_momentum` for shorter runs
                assert 0.0005 * case.steps <= horizon <= most, name
        per_epoch = case.images // recipe.batch_size
        first = {
            "freeze_last_layer": 0.05, "warmup_teacher_temperature_epochs": 0.3,
            "queue_from_epoch": 0.1 if options.get("queue") else None,
        }  # fmt: skip
        for name, share in first.items():
            if name in options and share:
                assert options[name] * per_epoch <= share * case.steps + 1, name
        assert options.get("freeze_prototypes", 0) <= case.steps / 10
        assert recipe.optim.warmup_epochs * per_epoch <= case.steps / 10 + 1


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", methods.METHODS)
def test_rates_batches_and_heads_are_within_bounds(method, case):
    brief = case.size <= 96 and case.device == "cpu"
    for conv in (False, True):
        recipe = found(method, case, conv=conv)
        assert 1e-4 <= recipe.optim.lr <= (3e-3 if brief else 2e-3)
        assert 16 <= recipe.batch_size <= min(256, case.images // 4)
        hidden = getattr(recipe.options, "hidden", None)
        if hidden is not None and method != "distill":  # SEED's is as wide as its student
            assert (hidden == 512) if brief else (2048 <= hidden <= 4096)


@pytest.mark.parametrize("method", ["dino", "ibot", "mocov3", "mae"])
def test_photographs_get_the_papers_rate_where_the_paper_trains_vits_with_adamw(method):
    case = Case(1_281_167, 224, 100_000, "cuda")
    recipe, paper = found(method, case), methods.load(method).paper_recipe(case.context())
    ratio = (recipe.optim.lr / recipe.batch_size) / (paper.optim.lr / paper.batch_size)
    assert ratio == pytest.approx(1.0)


@pytest.mark.parametrize("method", methods.METHODS)
def test_the_length_changes_no_option_that_a_network_is_built_with(method):
    for case in CASES[0], CASES[6]:
        short, long = found(method, case), found(method, case._replace(steps=10**6))
        a, b = dataclasses.asdict(short.options), dataclasses.asdict(long.options)
        assert {k for k in a if a[k] != b[k]} <= OF_LENGTH
        assert short.batch_size == long.batch_size


def test_a_day_on_a_gpu_gets_other_settings_than_minutes_on_a_cpu_for_the_same_images():
    minutes = Case(100_000, 96, 1_000, "cpu")
    day = minutes._replace(steps=312_000, device="cuda")
    for method in ("byol", "dino", "swav", "mae", "clip"):
        assert found(method, minutes).optim.lr > found(method, day).optim.lr
    assert found("byol", day).options.target_momentum > 0.995
    assert found("dino", day).options.local_crops == 8
    for method in ("dino", "simclr", "swav"):  # the crops and colours follow the size alone
        a, b = found(method, minutes).options, found(method, day).options
        assert (a.jitter if method != "simclr" else a.hue, a.grey) == (
            b.jitter if method != "simclr" else b.hue,
            b.grey,
        )


def test_resnets_have_no_stochastic_depth():
    for case in CASES:
        assert found("dino", case, conv=True).options.drop_path == 0.0


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_run_takes_what_the_recipe_says_for_its_length_and_machine(on_gpu):
    data = Placeholder(5_000, 32)
    machine = Machine(on_gpu, 1, 1e9)

    def resolved(**asked):
        request = Request.of("byol", data=data.name, backbone="resnet_nano", **asked)
        return resolve(request, source=data, machine=machine)

    case = Case(5_000, 32, 400, "cuda" if on_gpu else "cpu")
    want = found("byol", case, conv=True)
    run = resolved(steps=400).run
    assert (run.options, run.optim) == (want.options, want.optim)
    by_time = resolved(minutes=1.0)
    assert by_time.at_length(400).options == want.options  # known after the measurement
    # What is asked for stays, whatever the length.
    asked = resolved(minutes=1.0, target_momentum=0.5, warmup_epochs=7.0).at_length(400)
    assert (asked.options.target_momentum, asked.optim.warmup_epochs) == (0.5, 7.0)
