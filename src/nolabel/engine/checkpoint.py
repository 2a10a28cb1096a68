"""A run's checkpoints: written atomically, checked by digest, never unpickled blindly.

A file is one line of JSON (magic, format, step, SHA-256 and length of the rest), padded with
spaces, and then what `torch.save` wrote. It is read with `weights_only=True`. Neither writing nor
reading holds a second copy of the state: it is streamed to the disk, the digest is computed on the
way, and the first line is written last. Saving reads the state and draws nothing at random, so a
run that saves equals one that does not.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nolabel import distributed
from nolabel.errors import FileDamaged, NolabelError

MAGIC = "nolabel-checkpoint"
FORMAT = 2  # the first had a first line of its own length
FIRST_LINE = 256  # bytes
KEPT = 2  # checkpoints of a run; one more while it is written


class SaveFailed(NolabelError):  # noqa: N818  named as in errors.py
    """A checkpoint could not be written; older ones are untouched."""


@dataclass(frozen=True)
class Loaded:
    """The newest usable checkpoint, and what had to be passed over to find it."""

    step: int
    state: dict[str, Any]
    notes: list[str]


def capture(method: nn.Module, optimiser: Optimizer) -> dict[str, Any]:
    """Weights, teacher, centres and the optimiser's moments: the live tensors, not copies.

    Sharded tensors are gathered on the CPU, so that the file is the same for any number of
    processes; it is a collective then.
    """
    return {
        "method": _gathered(method.state_dict()),
        "optimiser": _gathered(optimiser.state_dict()),
        "optimiser_kind": type(optimiser).__name__,
    }


def _gathered(value: Any) -> Any:
    """A nest of mappings and lists with its sharded tensors gathered."""
    if isinstance(value, Tensor):
        return value if (x := distributed.full_tensor(value)) is value else x.cpu()
    if isinstance(value, Mapping):
        return {k: _gathered(v) for k, v in value.items()}
    return [_gathered(v) for v in value] if isinstance(value, list) else value


def restore(method: nn.Module, optimiser: Optimizer | None, state: Mapping[str, Any]) -> None:
    """Puts `capture`'s state back; every tensor must be there and fit.

    Raises:
        FileDamaged: names missing, unexpected or misfit tensors.
    """
    try:
        if optimiser is not None:
            _check_moments(method, optimiser, state)
        method.load_state_dict(_sharded(state["method"], method.state_dict()), strict=True)
        if optimiser is not None:
            optimiser.load_state_dict(_sharded_moments(optimiser, state["optimiser"]))
    except (RuntimeError, KeyError, ValueError) as error:
        raise FileDamaged(
            f"The checkpoint does not fit the run: {error} Start a new run, or restore the "
            "run's config.yaml."
        ) from error


def _sharded(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full tensors sharded as those that they are loaded into."""
    shard = distributed.shard_like
    return {k: shard(v, like[k]) if k in like else v for k, v in state.items()}


def _sharded_moments(optimiser: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's state with its moments sharded as the parameters that they belong to."""
    held = [p for g in optimiser.param_groups for p in g["params"]]
    numbers = [i for g in state["param_groups"] for i in g["params"]]
    moments = dict(state["state"])
    for i, p in zip(numbers, held, strict=True):
        moments[i] = {
            k: distributed.shard_like(v, p) if isinstance(v, Tensor) and v.ndim else v
            for k, v in moments.get(i, {}).items()
        }
    return {**state, "state": {i: m for i, m in moments.items() if m}}


def _check_moments(method: nn.Module, optimiser: Optimizer, state: Mapping[str, Any]) -> None:
    """What torch does not check: the optimiser's kind, and that moments fit their tensors.

    Raises:
        ValueError: names what does not fit.
    """
    kind, saved = type(optimiser).__name__, state["optimiser"]
    if state.get("optimiser_kind", kind) != kind:
        raise ValueError(f"its optimiser is {state['optimiser_kind']}, the run's is {kind}.")
    names = {id(p): n for n, p in method.named_parameters()}
    held = [len(g["params"]) for g in saved["param_groups"]]
    wanted = [len(g["params"]) for g in optimiser.param_groups]
    if held != wanted:
        raise ValueError(f"its optimiser's groups hold {held} tensors, the run's {wanted}.")
    wrong = []
    for old, group in zip(saved["param_groups"], optimiser.param_groups, strict=True):
        for index, p in zip(old["params"], group["params"], strict=True):
            for key, value in saved["state"].get(index, {}).items():
                # Counters have no dimension; every moment has the shape of its tensor.
                if isinstance(value, Tensor) and value.ndim and value.shape != p.shape:
                    shapes = f"{list(value.shape)}, not {list(p.shape)}"
                    wrong.append(f"{key} of {names.get(id(p), '?')} is {shapes}")
    if wrong:
        raise ValueError("; ".join(wrong) + ".")


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int = KEPT) -> Path:
    """Writes checkpoints/step-XXXXXXXX.ckpt so that a crash at any moment loses nothing.

    Written to a temporary file beside it, flushed to the disk, then renamed. Afterwards all but
    the newest `keep` go, as do temporaries that a crash left and files of later steps: a run
    resumes from the newest whole one, so whatever is newer than this one was damaged.

    Raises:
        SaveFailed: the disk is full or not writable; older checkpoints still stand.
    """
    place = Path(folder) / "checkpoints"
    path = place / f"step-{step:08d}.ckpt"
    temporary = path.with_suffix(".tmp")
    needed = _tensor_bytes(state)  # an estimate: spares a doomed write and a full disk
    try:
        place.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(place).free < needed * 1.05:
            raise OSError(errno.ENOSPC, "Not enough free space")
        with open(temporary, "wb") as file:
            file.write(b" " * FIRST_LINE)
            payload = _Digested(file)
            with _without_crc():
                torch.save(dict(state), cast(BinaryIO, payload))
            payload.check()
            file.seek(0)
            file.write(_header(step, payload.digest.hexdigest(), payload.bytes))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(place)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        advice = "Make the folder writable"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            there = next(p for p in (place, *place.absolute().parents) if p.exists())
            free = shutil.disk_usage(there).free
            advice = f"It needs {needed:,} bytes and {free:,} are free: free some space"
        raise SaveFailed(
            f"Cannot write {path}: {error.strerror or error}. Older checkpoints are untouched. "
            f"{advice}, then go on or resume."
        ) from error
    files = _files(place)
    older = [f for f in files if _step(f) <= step]
    for old in [f for f in files if _step(f) > step] + older[max(keep, 1) :]:
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
    """Checkpoints, newest first; by number, as a ninth digit would upset the order of names."""
    found = [f for f in place.glob("step-*.ckpt") if re.fullmatch(r"step-\d+", f.stem)]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


class _Digested:
    """What is written goes on to a file, and into a digest.

    The file's first error waits for `check`: raised in the midst of `torch.save`, it would be
    replaced by one of torch's own, about a position that is not the expected one.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0
        self.error: BaseException | None = None

    def write(self, data: bytes | memoryview) -> int:
        if self.error is None:
            try:
                self.file.write(data)
                self.digest.update(data)
                self.bytes += len(data)
            except BaseException as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing: the file is flushed when its first line is there."""

    def check(self) -> None:
        if self.error is not None:
            raise self.error


class _Rest(io.RawIOBase):
    """An open file from its present position on, as if it began there."""

    def __init__(self, file: BinaryIO):
        self.file, self.start = file, file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.file.tell() - self.start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + self.start if whence == os.SEEK_SET else offset
        return self.file.seek(at, whence) - self.start

    def readinto(self, buffer: Any) -> int:
        return self.file.readinto(buffer)  # type: ignore[attr-defined,no-any-return]


@contextlib.contextmanager
def _without_crc() -> Iterator[None]:
    """torch.save without checksums of its own: the digest is better, and they cost as much."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _header(step: int, digest: str, length: int, kind: int = FORMAT) -> bytes:
    header = {"magic": MAGIC, "format": kind, "step": step, "sha256": digest, "bytes": length}
    line = json.dumps(header).encode()
    return (line if kind == 1 else line.ljust(FIRST_LINE - 1)) + b"\n"


def _tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a nest of mappings, lists and tuples."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(_tensor_bytes(v) for v in value.values())
    return sum(_tensor_bytes(v) for v in value) if isinstance(value, list | tuple) else 0


def _read(path: Path) -> tuple[int, dict[str, Any]]:
    step = _step(path)
    with open(path, "rb") as file:
        line = file.readline(100_000)
        rest = _Rest(file)
        digest, length = hashlib.file_digest(file, "sha256").hexdigest(), rest.tell()
        # Compared as a whole with what it must be: the digest guards the payload, not the first
        # line, and one altered digit of the step would resume at a wrong place.
        if line not in (_header(step, digest, length, kind) for kind in (FORMAT, 1)):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                header = json.loads(line)
                if header["magic"] == MAGIC and header["format"] > FORMAT:
                    raise FileDamaged(
                        f"The checkpoint {path} is of format {header['format']}, this version "
                        f"reads {FORMAT}, or it is damaged. Resume with the version that wrote it."
                    )
            raise FileDamaged(f"The checkpoint {path} is damaged (short or altered).")
        rest.seek(0)
        try:
            state = torch.load(cast(BinaryIO, rest), map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # the digest is right, yet this is not a state of ours
            raise FileDamaged(f"The checkpoint {path} cannot be read: {error}") from error
    return step, state


def sync_folder(folder: Path) -> None:
    """Makes a rename in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
