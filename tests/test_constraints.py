"""constraints.txt holds versions with which the tests ran, of all that an installation takes."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NOT_TESTED = {"umap-learn"}  # optional, and not in the environment of the tests


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def _required() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(r for k in extras if k != "dev" for r in extras[k])]
    return [Requirement(line) for line in lines]


def _pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {_name(name): version for name, version in pairs}


def test_every_dependency_has_a_version_within_its_bounds_which_these_tests_use():
    pinned = _pinned()
    for requirement in _required():
        name = _name(requirement.name)
        if name in NOT_TESTED:
            continue
        assert name in pinned, f"add {name} to constraints.txt"
        assert requirement.specifier.contains(pinned[name]), requirement
        assert importlib.metadata.version(name) == pinned[name], (
            f"these tests run with another {name}; if they pass, write its version to "
            "constraints.txt"
        )


def test_packages_whose_insides_are_used_have_an_upper_bound():
    inside = {"torch", "torchvision", "timm", "numpy", "tyro", "transformers", "datasets", "av"}
    bounded = {_name(r.name) for r in _required() if any(s.operator == "<" for s in r.specifier)}
    assert inside <= bounded
