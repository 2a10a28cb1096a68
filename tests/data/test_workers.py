"""Workers that die, stop or have no room change no batch, and disturb no step of the training."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from nolabel.data import workers
from nolabel.data.loader import make_loader
from nolabel.data.sources.arrays import Arrays
from nolabel.views.executor import Executor


@dataclass
class Whole(Executor):
    """A stand-in for the executors: the whole image, one view. Calls `at_work` in workers."""

    device: str = "cpu"

    def __call__(self, images, keys: np.ndarray, epoch: int) -> dict[str, Tensor]:
        if get_worker_info():
            self.at_work()
        return {"global": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()[None]}

    def at_work(self) -> None:
        """What else a worker does."""


SOURCE = Arrays("toy", np.random.default_rng(0).integers(0, 256, (23, 6, 7, 3), np.uint8))
STEPS = 40


def _loader(executor=None, **more):
    return make_loader(SOURCE, executor or Whole(), seed=5, batch_size=6, start_step=0,
                       total_steps=STEPS, **more)  # fmt: skip


def _same(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.views["global"], y.views["global"]) and torch.equal(x.keys, y.keys)
        for x, y in zip(a, b, strict=True)
    )


def _ended() -> bool:
    return not multiprocessing.active_children()


@pytest.mark.parametrize("earlier", [False, True], ids=["first loader", "after another one"])
def test_a_worker_killed_during_a_step_disturbs_neither_the_step_nor_the_batches(earlier):
    if earlier:  # another library's loader sets DataLoader's handler of SIGCHLD
        list(torch.utils.data.DataLoader(torch.ones(4), num_workers=1))
    handler, messages = signal.getsignal(signal.SIGCHLD), []
    loader = _loader(workers=2, warn=messages.append)
    got = [next(loader)]
    victim = multiprocessing.active_children()[0]
    weight = torch.ones(64, 64, requires_grad=True)
    os.kill(victim.pid, signal.SIGKILL)
    for _ in range(2000):  # DataLoader's handler would raise in here
        (weight @ weight).sum().backward()
        if victim.exitcode is not None:
            break
    assert victim.exitcode == -signal.SIGKILL
    assert _same([*got, *loader], list(_loader()))
    assert len(messages) == 1 and "killed by SIGKILL" in messages[0]
    assert "Restarting the workers (1 of 3 times)" in messages[0]
    assert _ended() and signal.getsignal(signal.SIGCHLD) == handler


def test_a_stopped_worker_is_named_and_a_request_to_stop_still_gets_the_batch(monkeypatch):
    monkeypatch.setattr(workers, "POLL", 0.05)
    monkeypatch.setattr(workers, "SILENCE", 0.2)
    messages: list[str] = []
    loader = _loader(workers=2, warn=messages.append, stopping=lambda: bool(messages))
    got = [next(loader)]
    stopped = [p.pid for p in multiprocessing.active_children()]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    assert _same([*got, *loader], list(_loader()))
    assert len(messages) == 1 and all(str(pid) in messages[0] for pid in stopped)
    assert "kill -CONT" in messages[0] and "Ctrl-C saves" in messages[0]
    assert _ended()  # stopped processes obey no request to end: they were killed


def test_a_stopped_worker_that_goes_on_is_no_matter(monkeypatch):
    monkeypatch.setattr(workers, "POLL", 0.05)
    monkeypatch.setattr(workers, "SILENCE", 0.1)
    pids: list[int] = []

    def go_on(text: str) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    loader = _loader(workers=1, warn=go_on)
    got = [next(loader)]
    pids += [p.pid for p in multiprocessing.active_children()]
    os.kill(pids[0], signal.SIGSTOP)
    assert _same([*got, *loader], list(_loader()))
    assert _ended()


def _no_memory() -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left")


def _no_files() -> None:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("fail", "cause", "advice"),
    [
        (_no_memory, "unable to allocate shared memory", "--shm-size"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), "no shared memory is left", "--shm-size"),
        (_no_files, "too many files are open", "ulimit -n"),
    ],
    ids=["no shared memory", "bus error", "too many open files"],
)
def test_where_workers_have_no_room_this_process_reads_and_says_why(fail, cause, advice):
    class Full(Whole):
        def at_work(self) -> None:
            fail()

    messages: list[str] = []
    assert _same(list(_loader(Full(), workers=2, warn=messages.append)), list(_loader()))
    assert len(messages) == 1 and cause in messages[0] and advice in messages[0]
    assert "as with --workers 0" in messages[0]
    assert _ended()


def test_workers_that_cannot_be_started_are_done_without(monkeypatch):
    def fail(*args, **kwargs):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    messages: list[str] = []
    monkeypatch.setattr(os, "fork", fail)
    assert _same(list(_loader(workers=2, warn=messages.append)), list(_loader()))
    assert len(messages) == 1 and "cannot be started" in messages[0]


def test_batches_come_in_shared_memory_with_their_keys():
    batch = next(_loader(workers=1))
    assert batch.views["global"].is_shared() and batch.keys.is_shared()
