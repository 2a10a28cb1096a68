"""nolabel: self-supervised vision, from training to evaluation and use of an encoder.

    import nolabel as nl

    run = nl.pretrain("dino", data="photos/", epochs=100)
    enc = nl.load("runs/dino-photos")
    z = enc.embed(["a.jpg", "b.jpg"])
    print(nl.evaluate("knn", enc, train="labelled/"))
    nl.show("attention", enc, data="photos/").save("pictures")

Submodules are imported where they are first used, so `import nolabel` takes little time.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from nolabel._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nolabel.config import Run
    from nolabel.data.open import SourceSpec
    from nolabel.encoders import Encoder, load
    from nolabel.engine.train import resume
    from nolabel.pictures._tiles import Pictures
    from nolabel.protocols.compare import Comparison
    from nolabel.protocols.report import Report
    from nolabel.protocols.run import TestSpec

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
    "Encoder": "nolabel.encoders",
    "Run": "nolabel.config",
    "load": "nolabel.encoders",
    "resume": "nolabel.engine.train",
}


def pretrain(
    method: str, *, data: Any, quiet: bool = False, trust_code: bool = False, **options: Any
) -> Run:
    """Trains an encoder on unlabelled images and returns the finished run.

    Args:
        method: a name of `nolabel list methods`, or path/to/file.py:Class.
        data: a SRC (folder, creatures, ...), or a list of images.
        quiet: do not print progress.
        trust_code: execute user code in the runs that `init` and `teacher` name, also if it was
            never run on this machine.
        options: every option of `nolabel pretrain METHOD --help`, with underscores. `backbone` may
            also be a `torch.nn.Module`, which is copied with its weights, or a subclass of it.

    Raises:
        UsageError: unknown option (the message names the nearest one), or invalid settings.
    """
    from nolabel._usercode import trusted_code
    from nolabel.backbones.own import register
    from nolabel.config import Request
    from nolabel.data.open import open_source
    from nolabel.data.source import Source
    from nolabel.engine.train import pretrain as train

    source = None
    if not isinstance(data, str | os.PathLike):
        own = data.channels if isinstance(data, Source) else 3
        channels = int(options.get("channels", own))
        source = open_source(data, channels=channels)
        options = {**options, "channels": channels}
    backbone = options.get("backbone")
    if backbone is not None and not isinstance(backbone, str):
        options = {**options, "backbone": register(backbone)}
    with trusted_code(trust_code):
        return train(Request.of(method, data=str(data), **options), source=source, quiet=quiet)


def evaluate(
    protocol: str,
    encoder: Encoder | str | os.PathLike[str],
    train: SourceSpec | None = None,
    test: TestSpec | None = None,
    *,
    trust_code: bool = False,
    **options: object,
) -> Report:
    """Evaluates an encoder by one protocol; the report prints as a table.

    Args:
        protocol: a name of `nolabel list protocols`.
        encoder: an encoder, or a name that `load` takes.
        train: labelled images, for protocols that learn.
        test: test images; by default the test split of a named set, or a fifth of `train`.
        trust_code: execute user code that is stored with an encoder, also if it was never run on
            this machine.
        options: every option of `nolabel evaluate PROTOCOL --help`, with underscores.

    Raises:
        UsageError: unknown protocol or option, or train and test are the same images.
        DataError: no labels, only one class, or classes in test that train does not have.
    """
    from nolabel._usercode import trusted_code
    from nolabel.protocols.run import evaluate as run

    with trusted_code(trust_code):
        return run(protocol, encoder, train, test, **options)


def compare(
    encoders: Sequence[Encoder | str | os.PathLike[str]],
    *,
    train: SourceSpec | None = None,
    test: SourceSpec | None = None,
    protocols: Sequence[str] = (),
    options: Mapping[str, Mapping[str, object]] | None = None,
    trust_code: bool = False,
) -> Comparison:
    """Evaluates several encoders on the same images; the comparison prints as one table.

    Args:
        encoders: encoders, or names that `load` takes.
        train: as for `evaluate`.
        test: as for `evaluate`.
        protocols: names of `nolabel list protocols`; by default knn, and without `train` labelfree.
        options: options of each protocol, by its name.
        trust_code: as for `evaluate`.

    Raises:
        UsageError, DataError: as `evaluate`.
    """
    from nolabel._usercode import trusted_code
    from nolabel.protocols.compare import compare as run

    with trusted_code(trust_code):
        return run(encoders, train, test, protocols=protocols, options=options)


def show(
    what: str,
    encoder: Encoder | str | os.PathLike[str] | Sequence[Encoder | str | os.PathLike[str]],
    data: SourceSpec | None = None,
    *,
    count: int = 8,
    label: str | None = None,
    trust_code: bool = False,
    **options: object,
) -> Pictures:
    """Draws one kind of picture; it displays itself in notebooks, and `save(folder)` writes it.

    Args:
        what: a name of `nolabel list pictures`.
        encoder: an encoder, or a name that `load` takes; for some pictures the folder of a run; or
            several encoders, whose pictures of the same images are stacked.
        data: the images; some pictures need none.
        count: number of images to show.
        label: name of the class whose images are shown; None: all classes.
        trust_code: as for `evaluate`.
        options: every option of `nolabel show WHAT --help`, with underscores.

    Raises:
        UsageError: unknown picture or option, or an encoder that does not support it.
        DataError: no image can be read, or there is no such class.
    """
    from nolabel._usercode import trusted_code
    from nolabel.tools.show import show as draw

    with trusted_code(trust_code):
        return draw(what, encoder, data, count=count, label=label, **options)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'nolabel' has no attribute {name!r}")
