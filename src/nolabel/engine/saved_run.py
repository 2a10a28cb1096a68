"""Reads the configuration of a saved run, and loads the user's code that it names."""

from __future__ import annotations

from pathlib import Path

from nolabel import _usercode, methods
from nolabel._files.yaml import read_yaml
from nolabel.config import Run
from nolabel.errors import UsageError


def load_run(folder: str | Path) -> Run:
    """Loads the run of a folder. A user's code is loaded from the folder's copy, if trusted.

    Args:
        folder: run folder, with a config.yaml.

    Raises:
        UsageError: the folder holds no run, or its configuration is invalid.
        UntrustedCode: it needs code that the user neither ran on this machine nor allowed.
        FileDamaged: a copy of the code was changed.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder} holds no run (no config.yaml). Give the folder of a run.")
    raw = read_yaml(folder / "config.yaml")
    method = _usercode.parse(str(raw.get("method", "")))
    if method is not None and not method.digest:  # an old run, without copies of its code
        raw["method"] = methods.name_by_trusted_hash(str(method))
    _usercode.admit(raw, folder, raw.get("code"))
    return Run.from_dict(raw)
