"""A run's folder: checked and created before training; the encoder file in it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from nolabel import _usercode
from nolabel._files import (
    LOCK,
    MARK,
    Lock,
    atomic,
    read_json,
    read_mark,
    refuse_dangerous,
    remove_matching,
    write_mark,
    write_text,
)
from nolabel._files.yaml import read_yaml
from nolabel.config import Run
from nolabel.data.open import place_of
from nolabel.data.text.tokenizer import TOKENIZER_FILE
from nolabel.encoders.file import ENCODER_FILE, TEXT_FILE, save_encoder
from nolabel.encoders.text import save_text
from nolabel.engine import length, parallel
from nolabel.engine.build import TEACHER, TOKENIZER, WEIGHTS, FrozenInputs, save_frozen_inputs
from nolabel.engine.environment import environment
from nolabel.errors import UsageError, command
from nolabel.methods.base import Method
from nolabel.methods.capabilities import LearnsFromText
from nolabel.nn.state import Ema
from nolabel.views.plan import ViewPlan

STOPPED = "stopped"  # file that a stop request leaves: the step at which the run stopped
BEST = "best"  # folder with the encoder of the best moment so far (`--keep best`)
TOURNAMENT = "tournament.json"  # how the method was chosen by trial
CAPTURED = "captured"  # folder with the state before the newest non-finite step


# What a run, its report and its pictures write into the folder: all that --overwrite removes.
FILES = (
    "config.yaml", "environment.json", "metrics.jsonl", "skipped.jsonl", STOPPED,
    ENCODER_FILE, TEXT_FILE, TEACHER, TOKENIZER_FILE, "start.safetensors", "report.html",
    "comparison.json", TOURNAMENT, length.FILE, "teacher-projection.safetensors", MARK,
)  # fmt: skip
WRITTEN = (
    *FILES, *(f".{name}.*.tmp" for name in FILES), "metrics.tmp",
    "checkpoints/step-*.ckpt", "checkpoints/step-*.tmp",
    f"{CAPTURED}/checkpoints/step-*.ckpt", f"{CAPTURED}/checkpoints/step-*.tmp",
    f"{BEST}/{ENCODER_FILE}", f"{BEST}/{TEXT_FILE}", f"{BEST}/.*.tmp",
    "film/images.npz", "film/step-*.npz", "film/*.tmp", "code/*-????????????.py", "code/.*.tmp",
    f"{TOKENIZER}/config.yaml", f"{TOKENIZER}/{WEIGHTS}", f"{TOKENIZER}/code/*-????????????.py",
    f"{TOKENIZER}/.*.tmp", f"{TOKENIZER}/code/.*.tmp", "pictures/.*.tmp",
)  # fmt: skip


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process may write into the run's folder. All ranks must enter it.

    The folder is created if it is missing; if it is still empty at the end, it is removed again.

    Raises:
        UsageError: another process holds it.
    """
    lock = Lock(folder / LOCK, f"the run in {folder}")
    parallel.rank0_first(lambda: lock.acquire() and None)
    try:
        yield
    finally:
        lock.release()  # on rank 0, where it is held


def check(run: Run) -> None:
    """Checks that the run's folder is free, or that what is in it may be replaced.

    It is free if it is empty, or if its run ended before it had saved anything.

    Args:
        run: resolved.

    Raises:
        UsageError: the folder holds something else, or the data too; the message says what to do.
    """
    folder = run.folder
    if not _content(folder):
        return
    mark = read_mark(folder, "run")
    is_run = mark is not None or _is_old_run(folder)
    if not run.settings.overwrite and not (mark is not None and not mark.get("saved", True)):
        raise UsageError(
            f"The folder {folder} {'already holds a run' if is_run else 'is not empty'}. Use "
            f"another --out, `{command('nolabel', 'resume', str(folder))}` to go on, or "
            "--overwrite to replace it."
        )
    if not is_run:
        raise UsageError(
            f"{folder} is not empty and holds no run that nolabel wrote; --overwrite replaces runs "
            "only. Use another --out."
        )
    data = [p for spec in (run.settings.data, run.settings.probe) if spec and (p := place_of(spec))]
    refuse_dangerous(folder, data, "--overwrite" if run.settings.overwrite else "A new run")


def _content(folder: Path) -> list[str]:
    """Names of what lies in a folder, without the lock."""
    return [p.name for p in folder.iterdir() if p.name != LOCK] if folder.exists() else []


def _is_old_run(folder: Path) -> bool:
    """Whether a folder without a mark holds a run of an older version, and nothing else."""
    tops = {pattern.partition("/")[0] for pattern in WRITTEN} | {"pictures"}
    if not all(any(fnmatch(name, top) for top in tops) for name in _content(folder)):
        return False
    about = read_json(folder / "environment.json")
    try:
        config = read_yaml(folder / "config.yaml")
    except UsageError:
        return False
    return isinstance(about, dict) and {"method", "settings", "steps_per_epoch"} <= config.keys()


def make(run: Run, frozen: FrozenInputs) -> None:
    """Creates the folder's first files: config.yaml, environment.json, and a copy of `frozen`.

    What an older run wrote is removed, and nothing else.

    Args:
        run: whose folder was checked (`check`), and is held.
        frozen: the frozen network or tokenizer that the method is built with, or None.
    """
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    if _content(folder):
        remove_matching(folder, (*WRITTEN, *_drawn(folder / "pictures")))
    write_mark(folder, "run", saved=False)
    save_frozen_inputs(frozen, folder)
    _usercode.copy_code(run.to_dict(), folder)
    write_config(run)
    write_text(folder / "environment.json", json.dumps(environment(), indent=2))


def write_config(run: Run) -> None:
    """Writes config.yaml."""
    write_text(run.folder / "config.yaml", yaml.safe_dump(run.to_dict(), sort_keys=False))


def _drawn(pictures: Path) -> list[str]:
    """What `Pictures.save` wrote: the names in numbers.json, which may not lead elsewhere."""
    names = read_json(pictures / "numbers.json")
    if names is None:
        return []
    plain = [n for n in names if re.fullmatch(r"[\w-]+", n)] if isinstance(names, dict) else []
    endings = ("png", "npz", "webp", "mp4")
    return ["pictures/numbers.json", *(f"pictures/{n}.{e}" for n in plain for e in endings)]


def note_saved(folder: Path) -> None:
    """Marks that the run has saved something: from now on only --overwrite replaces it."""
    mark = read_mark(folder, "run")
    if mark is not None and not mark.get("saved", True):
        write_mark(folder, "run", saved=True)


def note_stop(folder: Path, step: int) -> None:
    """Notes the step at which the run was stopped on request."""
    with contextlib.suppress(OSError):  # a full disk; the checkpoint may fit
        write_text(folder / STOPPED, f"{step}\n")


def encoder_file(run: Run) -> Path:
    """Path of the run's encoder file."""
    return run.folder / ENCODER_FILE


def keep_best(run: Run) -> None:
    """Puts the best encoder, and its text tower, in the place of the last one."""
    for name in (ENCODER_FILE, TEXT_FILE):
        best = run.folder / BEST / name
        if best.is_file():
            with atomic(run.folder / name) as file, best.open("rb") as source:
                shutil.copyfileobj(source, file)


def export(run: Run, method: Method, plan: ViewPlan, folder: Path | None = None) -> None:
    """Writes the encoder file of the evaluated branch, and the text tower if there is one.

    Args:
        run: resolved.
        method: of the run.
        plan: its views.
        folder: None: the run's.
    """
    folder = folder or run.folder
    folder.mkdir(exist_ok=True)
    if isinstance(method, LearnsFromText):
        save_text(folder / TEXT_FILE, method.shared, method.tokenizer, method=run.method)
    encoder = method.encoder
    teachers = [m for m in method.modules() if isinstance(m, Ema)]
    is_teacher = any(encoder is m for teacher in teachers for m in teacher.modules())
    save_encoder(
        folder / ENCODER_FILE,
        encoder,
        branch="teacher" if is_teacher else "encoder",
        method=run.method,
        mean=plan.mean,
        std=plan.std,
        image_size=run.settings.image_size,
        run=public(run),
    )


def public(run: Run) -> dict[str, Any]:
    """The run's configuration as files tell it that are given away: without local paths."""
    told = run.to_dict()
    told["settings"].pop("out")
    settings = told["settings"]
    for key in ("data", "probe", "init", "views", "recipe"):
        if run.settings.private and key in ("data", "probe", "init"):
            settings[key] = "private" if settings.get(key) else None
        settings[key] = _without_folders(settings.get(key))
    if "teacher" in told["options"]:
        told["options"]["teacher"] = _without_folders(told["options"]["teacher"])
    for file in told.get("code", {}).values():
        file.pop("original")
    return told


def _without_folders(name: str | None) -> str | None:
    """A name without the folders of an absolute path in it, `random:` in front stays."""
    prefix = "random:" if name and name.startswith("random:") else ""
    path = (name or "").removeprefix(prefix)
    return prefix + os.path.basename(path.rstrip("/")) if os.path.isabs(path) else name
