"""Verbs that train, and verbs about a run, as functions."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from nolabel.config import Run
    from nolabel.data.open import SourceSpec
    from nolabel.engine.replay import Replay


def pretrain(
    method: str | None = "auto",
    *,
    data: Any,
    tournament: str = "auto",
    quiet: bool = False,
    trust_code: bool = False,
    **options: Any,
) -> Run:
    """Trains an encoder on unlabelled images and returns the finished run.

    Args:
        method: a name of `nolabel list methods`, path/to/file.py:Class; "auto" or None: chosen
            by the machine, or by a tournament.
        data: a SRC (folder, creatures, ...); or a list of images, an array or a `Source`, which
            must be passed to `resume` again.
        tournament: "on": a method that is not named is chosen by trial, within `minutes`; "off";
            "auto": where the labels of `probe` judge.
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
    from nolabel.data.open import name_of_object, open_source
    from nolabel.data.source import Source
    from nolabel.engine.fit import automatic_method
    from nolabel.engine.train import pretrain as train
    from nolabel.errors import UsageError

    automatic = method in (None, "auto")
    if tournament == "on" and not automatic:
        raise UsageError(f"tournament chooses the method, and {method!r} is named.")
    if method is None or method == "auto":
        method = automatic_method(str(options.get("device", "auto")))[0]
    source = None
    if not isinstance(data, str | os.PathLike):
        own = data.channels if isinstance(data, Source) else 3
        channels = int(options.get("channels", own))
        source = open_source(data, channels=channels)
        data, options = name_of_object(source), {**options, "channels": channels}
    backbone = options.get("backbone")
    if backbone is not None and not isinstance(backbone, str):
        options = {**options, "backbone": register(backbone)}
    with trusted_code(trust_code):
        request = Request.of(method, data=str(data), **options)
        request = dataclasses.replace(request, tournament=tournament if automatic else "off")
        return train(request, source=source, quiet=quiet)


def resume(
    folder: str | os.PathLike[str],
    *,
    data: SourceSpec | None = None,
    backbone: nn.Module | type[nn.Module] | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    quiet: bool = False,
    trust_code: bool = False,
) -> Run:
    """Continues a stopped run from its newest checkpoint; the result equals an uninterrupted run.

    Args:
        folder: of the run.
        data: the images, if the run got them in Python as an object.
        backbone: the network, or its class, if the run got one in Python.
        steps, epochs, minutes: one of them trains a finished run further, with a new schedule.
        quiet: do not print progress.
        trust_code: execute the code in the folder even if it was never run on this machine.

    Raises:
        UsageError: the folder holds no run, or `backbone` or `data` are not those of the run.
        UntrustedCode: the folder holds code that was never run on this machine.
    """
    from nolabel.engine.train import Extension
    from nolabel.engine.train import resume as run

    return run(
        os.fspath(folder), data=data, backbone=backbone, quiet=quiet, trust_code=trust_code,
        extension=Extension(steps=steps, epochs=epochs, minutes=minutes),
    )  # fmt: skip


def replay(
    folder: str | os.PathLike[str], precision: str | None = None, *, trust_code: bool = False
) -> tuple[int, Replay]:
    """Repeats the latest step of a run whose loss or gradients were not finite.

    Args:
        folder: of the run.
        precision: fp32 or bf16; None: the run's.
        trust_code: as for `resume`.

    Returns:
        The step's number, and what was found in it.

    Raises:
        UsageError: the run has no such step.
    """
    from nolabel._usercode import trusted_code
    from nolabel.engine.replay import replay as run

    with trusted_code(trust_code):
        return run(os.fspath(folder), precision)


def report(
    folder: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    data: SourceSpec = "auto",
    draw: bool = True,
    trust_code: bool = False,
) -> Path:
    """Writes one offline HTML file about a run, with a verdict first.

    Args:
        folder: of the run.
        out: the file; default report.html in the folder.
        data: a SRC for its pictures; auto: the data of the run's probe, or its training data.
        draw: draw the pictures that are not in the folder yet.
        trust_code: as for `resume`.

    Returns:
        The file.

    Raises:
        UsageError: the folder holds no run.
    """
    from nolabel._usercode import trusted_code
    from nolabel.tools.report import build_report
    from nolabel.tools.show import draw_missing

    with trusted_code(trust_code):
        notes = draw_missing(os.fspath(folder), data) if draw else []
        return build_report(
            os.fspath(folder), out=None if out is None else os.fspath(out), notes=notes
        )


def ablate(method: str, *, data: str, **options: Any) -> list[dict[str, Any]]:
    """Trains a method with one setting changed at a time, with equal budgets and several seeds.

    Args:
        method: a name of `nolabel list methods`, or path/to/file.py:Class.
        data: a SRC with labels, which are used for measuring only.
        options: every option of `nolabel ablate METHOD --help`, with underscores; `rows` maps a
            name to the options that it changes.

    Returns:
        One dictionary per row: row, change, values (k-NN top-1 of each seed), mean, low, high.
    """
    from nolabel.tools.ablate import ablate as run

    return run(method, data=data, **options)


def demo(
    out: str | os.PathLike[str] = "demo", minutes: float = 2.5, **options: Any
) -> dict[str, Any]:
    """Runs an example on built-in data: pre-training, comparison, pictures, report.html.

    Args:
        out: folder for the run, the pictures and the report.
        minutes: length of the training.
        options: `method`, `overwrite`, and every option of `pretrain`.

    Returns:
        k-NN accuracies (fractions of one), seconds, and the report's path.
    """
    from nolabel.tools.demo import demo as run

    return run(os.fspath(out), minutes, **options)


def worth(data: Any, labels: Any, **options: Any) -> dict[str, Any]:
    """Measures what pre-training on these data brings, over label budgets.

    Args:
        data: SRC without labels, to pre-train on.
        labels: SRC with labels.
        options: every option of `nolabel worth --help`, with underscores, and those of `pretrain`.

    Returns:
        What worth.json holds: the verdict in a sentence, and accuracies as fractions of one.
    """
    from nolabel.tools.worth import worth as run

    return run(os.fspath(data), os.fspath(labels), **options)
