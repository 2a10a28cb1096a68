"""Former names of modules and options, as old scripts and users' code in old runs have them."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from nolabel._moved import MOVED, OPTIONS, new_name, present_flags, present_options


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("nolabel.data.images", "read_image", "nolabel.data.sources._decode"),
        ("nolabel.data.bands", "read_bands", "nolabel.data.sources._bands"),
        ("nolabel.weights.official", "import_file", "nolabel.encoders.convert.official"),
        ("nolabel.ops.patches", "patchify", "nolabel.nn.patches"),
        ("nolabel.schedules", "cosine", "nolabel.nn.schedules"),
    ],
)
def test_the_former_name_gives_the_same_object(old, name, new):
    found = getattr(importlib.import_module(old), name)
    assert found is getattr(importlib.import_module(new), name)


def test_every_present_name_exists():
    for old, new in MOVED.items():
        if "*" not in new:
            assert new_name(old) == new
            importlib.import_module(old)


@pytest.mark.parametrize("name", ["nolabel.ops.nothing", "nolabel.nothing", "nolabel.data.nothing"])
def test_what_never_was_is_still_missing(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_no_former_name_is_that_of_a_function():
    import nolabel

    for old in MOVED:
        module = old.removesuffix(".*").split(".")
        assert len(module) > 2 or module[1] not in nolabel.__all__


def test_former_options_are_read_under_their_present_names():
    assert present_flags("show paint", ["--judge=a", "--judge", "b", "--steps", "3"]) == [
        "--evaluator=a", "--evaluator", "b", "--steps", "3",
    ]  # fmt: skip
    assert present_flags("show pca", ["--judge", "b"]) == ["--judge", "b"]
    assert present_options("show attention", {"film": "webp"}) == {"video": "webp"}
    both = {"judges": ("knn",), "protocols": ("linear",)}
    assert present_options("evaluate transfer", both) == both  # the former one is then refused


@pytest.mark.parametrize("command", OPTIONS)
def test_every_present_option_exists_and_no_former_one_does(command):
    from nolabel import pictures
    from nolabel.protocols import run
    from nolabel.views.suitability import Operations

    verb, what = command.split()
    if verb == "show":
        names = {o.name for o in pictures.options_of(what)}
    else:
        options = run.options_of(what) if verb == "evaluate" else Operations
        names = {f.name for f in dataclasses.fields(options)}
    assert names >= set(OPTIONS[command].values()) and not names & OPTIONS[command].keys()
