"""The data of a run: the same ones before and after a stop, wherever they lie."""

from __future__ import annotations

import dataclasses
import os
import shlex
from typing import TYPE_CHECKING

from nolabel.config import Run
from nolabel.data import open as sources
from nolabel.data.identity import data_digest
from nolabel.data.source import Source
from nolabel.engine import parallel
from nolabel.engine.monitor.probe import Probe
from nolabel.errors import DataError

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec


def checked(run: Run, source: Source) -> tuple[Run, Probe | None]:
    """The run with the digest of its data, and its probe, which rank 0 alone has.

    A mistake is found before the run's folder is made, so that it does not block the next start.

    Raises:
        DataError, UsageError: the probe's data cannot be opened, or have no labels.
    """

    probes: list[Probe | None] = []  # stays empty on the other ranks

    def check() -> str:
        probes.append(Probe.of(run))
        return data_digest(source)

    run = dataclasses.replace(run, data_digest=parallel.rank0_first(check))
    return run, probes[0] if probes else None


def open_again(run: Run, data: SourceSpec | None) -> tuple[Run, Source]:
    """The run and its data, to go on with.

    Args:
        run: that was saved.
        data: the images, if the run got them in Python as an object; or where they lie now, if
            they were moved; None opens them by the name in the run.

    Raises:
        DataError: they are not the images that the run was started on.
    """
    s = run.settings
    if data is None or isinstance(data, str | os.PathLike):
        name = s.data if data is None else sources.absolute_source(os.fspath(data))
        run = run.with_settings(data=name)
        source = sources.open_source(
            name, image_size=s.image_size, download=s.download, channels=s.channels
        )
    else:
        source = sources.open_again(data, s.data, f"The run in {run.folder}", channels=s.channels)
    parallel.rank0_first(lambda: _check_same(run, source))
    return run, source


def _check_same(run: Run, source: Source) -> None:
    what = ""
    if len(source) != run.images:
        what = f"{run.images} images, {source.name} now holds {len(source)}"
    elif run.data_digest and data_digest(source) != run.data_digest:
        what = f"other images than {source.name} holds now (names or content differ)"
    if what:
        raise DataError(
            f"The data changed: the run was started on {what}. Restore the data, give --data if "
            f"they were moved, or start a new run with --init {shlex.quote(str(run.folder))}."
        )
