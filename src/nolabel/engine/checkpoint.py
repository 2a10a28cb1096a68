"""A run's checkpoints: written atomically, checked by SHA-256, never unpickled.

A file is one header line of JSON (magic, format, step, SHA-256 and length of the payload), padded
with spaces, and then the payload that `torch.save` wrote. It is read with `weights_only=True`.
Neither writing nor reading holds a second copy of the state in memory: it is streamed to the disk,
hashed on the way, and the header is written last. Saving draws no random numbers, so a run with
checkpoints equals one without.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nolabel import distributed
from nolabel.encoders.state_dict import describe_mismatches
from nolabel.errors import FileDamaged, NolabelError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAGIC = "nolabel-checkpoint"
FORMAT = 2  # format 1 had a header line without padding
HEADER_BYTES = 256
_OWN = ("scale", "decay", "lr", "weight_decay")  # options of a group that the run reads itself
_MOMENTS = {  # what the optimisers of a run keep for each tensor
    "AdamW": frozenset(("step", "exp_avg", "exp_avg_sq")),
    "SGD": frozenset(("momentum_buffer",)),
    "Lars": frozenset(("momentum",)),
}
KEEP_NEWEST = 2  # checkpoints of a run; one more while it is written


class SaveFailed(NolabelError):  # noqa: N818  named as in errors.py
    """A checkpoint could not be written; older ones are untouched."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The newest intact checkpoint, and a note for each newer one that is damaged."""

    step: int
    state: dict[str, Any]
    notes: list[str]


def capture(method: nn.Module, optimiser: Optimizer) -> dict[str, Any]:
    """The state_dicts of method and optimiser: references to the live tensors, not copies.

    Sharded tensors are all-gathered to the CPU, so that the file is the same for any number of
    processes; then all ranks must call it.
    """
    return {
        "method": _gathered(method.state_dict()),
        "optimiser": _gathered(optimiser.state_dict()),
        "optimiser_kind": type(optimiser).__name__,
    }


def _gathered(value: object) -> object:
    """Nested mappings and lists with their sharded tensors gathered."""
    if isinstance(value, Tensor):
        return value if (x := distributed.full_tensor(value)) is value else x.cpu()
    if isinstance(value, Mapping):
        return {k: _gathered(v) for k, v in value.items()}
    return [_gathered(v) for v in value] if isinstance(value, list) else value


def restore(method: nn.Module, optimiser: Optimizer | None, state: Mapping[str, Any]) -> None:
    """Loads the state of `capture`; every tensor must exist and have the right shape.

    Args:
        optimiser: None restores the method alone.

    Raises:
        FileDamaged: tensors are missing, unexpected or of another shape; the message names them.
    """
    try:
        _check_tensors(method.state_dict(), state["method"])
        if optimiser is not None:
            _check_moments(method, optimiser, state)
        method.load_state_dict(_sharded(state["method"], method.state_dict()), strict=True)
        if optimiser is not None:
            optimiser.load_state_dict(_sharded_moments(optimiser, state["optimiser"]))
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise FileDamaged(
            f"The checkpoint does not fit the run: {error} Start a new run, or restore the "
            "run's config.yaml."
        ) from error


def _check_tensors(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Checks names and shapes, and that whole numbers are not loaded as weights or the reverse.

    Raises:
        ValueError: tensors do not fit; the message names the first of them.
    """
    wrong = describe_mismatches(own, saved, "not of the run", "{name} is {got}, not {expected}")
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}.")
    for name, value in own.items():
        other = saved.get(name)
        if not isinstance(value, Tensor) or not isinstance(other, Tensor):
            continue
        if value.is_floating_point() != other.is_floating_point():
            raise ValueError(f"{name} is of {other.dtype}, not of {value.dtype}.")


def _sharded(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full tensors, sharded like the tensors that they are loaded into."""
    shard = distributed.shard_like
    return {k: shard(v, like[k]) if k in like else v for k, v in state.items()}


def _sharded_moments(optimiser: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """The optimiser's state with each moment sharded like its parameter."""
    parameters = [p for g in optimiser.param_groups for p in g["params"]]
    numbers = [i for g in state["param_groups"] for i in g["params"]]
    moments = dict(state["state"])
    for i, p in zip(numbers, parameters, strict=True):
        moments[i] = {
            k: distributed.shard_like(v, p) if isinstance(v, Tensor) and v.ndim else v
            for k, v in moments.get(i, {}).items()
        }
    return {**state, "state": {i: m for i, m in moments.items() if m}}


def _check_moments(method: nn.Module, optimiser: Optimizer, state: Mapping[str, Any]) -> None:
    """Checks what torch does not: the optimiser's class, its options, names and shapes of moments.

    Raises:
        ValueError: something does not fit; the message names it.
    """
    own, saved = type(optimiser).__name__, state["optimiser"]
    if state.get("optimiser_kind", own) != own:
        raise ValueError(f"its optimiser is {state['optimiser_kind']}, the run's is {own}.")
    names = {id(p): n for n, p in method.named_parameters()}
    sizes = [len(g["params"]) for g in saved["param_groups"]]
    expected = [len(g["params"]) for g in optimiser.param_groups]
    if sizes != expected:
        raise ValueError(f"its optimiser's groups hold {sizes} tensors, the run's {expected}.")
    mismatches = []
    needed = _MOMENTS.get(own, frozenset())
    for old, group in zip(saved["param_groups"], optimiser.param_groups, strict=True):
        mismatches += [f"{k} is {old.get(k)!r:.80}" for k in group if not _alike(k, old, group)]
        for index, p in zip(old["params"], group["params"], strict=True):
            moments = saved["state"].get(index, {})
            missing = [k for k in needed if moments and not isinstance(moments.get(k), Tensor)]
            mismatches += [f"{k} of {names.get(id(p), '?')} is missing" for k in missing]
            for key, value in moments.items():
                # Counters have no dimension; every moment has the shape of its tensor.
                if isinstance(value, Tensor) and value.ndim and value.shape != p.shape:
                    shapes = f"{list(value.shape)}, not {list(p.shape)}"
                    mismatches.append(f"{key} of {names.get(id(p), '?')} is {shapes}")
    if mismatches:
        raise ValueError("; ".join(mismatches) + ".")


def _alike(key: str, saved: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether an option of a group of an optimiser has the type that it must have."""
    old, new, number = saved.get(key), own[key], (int, float)
    if old is None or new is None:  # options that a version of torch does not have
        return key not in _OWN
    return (isinstance(old, number) and isinstance(new, number)) or type(old) is type(new)


def save_checkpoint(
    folder: Path, step: int, state: Mapping[str, Any], keep: int = KEEP_NEWEST
) -> Path:
    """Writes checkpoints/step-XXXXXXXX.ckpt so that a crash at any moment loses nothing.

    It is written to a temporary file beside it, fsynced, then renamed. Afterwards all but the
    newest `keep` are deleted, and so are temporary files of a crash and checkpoints of later steps:
    a run resumes from the newest intact one, so those that are newer are damaged.

    Raises:
        SaveFailed: the disk is full or not writable; older checkpoints are untouched.
    """
    checkpoints = Path(folder) / "checkpoints"
    path = checkpoints / f"step-{step:08d}.ckpt"
    temporary = path.with_suffix(".tmp")
    needed = _tensor_bytes(state)  # an estimate, to fail before the disk is full
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(checkpoints).free < needed * 1.05:
            raise OSError(errno.ENOSPC, "Not enough free space")
        with open(temporary, "wb") as file:
            file.write(b" " * HEADER_BYTES)
            payload = _HashingWriter(file)
            with _without_crc():
                torch.save(dict(state), cast(BinaryIO, payload))
            payload.check()
            file.seek(0)
            file.write(_header(step, payload.digest.hexdigest(), payload.bytes))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(checkpoints)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        advice = "Make the folder writable"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            parents = (checkpoints, *checkpoints.absolute().parents)
            free = shutil.disk_usage(next(p for p in parents if p.exists())).free
            advice = f"It needs {needed:,} bytes and {free:,} are free: free some space"
        raise SaveFailed(
            f"Cannot write {path}: {error.strerror or error}. Older checkpoints are untouched. "
            f"{advice}, then go on or resume."
        ) from error
    files = _files(checkpoints)
    older = [f for f in files if _step(f) <= step]
    for old in [f for f in files if _step(f) > step] + older[max(keep, 1) :]:
        with contextlib.suppress(OSError):
            old.unlink()
    for orphan in checkpoints.glob("*.tmp"):
        with contextlib.suppress(OSError):
            orphan.unlink()
    return path


def load_checkpoint(
    folder: Path, problem: Callable[[object], str] = lambda state: ""
) -> LoadedCheckpoint:
    """The newest intact checkpoint of a run; damaged ones are skipped and noted.

    Args:
        folder: of the run.
        problem: what is wrong with a state that was read; "" if nothing is.

    Raises:
        FileDamaged: there is no checkpoint, or none is intact.
    """
    files = _files(Path(folder) / "checkpoints")
    damaged: list[str] = []
    for path in files:
        try:
            step, state = _read(path)
            if what := problem(state):
                raise FileDamaged(f"The checkpoint {path} is not that of a run: {what}.")
            notes = [f"{d} Using the checkpoint before it." for d in damaged]
            return LoadedCheckpoint(step, state, notes)
        except (FileDamaged, OSError) as error:
            damaged.append(str(error))
    if not files:
        raise FileDamaged(f"{folder} holds no checkpoint. Start the run again.")
    raise FileDamaged(
        f"None of the {len(files)} checkpoints in {folder} is intact: {' '.join(damaged)} Start "
        f"a new run; --init {folder} starts it from the last encoder."
    )


def _files(checkpoints: Path) -> list[Path]:
    """Checkpoint files, newest first, sorted by number: names sort wrongly from nine digits on."""
    files = [f for f in checkpoints.glob("step-*.ckpt") if re.fullmatch(r"step-\d+", f.stem)]
    return sorted(files, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


class _HashingWriter:
    """Writes to a file and updates a SHA-256 of what was written.

    The first error of the file is raised by `check`, not by `write`: inside `torch.save` it would
    be replaced by torch's own error about an unexpected file position.
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
        """Does nothing: the file is flushed after its header is written."""

    def check(self) -> None:
        if self.error is not None:
            raise self.error


class _Payload(io.RawIOBase):
    """An open file from its present position on, seen as a file that starts there."""

    def __init__(self, file: io.BufferedReader):
        self.file, self.start = file, file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.file.tell() - self.start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + self.start if whence == os.SEEK_SET else offset
        return self.file.seek(position, whence) - self.start

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        return self.file.readinto(buffer)


@contextlib.contextmanager
def _without_crc() -> Iterator[None]:
    """torch.save without its CRC-32 checksums: they cost as much time as the SHA-256."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _header(step: int, digest: str, length: int, version: int = FORMAT) -> bytes:
    header = {"magic": MAGIC, "format": version, "step": step, "sha256": digest, "bytes": length}
    line = json.dumps(header).encode()
    return (line if version == 1 else line.ljust(HEADER_BYTES - 1)) + b"\n"


def _tensor_bytes(value: object) -> int:
    """Bytes of all tensors in nested mappings, lists and tuples."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(_tensor_bytes(v) for v in value.values())
    return sum(_tensor_bytes(v) for v in value) if isinstance(value, list | tuple) else 0


def _read(path: Path) -> tuple[int, dict[str, Any]]:
    step = _step(path)
    if not path.is_file():  # a pipe would make us wait for ever
        raise FileDamaged(f"The checkpoint {path} is no file.")
    with open(path, "rb") as file:
        line = file.readline(100_000)
        payload = _Payload(file)
        digest, length = hashlib.file_digest(file, "sha256").hexdigest(), payload.tell()
        # The SHA-256 does not cover the header, so the header is compared with what it must be: one
        # altered digit in "step" would resume the run at a wrong step.
        if line not in (_header(step, digest, length, version) for version in (FORMAT, 1)):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                header = json.loads(line)
                if header["magic"] == MAGIC and header["format"] > FORMAT:
                    raise FileDamaged(
                        f"The checkpoint {path} is of format {header['format']}, this version "
                        f"reads {FORMAT}, or it is damaged. Resume with the version that wrote it."
                    )
            raise FileDamaged(f"The checkpoint {path} is damaged (short or altered).")
        payload.seek(0)
        try:
            state = torch.load(cast(BinaryIO, payload), map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # the SHA-256 is right, but this is no state of ours
            raise FileDamaged(f"The checkpoint {path} cannot be read: {error}") from error
    return step, state


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk (fsync), so that a rename survives a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
