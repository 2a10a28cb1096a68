"""Modules under their former names, for scripts and for the code of users in old run folders.

The names of the first public version keep working where what they held only moved: importing one
gives a module that looks everything up in the new one.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

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
        namespace = vars(module)
        namespace["__getattr__"] = lambda name: getattr(new, name)
        namespace["__dir__"] = lambda: dir(new)


def install() -> None:
    """Adds the finder, after Python's own."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.append(Moved())
