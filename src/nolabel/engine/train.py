"""Starts a new run, or resumes a stopped one.

The trainer takes the steps, the monitor logs and checks them. A run's position is its step.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nolabel import distributed, limits
from nolabel._files import check_folder
from nolabel._usercode import trusted_code
from nolabel.backbones.own import register_again
from nolabel.config import Request, Run, field_values
from nolabel.data.source import Source, prerender
from nolabel.device import pick_device
from nolabel.engine import memory, parallel, run_data, run_folder, tournament
from nolabel.engine.build import Built, build, build_method, frozen_inputs
from nolabel.engine.entrants import asked
from nolabel.engine.environment import threads_note
from nolabel.engine.fit import Fitted, fit
from nolabel.engine.length import Length
from nolabel.engine.log import say
from nolabel.engine.loop import train
from nolabel.engine.measurement import measurement
from nolabel.engine.monitor.metrics import read_metrics
from nolabel.engine.monitor.monitor import Monitor
from nolabel.engine.monitor.probe import Probe
from nolabel.engine.monitor.progress import Progress
from nolabel.engine.resolve import Resolved, folder_name, resolve
from nolabel.engine.saved_run import load_run
from nolabel.engine.saved_state import load_state
from nolabel.engine.trainer import Trainer
from nolabel.errors import FileDamaged, UsageError, command
from nolabel.methods import METHODS
from nolabel.methods.base import Method
from nolabel.views.plan import ViewPlan

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec


def pretrain(
    request: Request,
    *,
    source: Source | None = None,
    quiet: bool = False,
    show: Callable[[Built, Resolved], None] | None = None,
    dry_run: bool = False,
    began: float | None = None,
) -> Run:
    """Trains a new run, writes its folder, and returns the resolved run.

    Args:
        request: what the user asked for.
        source: the data, if they are open already.
        quiet: print no progress.
        show: called with the built and the resolved run, before measuring and writing.
        dry_run: return after `show`.
        began: time.monotonic() at the start of the command, from which `minutes` count.

    Raises:
        UsageError: impossible settings, or the folder already holds a run.
        GuardStop: a guard stopped it (see `train`).
        Stopped: stopped on request; it can be resumed.
    """
    began = time.monotonic() if began is None else began
    out = request.settings.out
    if out and not dry_run:
        check_folder(out)
    with parallel.processes(request.settings.device):
        fitted = fit(request, source, quiet=quiet)
        request, source, facts, _ = fitted
        plays = asked(request)
        if plays and request.settings.out in (None, ""):
            request = request.choose(out=folder_name("auto", source))
        resolved = resolve(request, source=source, facts=facts, quiet=quiet)
        with memory.explain_out_of_memory(resolved.run):
            folder = nullcontext() if dry_run else run_folder.locked(resolved.run.folder)
            with folder:
                if not dry_run:
                    parallel.rank0_first(lambda: run_folder.check(resolved.run))
                built = build(resolved)
                if show is not None:
                    show(built, resolved)
                if dry_run:
                    return built.run
                return _train(built, resolved, fitted, began, plays=plays, quiet=quiet)


def _train(
    built: Built,
    resolved: Resolved,
    fitted: Fitted,
    began: float,
    *,
    plays: bool,
    quiet: bool,
) -> Run:
    method, plan, source = built.method, built.plan, resolved.source
    device = pick_device(resolved.run.settings.device, fallback=True)
    method.to(device)
    prerender(source)
    # Measured on a copy: the weights of a run depend on its seed alone.
    run = measurement(resolved, method, plan, device, began=began, quiet=quiet)
    method.options = run.options  # rates that depend on the length, which was measured
    # What the monitor needs is tried before the folder is made: a mistake must not block the next.
    run, probe = run_data.checked(run, source)
    parallel.rank0_first(lambda: run_folder.make(run, built.frozen))
    with memory.explain_out_of_memory(run):
        minutes = run.settings.minutes
        deadline = began + 60 * minutes if minutes else None
        if plays and deadline is not None:
            first = dataclasses.replace(built, run=run)
            note = (lambda text: None) if quiet else say
            won = tournament.tournament(first, resolved, fitted, device, deadline, note)
            if won is not None:
                return _take_steps(
                    won.built.run, won.built.method, won.built.plan, source, device,
                    start=won.step, state=won.state, length=won.length, images=won.images,
                    quiet=quiet,
                )  # fmt: skip
        length = Length(run, deadline)
        return _take_steps(
            run, method, plan, source, device, start=0, length=length, probe=probe, quiet=quiet
        )


@dataclass(frozen=True, kw_only=True)
class Extension:
    """How much longer to train a finished run: one of three lengths, added to the run's."""

    steps: int | None = None
    epochs: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        lengths = {k: v for k, v in field_values(self).items() if v is not None}
        if len(lengths) > 1:
            names = " and ".join(f"--{name}" for name in lengths)
            raise UsageError(f"Give one of --steps, --epochs, --minutes; got {names}.")
        for name, value in lengths.items():
            limits.positive(f"--{name}", value)

    @property
    def given(self) -> bool:
        """Whether a length is given."""
        return any(v is not None for v in field_values(self).values())


def resume(
    folder: str | Path,
    *,
    quiet: bool = False,
    trust_code: bool = False,
    backbone: nn.Module | type[nn.Module] | None = None,
    data: SourceSpec | None = None,
    extension: Extension | None = None,
    began: float | None = None,
) -> Run:
    """Continues a stopped run from its newest checkpoint; the result equals an uninterrupted run.

    Args:
        folder: of the run.
        extension: how much longer to train a finished run; None: not at all.
        began: time.monotonic() at the start of the command, from which `extension.minutes` count.
        quiet: print no progress.
        trust_code: execute the code in the folder even if it was never run on this machine.
        backbone: the network, or its class, if the run got one in Python.
        data: the images, if the run got them in Python as an object; or where they lie now, if they
            were moved.

    Raises:
        UsageError: the folder holds no run, another process uses it, or `backbone` or `data` are
            not those of the run.
        DataError: the images are not those that the run was started on.
        UntrustedCode: the folder holds code that was never run on this machine.
    """
    with trusted_code(trust_code):
        run = load_run(folder).with_settings(out=str(folder))
        if backbone is not None:
            register_again(backbone, run.settings.backbone, f"The run in {folder}")
        with (
            parallel.processes(run.settings.device),
            run_folder.locked(run.folder),
            memory.explain_out_of_memory(run),
        ):
            now = time.monotonic() if began is None else began
            return _resume(run, data, extension or Extension(), now, quiet=quiet)


def _resume(
    run: Run, data: SourceSpec | None, extension: Extension, began: float, *, quiet: bool
) -> Run:
    folder = run.folder
    run, source = run_data.open_again(run, data)
    prerender(source)
    device = pick_device(run.settings.device, fallback=True)
    if device.type == "cpu" and (note := threads_note(folder / "environment.json")):
        say(note)
    if note := tournament.cut_short(folder):
        say(note)
    frozen = frozen_inputs(run, folder=folder)
    saved = any((folder / "checkpoints").glob("step-*.ckpt"))
    if not saved and extension.given:
        raise _unfinished(folder, 0, run.settings.steps)
    if not saved:
        say(f"{folder} has no checkpoint yet; starting from step 0.")
        method, plan = build_method(run, frozen)
        return _take_steps(run, method.to(device), plan, source, device, start=0, quiet=quiet)
    with ThreadPoolExecutor(1) as pool:  # reads the checkpoint while the network is built
        loading = pool.submit(load_state, folder)
        # The weights come from the checkpoint; the encoder of --init may be gone.
        method, plan = build_method(run.with_settings(init=None), frozen)
        method.to(device)
    loaded = loading.result()
    for note in loaded.notes:
        say(note)
    length = Length(run)
    total = length.total(loaded.step)
    if loaded.step > total:
        raise FileDamaged(
            f"The newest checkpoint in {folder} is of step {loaded.step}, its config.yaml says "
            f"{total} steps: they do not belong together. Restore the config.yaml of the run."
        )
    if extension.given:
        if loaded.step < total:
            raise _unfinished(folder, loaded.step, total)
        run = _extend(run, length, loaded.step, extension, began)
    elif loaded.step == total:
        say(
            f"{folder} is already finished ({loaded.step} steps); nothing to do. --steps, --epochs "
            "or --minutes trains it further."
        )
    return _take_steps(
        run, method, plan, source, device, start=loaded.step, state=loaded.state,
        length=length, quiet=quiet,
    )  # fmt: skip


def _unfinished(folder: Path, done: int, total: int) -> UsageError:
    return UsageError(
        f"The run in {folder} is not finished ({done} of {total} steps); --steps, --epochs and "
        f"--minutes are for finished ones. First: {command('nolabel', 'resume', str(folder))}"
    )


def _extend(run: Run, length: Length, done: int, extension: Extension, began: float) -> Run:
    """Extends a finished run; says its new schedule."""
    deadline, lines = None, list(read_metrics(run.folder / "metrics.jsonl"))
    if extension.minutes is not None:
        deadline = began + 60 * extension.minutes
        rate = lines[-1].get("images_per_second") if lines else None  # corrected as it goes
        seconds = run.settings.batch_size / rate if rate else 1.0
        more = max(int((deadline - time.monotonic()) / seconds), 1)
    else:
        more = extension.steps or max(int((extension.epochs or 0) * run.steps_per_epoch), 1)
    first = distributed.rank() == 0
    length.extend(done, parallel.broadcast_object(more), deadline, write=first)
    total, o = length.total(done), run.optim
    say(
        f"{run.folder} goes on after {done} steps: {'about ' if deadline else ''}{total - done:,} "
        f"more, with a new schedule: the learning rate rises to {o.lr:g} again and falls to "
        f"{o.lr_end:g}; weight decay and EMA momentum begin anew, too."
    )
    run = run.with_settings(steps=total)
    if first:
        run_folder.write_config(run)
    return run


def _take_steps(
    run: Run,
    method: Method,
    plan: ViewPlan,
    source: Source,
    device: torch.device,
    *,
    start: int,
    state: dict[str, Any] | None = None,
    length: Length | None = None,
    images: Source | None = None,
    probe: Probe | None = None,
    quiet: bool = False,
) -> Run:
    """Builds trainer and monitor of a run, and trains. Returns the run with its final length."""
    quiet = quiet or distributed.rank() > 0
    info = METHODS.get(run.method)
    progress = Progress(
        run.settings.steps, start, "off" if quiet else "auto", rises=info.loss if info else ""
    )
    trainer = Trainer(
        run, method, plan, source, device, start=start, state=state, length=length,
        images=images, note=progress.note,
    )  # fmt: skip
    since = "resuming" if images is None else "the tournament"
    monitor = Monitor(trainer, progress, since=since, probe=probe)
    train(trainer, monitor)
    if not quiet:
        monitor.summary()
    return trainer.run
