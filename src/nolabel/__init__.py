"""nolabel: learn to see without labels.

    import nolabel as nl

    run = nl.pretrain("dino", data="photos/", epochs=100)
    enc = nl.load("runs/dino-photos")
    z = enc.embed(["a.jpg", "b.jpg"])
    print(nl.evaluate("knn", enc, train="labelled/"))
    nl.show("attention", enc, data="photos/").save("pictures")

Everything is imported where it is first used, so `import nolabel` is quick.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from nolabel._version import __version__

if TYPE_CHECKING:
    from nolabel.config import Run
    from nolabel.encoders import Encoder

__all__ = [
    "Encoder",
    "Run",
    "__version__",
    "compare",
    "evaluate",
    "load",
    "pretrain",
    "resume",
    "show",
]

_WHERE = {
    "evaluate": "nolabel.protocols.run",
    "show": "nolabel.tools.show",
    "Encoder": "nolabel.encoders",
    "Run": "nolabel.config",
    "load": "nolabel.encoders",
    "resume": "nolabel.engine.train",
}


def pretrain(method: str, *, data: Any, quiet: bool = False, **options: Any) -> Run:
    """Trains an encoder on unlabelled images and returns the finished run.

    Args:
        method: a name of `nolabel list methods`, or path/to/file.py:Class.
        data: a SRC (folder, creatures, ...), or a list of images.
        quiet: no progress.
        options: every option of `nolabel pretrain METHOD --help`, with underscores.

    Raises:
        UsageError: unknown option (with the nearest one), or settings that do not fit.
    """
    from nolabel.config import merge
    from nolabel.data.open import open_source
    from nolabel.data.source import Source
    from nolabel.engine.train import pretrain as train

    source = None
    if not isinstance(data, str | os.PathLike):
        own = data.channels if isinstance(data, Source) else 3
        channels = int(options.get("channels", own))
        source = open_source(data, channels=channels)
        options = {**options, "channels": channels}
    # By name, as `fit` lies above the engine, which asks this module for its version.
    resolve = importlib.import_module("nolabel.tools.fit").resolve
    parse = merge({"data": str(data), **options})
    run, source = resolve(method, parse, source=source, quiet=quiet)
    return train(run, source, quiet=quiet)


def compare(
    encoders: Any, *, train: Any = None, test: Any = None, protocols: Any = (), options: Any = None
) -> Any:
    """Several encoders, one table (`nolabel compare`); `options` maps protocols to theirs."""
    from nolabel.protocols.compare import compare as run

    return run(encoders, train, test, protocols=protocols, options=options)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'nolabel' has no attribute {name!r}")
