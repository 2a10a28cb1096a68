"""What trains: a method, its optimiser and its data, and the three things that can happen to them.

A step updates the weights (`train_step`) or is rejected (`reject`), and the state is saved
(`save`). The position of a run is one integer, the step; all else that must be saved is in
`Trainer.state`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nolabel import distributed
from nolabel.backbones.base import Backbone
from nolabel.config import Run
from nolabel.data.source import Source
from nolabel.device import autocast
from nolabel.engine import parallel, run_folder
from nolabel.engine.build import load_method
from nolabel.engine.checkpoint import SaveFailed, capture, restore, save_checkpoint
from nolabel.engine.compiled import compile_layers
from nolabel.engine.distributed_method import DistributedMethod
from nolabel.engine.feed import TimedFeed, batches_of
from nolabel.engine.gradients import gradients
from nolabel.engine.heartbeat import Heartbeat
from nolabel.engine.log import say, warn
from nolabel.engine.optimiser import UpdateSize, build_optimiser, gradient_norm, set_rates
from nolabel.engine.run_folder import CAPTURED
from nolabel.engine.step import NonFiniteGuard, StepSnapshot, apply_update
from nolabel.engine.stop import StopRequest
from nolabel.engine.unreadable import UnreadableFiles
from nolabel.methods.base import Method
from nolabel.nn.random_state import RngState, preserve_rng, rng_state, set_rng_state
from nolabel.types import Clock, Step
from nolabel.views.plan import ViewPlan

CHECKPOINT_SECONDS = 300.0  # between checkpoints, unless --checkpoint-every says how many steps


@dataclass(frozen=True)
class StepResult:
    """What an optimiser step gave.

    Attributes:
        loss: mean over all micro-batches and processes, a scalar.
        gradient_norm: norm of all gradients before clipping, a scalar.
        step: the method's logs and features, of this process's last micro-batch.
        update_size: measures how far the update moved the weights, where that was asked for.
        data_wait: seconds for which the step waited for data.
        stop: whether any process was asked to stop.
        save: whether the time for a checkpoint has come.
    """

    loss: Tensor
    gradient_norm: Tensor
    step: Step
    update_size: UpdateSize | None = None
    data_wait: float = 0.0
    stop: bool = False
    save: bool = False


class Trainer:
    """Built once a process, from what a run was resolved to.

    Args:
        run: resolved, with its length.
        method: on its device.
        plan: the views.
        source: the training data.
        device: where to compute.
        start: the step to start from.
        state: of a checkpoint of that step; None for a new run.
        note: takes a line for the user.
    """

    def __init__(
        self,
        run: Run,
        method: Method,
        plan: ViewPlan,
        source: Source,
        device: torch.device,
        *,
        start: int = 0,
        state: Mapping[str, Any] | None = None,
        note: Callable[[str], None] = say,
    ):
        s = run.settings
        self.run, self.method, self.plan, self.source = run, method, plan, source
        self.device, self.start, self.total, self.note = device, start, s.steps, note
        self.first = distributed.rank() == 0
        method.train()
        if s.compile:
            compile_layers(method, device)
        self.distributed = DistributedMethod(method, shard=s.shard, layers=s.shard_layers)
        self.optimiser = build_optimiser(method, run.optim)
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.guard, self.before = NonFiniteGuard(), StepSnapshot(method)
        if state is None:
            torch.manual_seed(s.seed + 1)
        else:
            restore(method, self.optimiser, state["learner"])
            set_rng_state(state["rng"])
            self.guard.consecutive = int(state["guard"])
        self.warm_steps = s.warm_heads
        self.frozen = _backbone_parameters(method) if self.warm_steps else []
        batches = batches_of(
            run, method, plan, source, device, start, self.total, workers=s.workers
        )
        self.feed = TimedFeed(batches, device)
        self.unreadable = UnreadableFiles(
            run.folder / "skipped.jsonl", len(source), s.max_bad, write=self.first
        )
        self.heartbeat, self.stop = Heartbeat(warn), StopRequest()
        self.saved_at = time.monotonic()

    def train_step(self, clock: Clock, *, measure: bool = False) -> StepResult:
        """One optimiser step, in all processes at once.

        Args:
            measure: whether to measure the update, and to exchange the list of unreadable files.

        Raises:
            GuardStop: several steps in a row were not finite.
            DataError: too many files cannot be read.
        """
        set_rates(self.optimiser, self.run.optim, clock)
        self.before.take()
        self.feed.wait = 0.0
        out, loss = self._gradients(clock)
        if clock.step < self.warm_steps:  # only the new heads learn
            for p in self.frozen:
                p.grad = None
        if measure or distributed.world_size() == 1:  # not a collective at every step
            self.unreadable.add(parallel.all_gather_objects(tuple(self.feed.unreadable)))
            self.feed.unreadable.clear()
        loss, (stop, save) = parallel.reduce_loss_and_flags(
            loss, self.stop.requested, self._save_is_due()
        )
        norm = gradient_norm(self.parameters)
        update_size = UpdateSize(self.parameters) if measure else None
        if self.guard.check(loss, norm):  # before the update and the moving averages
            apply_update(self.method, self.optimiser, self.run.optim, clock)
        else:
            self.reject(clock)
        return StepResult(loss, norm, out, update_size, self.feed.wait, stop, save)

    def _gradients(self, clock: Clock) -> tuple[Step, Tensor]:
        """Leaves the step's gradients in the parameters."""
        s = self.run.settings

        def cast() -> AbstractContextManager[Any]:
            return autocast(s.precision, self.device)

        def beat(share: float) -> None:
            self.heartbeat.beat(clock.step + share)

        return gradients(self.distributed, self.feed, s.accumulate, clock, cast, beat)

    def _save_is_due(self) -> bool:
        """Whether the time between checkpoints is over, where steps do not count."""
        elapsed = time.monotonic() - self.saved_at
        return not self.run.settings.checkpoint_every and elapsed > CHECKPOINT_SECONDS

    def reject(self, clock: Clock) -> None:
        """Skips a step that is not finite: its gradients and statistics are dropped.

        The first one of several in a row is captured, so that `nolabel replay` can repeat it. A
        capture that cannot be written does not stop the run.
        """
        self.optimiser.zero_grad(set_to_none=True)
        self.before.restore_statistics()
        self.note(f"Step {clock.step}: loss or gradients are not finite; the step is skipped.")
        if self.guard.consecutive > 1:
            return
        folder = self.run.folder
        self.note(f"`nolabel replay {folder}` repeats it and says where that began.")
        state = self.state(self.before.rng)
        try:
            if self.first:
                save_checkpoint(folder / CAPTURED, clock.step, state, keep=1)
        except SaveFailed as error:
            self.note(f"Could not keep it. {error}")

    def state(self, rng: RngState) -> dict[str, Any]:
        """What a checkpoint holds: weights, moments, random state and the guard's count.

        A collective where the weights are sharded: all processes must call it.

        Args:
            rng: the random state to save.
        """
        sharded = self.run.settings.shard
        learner = capture(self.method, self.optimiser) if self.first or sharded else {}
        return {"learner": learner, "rng": rng, "guard": self.guard.consecutive}

    def save(self, step: int, *, final: bool = False) -> None:
        """Writes a checkpoint and the encoder file; the first process writes.

        All processes must call it. A failed save is reported and the run goes on from the older
        checkpoint; not so a final one.

        Args:
            step: number of steps done.
            final: whether nothing follows; all processes then wait until it is written.

        Raises:
            SaveFailed: the final checkpoint could not be written.
            OSError: nor the final encoder file.
        """
        self.saved_at = time.monotonic()
        state = self.state(rng_state())
        if self.first:
            try:
                save_checkpoint(self.run.folder, step, state)
                self.export()
            except (SaveFailed, OSError) as error:
                if final:
                    raise
                self.note(f"Could not save at step {step}; going on from the older one. {error}")
            self.saved_at = time.monotonic()
        if final:
            distributed.barrier()

    def export(self) -> None:
        """Writes the encoder file; a sharded method is read from the checkpoint just saved."""
        with preserve_rng():
            sharded = self.run.settings.shard
            method = load_method(self.run.folder)[0] if sharded else self.method
            run_folder.export(self.run, method, self.plan)


def _backbone_parameters(method: Method) -> list[nn.Parameter]:
    """The parameters of all networks of a method, heads left out."""
    return [p for m in method.modules() if isinstance(m, Backbone) for p in m.parameters()]
