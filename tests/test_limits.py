"""Numbers that no run can use are refused before any work, in every verb and method."""

from __future__ import annotations

import dataclasses
import math
import typing

import pytest

from nolabel import cli, limits, methods
from nolabel.config import Request, Settings
from nolabel.engine.checks import check_settings
from nolabel.engine.resolve import resolve
from nolabel.engine.train import Extension
from nolabel.errors import UsageError
from nolabel.types import Optim


@pytest.mark.parametrize(("given", "said"), [
    ({"minutes": math.nan}, "--minutes is nan; it must be a finite number"),
    ({"minutes": math.inf}, "--minutes is inf"),
    ({"minutes": -1.0}, "--minutes is -1.0; it must be above 0"),
    ({"steps": 0}, "--steps is 0; it must be above 0"),
    ({"workers": -1}, "--workers is -1; it must be at least 0"),
    ({"cache": -4}, "--cache is -4; it must be above 0"),
    ({"image_size": 1}, "--image-size is 1; it must be at least 8"),
    ({"mean": (0.5, 0.5, 0.5), "std": (0.0, 0.2, 0.2)}, "--std is 0.0; it must be above 0"),
])  # fmt: skip
def test_impossible_settings_are_refused_with_what_is_allowed(given, said):
    with pytest.raises(UsageError) as caught:
        check_settings(Settings(data="photos", **given))
    assert said in str(caught.value)


@pytest.mark.parametrize(("method", "options", "said"), [
    ("simclr", {"temperature": 0.0}, "--temperature is 0.0; it must be above 0"),
    ("dino", {"teacher_momentum": 2.0}, "--teacher-momentum is 2.0; it must lie between 0 and 1"),
    ("mae", {"decoder_depth": -1}, "--decoder-depth is -1"),
    ("mae", {"lr": -1.0}, "--optim.lr is -1.0; it must be at least 0"),
    ("mae", {"beta2": 1.0}, "--optim.beta2 is 1.0; it must be at least 0 and below 1"),
    ("mae", {"scale": (math.nan, 1.0)}, "--scale is nan; it must be a finite number"),
])  # fmt: skip
def test_impossible_options_of_method_and_optimiser_are_refused(method, options, said, photos):
    with pytest.raises(UsageError) as caught:
        resolve(Request.of(method, data=str(photos), steps=2, image_size=32, **options))
    assert said in str(caught.value)


def test_every_temperature_and_momentum_of_a_method_has_bounds():
    """And the defaults lie within, as those of every option do."""
    seen = 0
    for name in methods.METHODS:
        options = methods.load(name).Options
        limits.check(options())
        hints = typing.get_type_hints(options, include_extras=True)
        for field in dataclasses.fields(options):
            if field.name.endswith(("temperature", "momentum")):
                (bound,) = hints[field.name].__metadata__
                assert not bound.allows(-1) and not bound.allows(math.nan), (name, field.name)
                seen += 1
    limits.check(Optim(), "--optim.")
    assert seen > 20


def test_a_finished_run_is_not_trained_further_by_nothing():
    for given in ({"minutes": math.nan}, {"steps": 0}, {"epochs": -2}):
        with pytest.raises(UsageError, match="must be"):
            Extension(**given)


@pytest.mark.parametrize("line", [
    "demo --minutes nan", "worth --data d --labels d --minutes -1",
    "worth --data d --labels d --steps 0", "plan --images -5 --no-check",
    "show filters --encoder random:vit_pico --count 0", "evaluate knn --encoder pixels "
    "--train d --image-size 0", "bench data --data d --seconds inf",
])  # fmt: skip
def test_every_verb_refuses_impossible_numbers_with_one_line(line, photos, tmp_path, capsys):
    words = [str(photos) if w == "d" else w for w in line.split()]
    out = ["--out", str(tmp_path / "out")] if words[0] in ("demo", "worth", "show") else []
    assert cli.main([*words, *out]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "must be" in said
