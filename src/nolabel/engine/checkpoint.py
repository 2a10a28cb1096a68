"""The private resume state: written atomically, checked by digest, never unpickled blindly.

A file is one line of JSON (magic, format, step, SHA-256 and length of the rest) and then what
`torch.save` wrote.  It is read with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from nolabel.errors import FileDamaged, NolabelError

MAGIC = "nolabel-checkpoint"


class SaveFailed(NolabelError):
    """A checkpoint could not be written; older ones are untouched."""


@dataclass(frozen=True)
class Loaded:
    """The newest usable checkpoint, and what had to be passed over to find it."""

    step: int
    state: dict[str, Any]
    notes: list[str]


def capture(method: nn.Module, optimiser: Optimizer) -> dict[str, Any]:
    """Weights, teacher, centres and the optimiser's moments."""
    return {"method": method.state_dict(), "optimiser": optimiser.state_dict()}


def restore(method: nn.Module, optimiser: Optimizer | None, state: Mapping[str, Any]) -> None:
    """Puts `capture`'s state back; every tensor must be there and fit.

    Raises:
        FileDamaged: names missing, unexpected or misfit tensors.
    """
    try:
        method.load_state_dict(state["method"], strict=True)
        if optimiser is not None:
            optimiser.load_state_dict(state["optimiser"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise FileDamaged(
            f"The checkpoint does not fit the run: {error} Start a new run, or restore the "
            "run's config.yaml."
        ) from error


def rng_state() -> dict[str, Any]:
    """Torch's random state, CPU and every CUDA device; nothing else here draws at random."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """The inverse of `rng_state`."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int = 2) -> Path:
    """Writes checkpoints/step-XXXXXXXX.ckpt so that a crash at any moment loses nothing.

    Raises:
        SaveFailed: the disk is full or not writable; older checkpoints still stand.
    """
    place = Path(folder) / "checkpoints"
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getbuffer()
    header = {
        "magic": MAGIC,
        "format": 1,
        "step": step,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "bytes": len(payload),
    }
    path = place / f"step-{step:08d}.ckpt"
    temporary = path.with_suffix(".tmp")
    try:
        place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place).free
        if free < len(payload) * 1.05:
            raise OSError(28, f"{len(payload):,} bytes needed, {free:,} free")
        with open(temporary, "wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(place)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise SaveFailed(
            f"Cannot write {path}: {error.strerror or error}. Older checkpoints are untouched. "
            "Free some space, then go on or resume."
        ) from error
    for old in _files(place)[keep:]:
        with contextlib.suppress(OSError):
            old.unlink()
    for orphan in place.glob("*.tmp"):
        with contextlib.suppress(OSError):
            orphan.unlink()
    return path


def load_checkpoint(folder: Path) -> Loaded:
    """The newest checkpoint of a run that is whole; damaged ones are passed over and noted.

    Raises:
        FileDamaged: there is none, or none is whole.
    """
    files = _files(Path(folder) / "checkpoints")
    notes: list[str] = []
    for path in files:
        try:
            step, state = _read(path)
            return Loaded(step, state, notes)
        except (FileDamaged, OSError) as error:
            notes.append(f"{error} Going back to the one before.")
    if not files:
        raise FileDamaged(f"{folder} holds no checkpoint. Start the run again.")
    raise FileDamaged(
        f"None of the {len(files)} checkpoints in {folder} is whole: {' '.join(notes)} Start a "
        f"new run; --init {folder} takes the last encoder as its beginning."
    )


def _files(place: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted(place.glob("step-*.ckpt"), reverse=True)


def _read(path: Path) -> tuple[int, dict[str, Any]]:
    with open(path, "rb") as file:
        line, payload = file.readline(100_000), file.read()
    try:
        header = json.loads(line)
        step = int(header["step"])
        right = header["magic"] == MAGIC and header["bytes"] == len(payload)
        right = right and header["sha256"] == hashlib.sha256(payload).hexdigest()
    except (ValueError, KeyError, TypeError):
        right, step = False, 0
    if not right:
        raise FileDamaged(f"The checkpoint {path} is damaged (short or altered).")
    state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return step, state


def sync_folder(folder: Path) -> None:
    """Makes a rename in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
