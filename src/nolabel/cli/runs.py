"""Verbs for a run that exists: resume and replay."""

import contextlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from nolabel.cli._output import write
from nolabel.cli.flags import flags, write_json


def resume_(args: list[str], about: str) -> None:
    """`nolabel resume`."""
    began = time.monotonic()
    from tyro.conf import Positional

    @dataclass(frozen=True, kw_only=True)
    class Resume:
        folder: Positional[str]  # the run's folder
        data: str | None = None  # SRC: where the same images lie now, if they were moved
        steps: int | None = None  # more steps, with a new schedule, for a finished run
        epochs: int | None = None  # or more epochs
        minutes: float | None = None  # or more minutes

    given = flags(Resume, args, "nolabel resume", f"{about}.")
    read_ahead(Path(given.folder))
    from nolabel.engine.train import Extension, resume

    extension = Extension(steps=given.steps, epochs=given.epochs, minutes=given.minutes)
    resume(given.folder, data=given.data, extension=extension, began=began)


def read_ahead(folder: Path) -> None:
    """Asks the system to read the newest checkpoint of a run while torch is imported."""
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError, ValueError):  # errors are reported where the file is opened
        newest = max((folder / "checkpoints").glob("step-*.ckpt"), key=lambda p: p.stat().st_mtime)
        with newest.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def replay_(args: list[str], about: str) -> None:
    """`nolabel replay`."""
    from tyro.conf import Positional

    @dataclass(frozen=True, kw_only=True)
    class Replay:
        folder: Positional[str]  # the run's folder
        json: str | None = None  # write what was found to this file

    given = flags(Replay, args, "nolabel replay", f"{about}.")
    from nolabel.engine.monitor.metrics import strict
    from nolabel.engine.replay import format_replay, replay

    step, replayed = replay(given.folder)
    fp32 = replay(given.folder, "fp32")[1] if replayed.precision != "fp32" else None
    write(format_replay(step, replayed, fp32))
    both = {"step": step, "seen": asdict(replayed), "fp32": asdict(fp32) if fp32 else None}
    write_json(given.json, strict(both))
