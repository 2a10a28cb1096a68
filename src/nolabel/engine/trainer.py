"""The trainer: a method, its optimiser and its data.

A step updates the weights (`train_step`) or is skipped (`reject`); the state is saved with `save`.
The position of a run is one integer, the step; all other state is in `Trainer.state`.
"""

from __future__ import annotations

import contextlib
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
from nolabel.engine.length import Length
from nolabel.engine.log import say, warn
from nolabel.engine.optimiser import build_optimiser, gradient_norm, set_rates
from nolabel.engine.run_folder import CAPTURED
from nolabel.engine.step import NonFiniteGuard, StepSnapshot, apply_update
from nolabel.engine.stop import StopRequest
from nolabel.engine.unreadable import UnreadableFiles
from nolabel.engine.update_size import UpdateSize
from nolabel.errors import command
from nolabel.methods.base import Method
from nolabel.nn.random_state import RngState, preserve_rng, rng_state, set_rng_state
from nolabel.types import Clock, Step
from nolabel.views.plan import ViewPlan

CHECKPOINT_SECONDS = 300.0  # between checkpoints, unless --checkpoint-every counts steps


@dataclass(frozen=True)
class StepResult:
    """The result of an optimiser step.

    Attributes:
        loss: mean over micro-batches and ranks, a scalar.
        gradient_norm: norm of all gradients before clipping, a scalar.
        step: the method's output for this rank's last micro-batch.
        update_size: computes the relative size of the update; None unless it is measured.
        data_wait: seconds spent waiting for data.
        stop: whether any rank received a stop request.
        save: whether a checkpoint is due by time.
    """

    loss: Tensor
    gradient_norm: Tensor
    step: Step
    update_size: UpdateSize | None = None
    data_wait: float = 0.0
    stop: bool = False
    save: bool = False


class Trainer:
    """Takes, skips and saves the steps of a run. Built once in each process.

    Args:
        run: resolved.
        method: on its device.
        plan: the views.
        source: the training data.
        device: where to compute.
        start: the step to start from.
        state: of a checkpoint of that step; None for a new run.
        length: the number of steps, if it may change; None: that of the settings.
        images: what the batches are read from, if the training data are in memory already.
        note: called with lines for the user.
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
        length: Length | None = None,
        images: Source | None = None,
        note: Callable[[str], None] = say,
    ):
        s = run.settings
        self.run, self.method, self.plan, self.source = run, method, plan, source
        self.device, self.start, self.note = device, start, note
        self.length = length or Length(run)
        self.total = self.length.total(start)
        self.first = distributed.rank() == 0
        method.train()
        if s.compile:
            compile_layers(method, device)
        self.distributed = DistributedMethod(method, shard=s.shard, by_layer=s.shard_layers)
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
        self.heartbeat, self.stop = Heartbeat(warn), StopRequest()
        batches = batches_of(
            run, method, plan, images or source, device, start, self.length.most,
            workers=s.workers, stopping=lambda: self.stop.requested,
        )  # fmt: skip
        self.feed = TimedFeed(batches, device)
        self.unreadable = UnreadableFiles(
            run.folder / "skipped.jsonl", len(source), s.max_bad, write=self.first
        )
        self.saved_at = time.monotonic()

    def clock(self, step: int) -> Clock:
        """The clock of a step."""
        return self.length.at(step).clock(step, self.run.steps_per_epoch)

    def train_step(self, clock: Clock, *, measure: bool = False) -> StepResult:
        """One optimiser step; a collective.

        Args:
            measure: whether to measure the update, and to all-gather the unreadable files.

        Raises:
            GuardStop: several steps in a row were not finite.
            DataError: too many files cannot be read.
        """
        set_rates(self.optimiser, self.run.optim, clock)
        self.before.take()
        self.feed.wait = 0.0
        out, loss = self._gradients(clock)
        if clock.step < self.warm_steps:  # train only the new heads
            for p in self.frozen:
                p.grad = None
        if measure or distributed.world_size() == 1:  # saves a collective in most steps
            self.unreadable.add(parallel.all_gather_objects(tuple(self.feed.unreadable)))
            self.feed.unreadable.clear()
        loss, (stop, save) = parallel.reduce_loss_and_flags(
            loss, self.stop.requested, self._save_is_due()
        )
        norm = gradient_norm(self.parameters)
        update_size = UpdateSize(self.parameters) if measure else None
        if self.guard.check(loss, norm):  # before the update and EMA
            apply_update(self.method, self.optimiser, self.run.optim, clock)
        else:
            self.reject(clock)
        return StepResult(loss, norm, out, update_size, self.feed.wait, stop, save)

    def correct_length(self, done: int) -> bool:
        """Adapts the number of steps to the time that is left; a collective.

        Returns:
            Whether it changed.
        """
        steps = parallel.broadcast_object(self.length.corrected(done) if self.first else None)
        if steps is None:
            return False
        self.length.change(done, steps, write=self.first)
        self.total = self.length.total(done)
        self.run = self.run.with_settings(steps=steps)
        if self.first:
            run_folder.write_config(self.run)
        return True

    def _gradients(self, clock: Clock) -> tuple[Step, Tensor]:
        """Computes the step's gradients."""
        s = self.run.settings

        def cast() -> AbstractContextManager[Any]:
            return autocast(s.precision, self.device)

        def beat(share: float) -> None:
            self.heartbeat.beat(clock.step + share)

        return gradients(self.distributed, self.feed, s.accumulate, clock, cast, beat)

    def _save_is_due(self) -> bool:
        """Whether a checkpoint is due by time, unless --checkpoint-every counts steps."""
        elapsed = time.monotonic() - self.saved_at
        return not self.run.settings.checkpoint_every and elapsed > CHECKPOINT_SECONDS

    def reject(self, clock: Clock) -> None:
        """Skips a non-finite step: discards its gradients and batch norm statistics.

        The first of several in a row is saved, if possible, so that `nolabel replay` can repeat it.
        """
        self.optimiser.zero_grad(set_to_none=True)
        self.before.restore_statistics()
        self.note(f"Step {clock.step}: loss or gradients are not finite; the step is skipped.")
        if self.guard.consecutive > 1:
            return
        folder = self.run.folder
        repeat = command("nolabel", "replay", str(folder))
        self.note(f"`{repeat}` repeats the step and names the module that caused it.")
        state = self.state(self.before.rng)
        try:
            if self.first:
                save_checkpoint(folder / CAPTURED, clock.step, state, keep=1)
        except SaveFailed as error:
            self.note(f"The step could not be saved for `nolabel replay`. {error}")

    def state(self, rng: RngState) -> dict[str, Any]:
        """The content of a checkpoint: weights, moments, random state and the guard's count.

        A collective if the weights are sharded: all ranks must call it.

        Args:
            rng: the random state to save.
        """
        sharded = self.run.settings.shard
        learner = capture(self.method, self.optimiser) if self.first or sharded else {}
        return {"learner": learner, "rng": rng, "guard": self.guard.consecutive}

    def save(self, step: int, *, final: bool = False) -> None:
        """Writes a checkpoint and the encoder file on rank 0; all ranks must call it.

        If saving fails, that is reported and the run goes on, unless it is the final save.

        Args:
            step: number of steps done.
            final: whether it is the last save; all ranks then wait until it is written.

        Raises:
            SaveFailed: the final checkpoint could not be written.
            OSError: the final encoder file could not be written.
        """
        self.saved_at = time.monotonic()
        state = self.state(rng_state())
        if self.first:
            try:
                save_checkpoint(self.run.folder, step, state)
                run_folder.note_saved(self.run.folder)
                self.export()
            except (SaveFailed, OSError) as error:
                if final:
                    # The encoder takes a third of the room, and is what the training was for.
                    with contextlib.suppress(SaveFailed, OSError):
                        if not self.run.settings.shard:
                            self.export()
                    raise
                self.note(
                    f"Step {step}: the checkpoint could not be saved; training goes on. {error}"
                )
            self.saved_at = time.monotonic()
        if final:
            distributed.barrier()

    def export(self) -> None:
        """Writes the encoder file; for sharded weights, from the checkpoint just saved."""
        with preserve_rng():
            sharded = self.run.settings.shard
            method = load_method(self.run.folder)[0] if sharded else self.method
            run_folder.export(self.run, method, self.plan)


def _backbone_parameters(method: Method) -> list[nn.Parameter]:
    """The parameters of all backbones of a method, without heads."""
    return [p for m in method.modules() if isinstance(m, Backbone) for p in m.parameters()]
