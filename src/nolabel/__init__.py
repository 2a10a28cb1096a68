"""nolabel: self-supervised vision, from training to evaluation and use of an encoder.

    import nolabel as nl

    run = nl.pretrain("dino", data="photos/", epochs=100)
    enc = nl.load("runs/dino-photos")
    z = enc.embed(["a.jpg", "b.jpg"])
    print(nl.evaluate("knn", enc, train="labelled/"))
    nl.show("attention", enc, data="photos/").save("pictures")

Every verb of the command line is a function here. Submodules are imported where they are first
used, so `import nolabel` takes little time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nolabel import _moved
from nolabel._verbs.data import bench, pack, plan, scan
from nolabel._verbs.encoders import (
    compare,
    embed,
    evaluate,
    export,
    import_checkpoint,
    search,
    show,
)
from nolabel._verbs.runs import ablate, demo, pretrain, replay, report, resume, worth
from nolabel._version import __version__

if TYPE_CHECKING:
    from nolabel.config import Run
    from nolabel.data.source import Source
    from nolabel.encoders import Encoder, load

__all__ = [
    "Encoder",
    "Run",
    "Source",
    "__version__",
    "ablate",
    "bench",
    "compare",
    "demo",
    "embed",
    "evaluate",
    "export",
    "import_checkpoint",
    "load",
    "pack",
    "plan",
    "pretrain",
    "replay",
    "report",
    "resume",
    "scan",
    "search",
    "show",
    "worth",
]

_moved.install()
_WHERE = {
    "Encoder": "nolabel.encoders",
    "Run": "nolabel.config",
    "Source": "nolabel.data.source",
    "load": "nolabel.encoders",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'nolabel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
