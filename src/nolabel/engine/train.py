"""A run from its start to its end: trained from scratch, or resumed where it stopped.

The trainer takes the steps, the monitor watches them. The position of a run is one integer, the
step.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nolabel import distributed
from nolabel._usercode import trusted_code
from nolabel.backbones.own import register_again
from nolabel.config import Request, Run
from nolabel.data.open import open_source
from nolabel.data.source import Source, prerender
from nolabel.device import pick_device
from nolabel.engine import memory, parallel, run_folder
from nolabel.engine.build import Built, build, build_method, frozen_inputs
from nolabel.engine.checkpoint import load_checkpoint
from nolabel.engine.log import say
from nolabel.engine.measurement import measurement
from nolabel.engine.monitor.monitor import Monitor
from nolabel.engine.monitor.progress import Progress
from nolabel.engine.resolve import Resolved, resolve
from nolabel.engine.run_folder import STOPPED
from nolabel.engine.saved_run import load_run
from nolabel.engine.trainer import Trainer
from nolabel.errors import DataError, GuardStop, Stopped
from nolabel.methods.base import Method
from nolabel.types import Clock
from nolabel.views.plan import ViewPlan


def pretrain(
    request: Request,
    *,
    source: Source | None = None,
    quiet: bool = False,
    show: Callable[[Built, Resolved], None] | None = None,
    dry_run: bool = False,
) -> Run:
    """Trains a new run into its folder and returns it as it was resolved.

    Args:
        request: what the user asked for.
        source: the data, where they are open already.
        quiet: whether to print no progress.
        show: is called with what was resolved and built, before anything is measured or written.
        dry_run: whether to end after that.

    Raises:
        UsageError: impossible settings, or the folder already holds a run.
        GuardStop: the loss stayed non-finite.
        Stopped: asked to stop; saved and resumable.
    """
    with parallel.processes(request.settings.device):
        resolved = resolve(request, source=source, quiet=quiet)
        with memory.explain_out_of_memory(resolved.run):
            if not dry_run:
                parallel.rank0_first(lambda: run_folder.check(resolved.run))
            built = build(resolved)
            if show is not None:
                show(built, resolved)
            return built.run if dry_run else _train(built, resolved, quiet=quiet)


def _train(built: Built, resolved: Resolved, *, quiet: bool) -> Run:
    method, plan, source = built.method, built.plan, resolved.source
    device = pick_device(resolved.run.settings.device, fallback=True)
    method.to(device)
    prerender(source)
    # On a copy: the weights of a run depend on its seed, not on how it was measured.
    run = measurement(resolved, method, plan, device, quiet=quiet)
    parallel.rank0_first(lambda: run_folder.make(run, built.frozen))
    with memory.explain_out_of_memory(run):
        _take_steps(run, method, plan, source, device, start=0, quiet=quiet)
    return run


def resume(
    folder: str | Path,
    *,
    quiet: bool = False,
    trust_code: bool = False,
    backbone: nn.Module | type[nn.Module] | None = None,
) -> Run:
    """Continues a stopped run exactly where its last checkpoint stands.

    Args:
        folder: of the run.
        quiet: no progress.
        trust_code: execute the code that the folder holds, also if it was never run here.
        backbone: the network, or its class, of a run that got one in Python.

    Raises:
        UsageError: the folder holds no run, or the run got no network in Python.
        UntrustedCode: it holds code that was never run here.
    """
    with trusted_code(trust_code):
        run = load_run(folder).with_settings(out=str(folder))
        if backbone is not None:
            register_again(backbone, run.settings.backbone, f"The run in {folder}")
        with parallel.processes(run.settings.device), memory.explain_out_of_memory(run):
            return _resume(run, quiet=quiet)


def _resume(run: Run, *, quiet: bool) -> Run:
    s, folder = run.settings, run.folder
    source = open_source(s.data, image_size=s.image_size, download=s.download, channels=s.channels)
    if len(source) != run.images:
        raise DataError(
            f"The data changed: the run was started on {run.images} images, {s.data} now holds "
            f"{len(source)}. Restore the data, or start a new run with --init {folder}."
        )
    prerender(source)
    device = pick_device(run.settings.device, fallback=True)
    frozen = frozen_inputs(run, folder=folder)
    if not any((folder / "checkpoints").glob("step-*.ckpt")):
        say(f"{folder} has no checkpoint yet: starting from step 0.")
        method, plan = build_method(run, frozen)
        _take_steps(run, method.to(device), plan, source, device, start=0, quiet=quiet)
        return run
    with ThreadPoolExecutor(1) as pool:  # a large file takes as long to read as a network to build
        loading = pool.submit(load_checkpoint, folder)
        # The weights come from the checkpoint: what --init named may be gone by now.
        method, plan = build_method(run.with_settings(init=None), frozen)
        method.to(device)
    loaded = loading.result()
    for note in loaded.notes:
        say(note)
    if loaded.step >= s.steps:
        say(f"{folder} is already finished: {loaded.step} steps.")
    _take_steps(
        run, method, plan, source, device, start=loaded.step, state=loaded.state, quiet=quiet
    )
    return run


def train(trainer: Trainer, monitor: Monitor) -> None:
    """Takes the steps of a run from the trainer's start to its end.

    Several processes, started by torchrun, run it together, each on its part of every batch.

    Raises:
        GuardStop: the method collapsed (`--on-collapse stop`), the network of --init was being
            destroyed (`--init-guard rollback`), or several steps in a row were not finite.
        Stopped: the run was asked to stop; it is saved and can be resumed.
    """
    run, total = trainer.run, trainer.total
    every = run.settings.checkpoint_every
    with trainer.heartbeat, trainer.stop, monitor:
        if trainer.first:
            (run.folder / STOPPED).unlink(missing_ok=True)
        monitor.snapshot(trainer.start)
        for step in range(trainer.start, total):
            clock, done = Clock(step, total, run.steps_per_epoch), step + 1
            result = trainer.train_step(clock, measure=monitor.line_due(done))
            alarms = monitor.after_step(clock, result)
            if alarms.collapsed and run.settings.on_collapse == "stop":
                trainer.save(done, final=True)
                raise GuardStop(
                    f"Stopped at step {done} of {total}; everything is saved. {alarms.collapsed}"
                )
            if result.stop and done < total:
                if trainer.first:
                    (run.folder / STOPPED).write_text(f"{done}\n", encoding="utf-8")
                trainer.save(done, final=True)
                raise Stopped(
                    f"Stopped at step {done} of {total}; everything is saved. Go on with "
                    f"`nolabel resume {run.folder}`."
                )
            if done < total and (result.save or (every and done % every == 0)):
                trainer.save(done)
        trainer.save(total, final=True)


def _take_steps(
    run: Run,
    method: Method,
    plan: ViewPlan,
    source: Source,
    device: torch.device,
    *,
    start: int,
    state: dict[str, Any] | None = None,
    quiet: bool = False,
) -> None:
    """Builds the trainer and the monitor of a run, and trains."""
    quiet = quiet or distributed.rank() > 0
    progress = Progress(run.settings.steps, start, enabled="off" if quiet else "auto")
    trainer = Trainer(
        run, method, plan, source, device, start=start, state=state, note=progress.note
    )
    monitor = Monitor(trainer, progress)
    train(trainer, monitor)
    if not quiet:
        monitor.summary()
