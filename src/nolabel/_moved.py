"""Former names of modules, functions and options, for scripts and the code in old run folders.

The names of the first public version keep working where what they name only moved: importing a
former module gives one that looks everything up in the new one. Former options of the verbs are
read, and no help shows them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")

# Former packages and modules; "*" stands for any module of the package. `nolabel.evaluate` is not
# among them: it is a function now, and importing a module of that name would replace it.
MOVED = {
    "nolabel.data.bands": "nolabel.data.sources._bands",
    "nolabel.data.images": "nolabel.data.sources._decode",
    "nolabel.data.folder": "nolabel.data.sources.folder",
    "nolabel.data.hub": "nolabel.data.sources.hub",
    "nolabel.data.items": "nolabel.data.sources.items",
    "nolabel.data.manifest": "nolabel.data.sources.manifest",
    "nolabel.data.shards": "nolabel.data.sources.shards",
    "nolabel.data.video": "nolabel.data.sources.video",
    "nolabel.schedules": "nolabel.nn.schedules",
    "nolabel.ops": "nolabel.nn",
    "nolabel.ops.*": "nolabel.nn.*",
    "nolabel.weights": "nolabel.encoders",
    "nolabel.weights.*": "nolabel.encoders.convert.*",
}

# Former names of functions in modules that are still there, by module, and where they are now.
FUNCTIONS = {"nolabel.data.sources": {"open_source": "nolabel.data.open"}}
# Former names of options, by the words of the command before them, and of keys of config.yaml.
OPTIONS = {
    "config.yaml operations": {"told": "detected"},
    "evaluate transfer": {"judges": "protocols"},
    "show attention": {"film": "video"},
    "show invert": {"judge": "evaluator"},
    "show paint": {"judge": "evaluator"},
}


def new_name(old: str) -> str | None:
    """The present name of a module; None if it has not moved."""
    package, _, module = old.rpartition(".")
    new = MOVED.get(old) or MOVED.get(f"{package}.*", "").replace("*", module) or None
    return new if new and importlib.util.find_spec(new) else None


class Moved(MetaPathFinder, Loader):
    """Finds modules by their former names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a former name."""
        if not name.startswith("nolabel.") or new_name(name) is None:
            return None
        return ModuleSpec(name, self, is_package=f"{name}.*" in MOVED)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The default."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Makes the module look names up in the new one."""
        new = importlib.import_module(new_name(module.__name__) or "")
        vars(module).update(__getattr__=partial(getattr, new), __dir__=partial(dir, new))


def install() -> None:
    """Adds the finder, after Python's own."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.append(Moved())


def former_functions(module: str) -> Callable[[str], object]:
    """The `__getattr__` of a module some of whose `FUNCTIONS` have moved."""

    def find(name: str) -> object:
        if name not in FUNCTIONS[module]:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(FUNCTIONS[module][name]), name)

    return find


def present_options(command: str, options: Mapping[str, T]) -> dict[str, T]:
    """The options of a command, or keys of a file, under their present names.

    Args:
        command: a key of `OPTIONS`, such as "show paint".
        options: value of each, by its name in Python; a former name beside the present one stays.
    """
    new = {old: n for old, n in OPTIONS.get(command, {}).items() if n not in options}
    return {new.get(name, name): value for name, value in options.items()}


def present_flags(command: str, args: Sequence[str]) -> list[str]:
    """The arguments of a command with the present names of its flags."""
    new = {f"--{old}": f"--{name}" for old, name in OPTIONS.get(command, {}).items()}
    parts = (arg.partition("=") for arg in args)
    return [new.get(flag, flag) + equals + value for flag, equals, value in parts]
