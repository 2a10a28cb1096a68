"""The worker processes of a data loader: which of them died, stopped, or cannot send anything."""

from __future__ import annotations

import errno
import multiprocessing
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

from torch.utils.data import DataLoader

T = TypeVar("T")

# Forked workers share the source's memory (copy-on-write). Fork is not safe on macOS and does not
# exist on Windows: workers are spawned there, and get the source pickled.
FORKED = sys.platform == "linux"
START = "fork" if FORKED else "spawn"
POLL = 1.0  # seconds between looks at the workers while a batch is awaited
SILENCE = 60.0  # seconds without a batch until the workers that do not answer are named
IMPATIENCE = 10.0  # seconds that a request to stop waits for a worker that is busy
_SHARED = Path("/dev/shm")  # where processes share memory on Linux


class WorkerDied(Exception):
    """A worker process exited unexpectedly."""


class NoRoom(Exception):
    """Batches cannot be sent between processes: no shared memory, or too many open files."""


class TooSlow(Exception):
    """A stop was requested, and the next batch does not come."""


class Workers:
    """The worker processes of one DataLoader; a context manager.

    DataLoader's handler of SIGCHLD raises an error wherever the main thread is when a worker dies,
    in the middle of a training step too. Inside this block such an error is raised only where a
    batch is awaited. A thread watches how long that takes: a worker that is stopped in the middle
    of a message makes the main thread wait without a limit.

    Args:
        warn: called with a sentence when no batch comes for `SILENCE` seconds.
        stopping: whether a stop was requested.
    """

    def __init__(self, warn: Callable[[str], object], stopping: Callable[[], bool]):
        self._warn, self._stopping = warn, stopping
        self._processes: list[BaseProcess] = []
        self._receiving = self._gave_up = False
        self._received = 0
        self._ended = threading.Event()
        main = threading.current_thread() is threading.main_thread()
        self._handles_signals = main and sys.platform != "win32"
        self._handler: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Workers:
        if self._handles_signals:
            self._handler = signal.getsignal(signal.SIGCHLD)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._handles_signals:
            signal.signal(signal.SIGCHLD, self._handler)

    def start(self, loader: DataLoader[T]) -> Iterator[T]:
        """Starts the workers of a loader.

        Raises:
            NoRoom: the system starts no more processes, or gives them nothing to talk through.
        """
        others = set(multiprocessing.active_children())
        try:
            results = iter(loader)
        except OSError as error:
            raise NoRoom(f"the workers cannot be started ({error.strerror or error})") from error
        self._processes = [p for p in multiprocessing.active_children() if p not in others]
        if self._handles_signals:
            signal.signal(signal.SIGCHLD, self._child_changed)
        threading.Thread(target=self._watch, name="nolabel-workers", daemon=True).start()
        return results

    def receive(self, results: Iterator[T]) -> Iterator[T]:
        """Yields what the workers send.

        Raises:
            WorkerDied: one of them died.
            NoRoom: they cannot send anything.
            TooSlow: a stop was requested, and the next batch does not come.
        """
        while True:
            self._refuse_dead()
            self._receiving = True
            try:
                result = next(results)
            except StopIteration:
                return
            except (WorkerDied, RuntimeError, OSError, EOFError) as error:
                if self._gave_up:
                    raise TooSlow from error
                if _timed_out(error):
                    continue
                self._refuse_dead()  # DataLoader does not tell what a worker died of
                raise _meaning(error) from error
            finally:
                self._receiving = False
            self._received += 1
            yield result

    def end_stopped(self) -> None:
        """Kills workers that are stopped: they would not obey a request to end."""
        for process in self._processes:
            if _state(process) == "stopped":
                process.kill()

    def _child_changed(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGCHLD: interrupts the wait for a message that the dead left unfinished."""
        if self._receiving:
            self._refuse_dead()

    def _refuse_dead(self) -> None:
        for process in self._processes:
            if process.exitcode:
                raise WorkerDied(_cause(process.exitcode, process.pid))

    def _watch(self) -> None:
        """Runs in a thread: looks every `POLL` seconds whether a batch is awaited."""
        waited, since = 0.0, -1
        while not self._ended.wait(POLL):
            if self._received != since:
                waited, since = 0.0, self._received
            if not self._receiving:
                continue
            waited += POLL  # counted, not measured: all processes may have been suspended
            if self._not_yet(waited):
                return

    def _not_yet(self, waited: float) -> bool:
        """Names the workers after `SILENCE` seconds; ends them, if a stop was requested."""
        states = {p.pid: _state(p) for p in self._processes}
        stopped = [pid for pid, state in states.items() if state == "stopped"]
        if self._stopping() and (stopped or waited >= IMPATIENCE):
            self._gave_up = True
            for process in self._processes:  # which wakes the main thread
                process.kill()
            return True
        if waited - POLL < SILENCE <= waited:
            self._warn(_silence(waited, stopped, states))
        return False


def _silence(waited: float, stopped: list[int | None], states: dict[int | None, str]) -> str:
    """What to say when no batch has come for some time."""
    text = f"No batch has come for {waited:.0f} seconds."
    if stopped:
        pids = " ".join(str(pid) for pid in stopped)
        return (
            f"{text} Stopped data workers: {pids}. `kill -CONT {pids}` lets them go on; Ctrl-C "
            "saves and ends the run."
        )
    busy = ", ".join(f"{pid} {state}" for pid, state in states.items())
    return f"{text} Data workers: {busy}. Ctrl-C saves and ends the run."


def _state(process: BaseProcess) -> str:
    """What a process does, in words; on Linux alone more than that it lives."""
    try:
        line = Path(f"/proc/{process.pid}/stat").read_text("ascii", "replace")
    except OSError:
        return "is alive"
    letter = line.rpartition(")")[2].split()[0]
    return {"T": "stopped", "t": "stopped", "D": "waits for the disk"}.get(letter, "is at work")


def _cause(exit_code: int, pid: int | None) -> str:
    if exit_code > 0:
        return f"process {pid} exited with code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"process {pid} was killed by {name}"


def is_bus_error(error: BaseException) -> bool:
    """Whether a worker died as it wrote to shared memory that is full."""
    return "SIGBUS" in str(error) or "Bus error" in str(error)


def _timed_out(error: BaseException) -> bool:
    return "DataLoader timed out" in str(error)


def _meaning(error: BaseException) -> BaseException:
    """The error to raise instead of one that DataLoader raised."""
    text = (str(error) or "no message").splitlines()[0]
    if "Too many open files" in text or "ancdata" in text or _errno(error) == errno.EMFILE:
        return NoRoom("too many files are open")
    if isinstance(error, RuntimeError) and not _is_death(error):
        return error
    return WorkerDied(text)


def _is_death(error: RuntimeError) -> bool:
    """Whether this is DataLoader's error for a worker that died."""
    return "exited unexpectedly" in str(error) or "killed by signal" in str(error)


def _errno(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def no_room(error: BaseException) -> str:
    """Why a worker could not put a batch into shared memory; "" if this is another error."""
    text = str(error).partition("\n")[0]
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many files are open"
    if not isinstance(error, RuntimeError):
        return ""
    if "Too many open files" in text:
        return "too many files are open"
    shared = ("shared memory", "unable to mmap", "unable to resize file", "unable to write to file")
    return text if any(part in text for part in shared) else ""


def advice(reason: str) -> str:
    """What helps where batches cannot be sent between processes."""
    if "open" in reason and "files" in reason:
        return "Allow more open files with `ulimit -n 65536`."
    try:
        disk = shutil.disk_usage(_SHARED)
    except OSError:
        return "Shared memory is needed (/dev/shm on Linux)."
    return (
        f"{_SHARED} has {disk.total >> 20:,} MB, {disk.free >> 20:,} of them free. Containers: "
        "start them with more, as `docker run --shm-size=2g` does. Or use fewer --workers."
    )


def end_quietly(results: object) -> None:
    """Ends the workers of a DataLoader's iterator.

    Without this, the traceback of an error keeps the iterator and its workers alive. The method is
    private to DataLoader, hence the fallback.
    """
    stop = getattr(results, "_shutdown_workers", lambda: None)
    try:
        stop()
    except RuntimeError as error:
        # A handler of SIGCHLD may report a dead worker only now; that error was raised already.
        if not _is_death(error):
            raise
        stop()
