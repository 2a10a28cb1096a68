"""The environment of a run: versions, hardware, commit."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from nolabel._files import read_json
from nolabel._version import __version__
from nolabel.device import cpu_cores


def environment() -> dict[str, Any]:
    """Versions, hardware, threads of a computation on the CPU, date, and the package's commit (None
    unless it is a git checkout)."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    versions["nolabel"] = __version__  # a checkout's metadata may be missing or old
    versions["cuda"] = torch.version.cuda or "none"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions,
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": cpu_cores(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def threads_note(file: Path) -> str:
    """What to say when a run on the CPU goes on with another number of threads; else "".

    Sums are formed in another order then, so that the last bits differ.

    Args:
        file: environment.json, as it was written when the run started.
    """
    about = read_json(file)
    before = about.get("threads") if isinstance(about, dict) else None
    here = torch.get_num_threads()
    if not isinstance(before, int) or before == here:
        return ""
    return (
        f"The run was started with {before} threads and goes on with {here}: it is not bit for bit "
        f"the uninterrupted one. OMP_NUM_THREADS={before} makes it so."
    )


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _commit() -> str | None:
    """The commit of this file's git checkout.

    Only if git tracks the file: a package in a virtual environment inside the user's repository
    would else get the commit of that repository.
    """

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
