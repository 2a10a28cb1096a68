"""A run's folder: checked and made before training, and the encoder file in it."""

from __future__ import annotations

import json
import shutil

import yaml

from nolabel import _usercode
from nolabel.config import Run
from nolabel.encoders.file import ENCODER_FILE, TEXT_FILE, save_encoder
from nolabel.encoders.text import save_text
from nolabel.engine.build import FrozenInputs, keep
from nolabel.engine.environment import environment
from nolabel.errors import UsageError
from nolabel.methods.base import Method
from nolabel.methods.capabilities import LearnsFromText
from nolabel.nn.state import Ema
from nolabel.views.plan import ViewPlan

STOPPED = "stopped"  # file of a run that was asked to stop: its step
CAPTURED = "captured"  # folder with the state before the newest step that was not finite


def check(run: Run) -> None:
    """Refuses a folder that is not empty, unless `--overwrite` allows to replace the run in it.

    Raises:
        UsageError: says what the folder holds and what to do.
    """
    folder = run.folder
    if not folder.exists() or not any(folder.iterdir()):
        return
    ours = (folder / "config.yaml").exists()
    if not run.settings.overwrite:
        raise UsageError(
            f"The folder {folder} {'already holds a run' if ours else 'is not empty'}. Use "
            f"another --out, `nolabel resume {folder}` to go on, or --overwrite to replace it."
        )
    if not ours:
        raise UsageError(
            f"{folder} is not empty and holds no run; --overwrite replaces runs only. Use "
            "another --out."
        )


def make(run: Run, frozen: FrozenInputs) -> None:
    """Makes the folder, with the resolved configuration, the environment and a copy of `frozen`.

    Args:
        frozen: the frozen network or tokenizer that the method is built with, or None.
    """
    folder = run.folder
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    keep(frozen, folder)
    _usercode.copy_code(run.to_dict(), folder)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(run.to_dict(), sort_keys=False), encoding="utf-8"
    )
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2), encoding="utf-8")


def export(run: Run, method: Method, plan: ViewPlan) -> None:
    """Writes the public encoder file of the branch to judge, and the text side where there is
    one."""
    if isinstance(method, LearnsFromText):
        save_text(run.folder / TEXT_FILE, method.shared, method.tokenizer, method=run.method)
    encoder = method.encoder
    averages = [m for m in method.modules() if isinstance(m, Ema)]
    teacher = any(encoder is m for average in averages for m in average.modules())
    shared = run.to_dict()
    shared["settings"].pop("out")  # where a run lies is no property of its encoder
    for file in shared.get("code", {}).values():
        file.pop("original")  # nor where its code lay
    save_encoder(
        run.folder / ENCODER_FILE,
        encoder,
        branch="teacher" if teacher else "encoder",
        method=run.method,
        mean=plan.mean,
        std=plan.std,
        image_size=run.settings.image_size,
        run=shared,
    )
