"""Modules that are functions too."""

from __future__ import annotations

import types
from typing import Any


class CallableModule(types.ModuleType):
    """A module that can be called, through its function of the same name: `nolabel.evaluate` is
    a package and a function, `nolabel.show` a module and a function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)
