"""A run's folder: checked and created before training; the encoder file in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from nolabel import _usercode
from nolabel.config import Run
from nolabel.encoders.file import ENCODER_FILE, TEXT_FILE, save_encoder
from nolabel.encoders.text import save_text
from nolabel.engine.build import FrozenInputs, save_frozen_inputs
from nolabel.engine.environment import environment
from nolabel.errors import UsageError, command
from nolabel.methods.base import Method
from nolabel.methods.capabilities import LearnsFromText
from nolabel.nn.state import Ema
from nolabel.views.plan import ViewPlan

STOPPED = "stopped"  # file that a stop request leaves: the step at which the run stopped
CAPTURED = "captured"  # folder with the state before the newest non-finite step


def check(run: Run) -> None:
    """Checks that the run's folder is empty, or that `--overwrite` may replace the run in it.

    Raises:
        UsageError: the folder is not empty; the message says what to do.
    """
    folder = run.folder
    if not folder.exists() or not any(folder.iterdir()):
        return
    is_run = (folder / "config.yaml").exists()
    if not run.settings.overwrite:
        raise UsageError(
            f"The folder {folder} {'already holds a run' if is_run else 'is not empty'}. Use "
            f"another --out, `{command('nolabel', 'resume', str(folder))}` to go on, or "
            "--overwrite to replace it."
        )
    if not is_run:
        raise UsageError(
            f"{folder} is not empty and holds no run; --overwrite replaces runs only. Use "
            "another --out."
        )


def make(run: Run, frozen: FrozenInputs) -> None:
    """Creates the folder, with config.yaml, environment.json and a copy of `frozen`.

    Args:
        frozen: the frozen network or tokenizer that the method is built with, or None.
    """
    folder = run.folder
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    save_frozen_inputs(frozen, folder)
    _usercode.copy_code(run.to_dict(), folder)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(run.to_dict(), sort_keys=False), encoding="utf-8"
    )
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2), encoding="utf-8")


def encoder_file(run: Run) -> Path:
    """Path of the run's encoder file."""
    return run.folder / ENCODER_FILE


def export(run: Run, method: Method, plan: ViewPlan) -> None:
    """Writes the encoder file of the evaluated branch, and the text tower if there is one."""
    if isinstance(method, LearnsFromText):
        save_text(run.folder / TEXT_FILE, method.shared, method.tokenizer, method=run.method)
    encoder = method.encoder
    teachers = [m for m in method.modules() if isinstance(m, Ema)]
    is_teacher = any(encoder is m for teacher in teachers for m in teacher.modules())
    public = run.to_dict()
    public["settings"].pop("out")  # an encoder file does not tell local paths
    for file in public.get("code", {}).values():
        file.pop("original")
    save_encoder(
        encoder_file(run),
        encoder,
        branch="teacher" if is_teacher else "encoder",
        method=run.method,
        mean=plan.mean,
        std=plan.std,
        image_size=run.settings.image_size,
        run=public,
    )
