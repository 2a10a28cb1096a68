"""Modules under their former names, as old scripts and users' code in old runs import them."""

from __future__ import annotations

import importlib

import pytest

from nolabel._moved import MOVED, new_name


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
