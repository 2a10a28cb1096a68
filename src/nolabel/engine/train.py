"""The loop: short, ours, exact.

One optimiser step: micro-batches forward and backward, guard, clip, the method's gradient edits,
update, the method's moving averages.  Its whole position is one integer, the step.

Started by torchrun, several processes run it together (`parallel`), each on its part of every
batch; the first one alone speaks and writes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from nolabel import distributed
from nolabel.config import Run, read_yaml
from nolabel.data.open import open_source
from nolabel.data.source import Source, prerender
from nolabel.data.stages import why_starved
from nolabel.device import autocast, pick_device
from nolabel.engine import calibrate, memory, parallel, place
from nolabel.engine import start as begin
from nolabel.engine.build import build_method, companion, load_method
from nolabel.engine.checkpoint import (
    SaveFailed,
    capture,
    load_checkpoint,
    restore,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from nolabel.engine.compiled import compile_layers, plainly
from nolabel.engine.doctor import examine
from nolabel.engine.feed import batches_of
from nolabel.engine.film import looks_of
from nolabel.engine.gradients import gradients
from nolabel.engine.health import NonFiniteGuard
from nolabel.engine.log import Progress, read_metrics, say, warn
from nolabel.engine.optimiser import (
    UpdateSize,
    build_optimiser,
    clip_gradients,
    gradient_norm,
    moved,
    set_rates,
)
from nolabel.engine.record import Record, Said, log_every
from nolabel.engine.replay import CAPTURED, Before
from nolabel.engine.skipped import Skipped
from nolabel.engine.stop import StopRequest
from nolabel.errors import DataError, GuardStop, Stopped, UsageError
from nolabel.methods.base import Method
from nolabel.nn.schedules import learning_rate
from nolabel.types import Batch, Clock
from nolabel.views.plan import ViewPlan

CHECKPOINT_SECONDS = 300.0
STOPPED = "stopped"  # a file in the folder of a run that was asked to stop: its step


def pretrain(run: Run, source: Source, *, quiet: bool = False) -> Run:
    """Trains from scratch into the run's folder and returns the run as it was resolved.

    Raises:
        UsageError: the folder already holds a run.
        GuardStop: the loss stayed non-finite.
        Stopped: asked to stop; saved and resumable.
    """
    with parallel.processes(run.settings.device), memory.told(run):
        return _pretrain(run, source, quiet=quiet)


def _pretrain(run: Run, source: Source, *, quiet: bool) -> Run:
    parallel.on_first(lambda: place.check(run))
    extra = companion(run, source)  # once: it may lie in the folder that is replaced
    method, plan = build_method(run, extra)
    if run.settings.init:
        net = method.encoder
        run = dataclasses.replace(run, backbone_kwargs={**net.kwargs})
        run = dataclasses.replace(
            run, settings=dataclasses.replace(run.settings, backbone=net.name, patch_size=None)
        )
    device = pick_device(run.settings.device, fallback=True)
    method.to(device)
    prerender(source)
    run = calibrate.resolve(run, method, plan, source, device, quiet=quiet)
    run = parallel.from_first(begin.warm_heads(run, method, quiet))  # one measurement for all
    parallel.on_first(lambda: place.make(run, extra))
    # Fresh weights again, so that a run depends on its seed and not on how it was measured.
    method, plan = build_method(run, extra)
    _loop(run, method.to(device), plan, source, device, start=0, quiet=quiet)
    return run


def resume(folder: str | Path, *, quiet: bool = False) -> Run:
    """Continues a stopped run exactly where its last checkpoint stands."""
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder} holds no run (no config.yaml). Give the folder of a run.")
    run = Run.from_dict(read_yaml(folder / "config.yaml"))
    run = dataclasses.replace(run, settings=dataclasses.replace(run.settings, out=str(folder)))
    with parallel.processes(run.settings.device), memory.told(run):
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
    # The weights come from the checkpoint: what --init named may be gone by now.
    bare = dataclasses.replace(run, settings=dataclasses.replace(s, init=None))
    extra = companion(run, folder=folder)
    has_any = any((folder / "checkpoints").glob("step-*.ckpt"))
    with ThreadPoolExecutor(1) as aside:  # a large file takes as long to read as a network to build
        loading = aside.submit(load_checkpoint, folder) if has_any else None
        method, plan = build_method(bare, extra)
        method.to(device)
    if loading is None:
        say(f"{folder} has no checkpoint yet: starting from step 0.")
        method, plan = build_method(run, extra)
        _loop(run, method.to(device), plan, source, device, start=0, quiet=quiet)
        return run
    loaded = loading.result()
    for note in loaded.notes:
        say(note)
    if loaded.step >= int(s.steps or 0):
        say(f"{folder} is already finished: {loaded.step} steps.")
    _loop(run, method, plan, source, device, start=loaded.step, state=loaded.state, quiet=quiet)
    return run


def _loop(
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
    s, folder, total = run.settings, run.folder, int(run.settings.steps or 0)
    batch_size, parts = int(s.batch_size or 0), int(s.accumulate or 1)
    first = distributed.rank() == 0
    quiet = quiet or not first
    method.train()
    if s.compile:
        compile_layers(method, device)
    together = parallel.Together(method, shard=s.shard, layers=s.shard_layers)
    optimiser = build_optimiser(method, run.optim)
    guard, before = NonFiniteGuard(), Before(method)
    skipped, unread = Skipped(folder / "skipped.jsonl", len(source), s.max_bad, write=first), []
    if state is None:
        torch.manual_seed(s.seed + 1)
    else:
        restore(method, optimiser, state["learner"])
        set_rng_state(state["rng"])
        guard.consecutive = int(state["guard"])
    looks = looks_of(total)
    parameters = [p for p in method.parameters() if p.requires_grad]
    frozen_for = int(s.warm_heads or 0)
    network = {id(p) for p in begin.backbones(method)} if frozen_for else set()
    workers = int(s.workers or 0)
    loader = batches_of(run, method, plan, source, device, start, total, workers=workers)
    saved_at, began, starved = time.monotonic(), time.monotonic(), False
    wait = 0.0  # seconds for which the step waited for data

    def incoming() -> Iterator[Batch]:
        nonlocal wait
        while True:
            tick = time.monotonic()
            batch = next(loader)
            wait += time.monotonic() - tick
            unread.extend(batch.skipped)
            yield batch.to(device)

    def state_now(rng: dict[str, Any]) -> dict[str, Any]:
        learner = capture(method, optimiser) if first or s.shard else {}
        return {"learner": learner, "rng": rng, "guard": guard.consecutive}

    def save(step: int, *, final: bool = False) -> None:
        """Everything that is needed to go on; all processes wait where it must have been done."""
        nonlocal saved_at
        saved_at = time.monotonic()
        payload = state_now(rng_state())
        if first:
            try:
                save_checkpoint(folder, step, payload)
                with parallel.same_chance():  # what is sharded is read from the file, whole
                    place.export(run, load_method(folder)[0] if s.shard else method, plan)
            except (SaveFailed, OSError) as error:
                if final:
                    raise
                bar.note(f"Could not save at step {step}; going on from the older one. {error}")
            saved_at = time.monotonic()
        if final:
            distributed.barrier()

    def skip(step: int) -> None:
        """A step that is not finite leaves nothing behind but the means to repeat it."""
        before.undo()
        bar.note(f"Step {step}: loss or gradients are not finite; the step is skipped.")
        if guard.consecutive > 1:
            return  # the first of them is the one to look at
        bar.note(f"`nolabel replay {folder}` repeats it and says where that began.")
        payload = state_now(before.rng)
        try:
            if first:
                save_checkpoint(folder / CAPTURED, step, payload, keep=1)
        except SaveFailed as error:
            bar.note(f"Could not keep it. {error}")

    def look(step: int) -> None:
        """Keeps what the encoder sees, at a few steps of the run."""
        if step in looks:
            with together.whole(), plainly(s.compile):
                if record:
                    record.film.look(step, method.encoder)

    def destroyed(why: str, step: int) -> None:
        """The network that --init named is being destroyed."""
        advice = "Try a smaller --optim.lr or more --warm-heads."
        if s.init_guard == "warn":
            bar.note(f"Step {step}: the weights of --init are being destroyed: {why}. {advice}")
            return
        back = record.go_back() if record else 0
        if record:
            place.export(run, method, plan)
        raise GuardStop(
            f"Stopped at step {step}: the weights of --init were being destroyed ({why}). The "
            f"encoder in {folder} is that of step {parallel.from_first(back)}. {advice}"
        )

    batches, shown = incoming(), "off" if quiet else "auto"
    with (
        parallel.Heartbeat(warn) as heart,
        StopRequest() as stop,
        Progress(total, start, enabled=shown) as bar,
    ):
        record = Record(run, method, plan, source, start, bar) if first else None
        if record:
            (folder / STOPPED).unlink(missing_ok=True)
        look(start)
        for step in range(start, total):
            clock = Clock(step, total, run.steps_per_epoch)
            set_rates(optimiser, run.optim, clock)
            due_line = (step + 1) % log_every(run) == 0 or step + 1 == total
            wait = 0.0
            before.keep()
            out, mean = gradients(
                together, batches, parts, clock, lambda: autocast(s.precision, device),
                lambda share, step=step: heart.beat(step + share),
            )  # fmt: skip
            if step < frozen_for:  # new heads alone learn
                for p in parameters:
                    if id(p) in network:
                        p.grad = None
            if due_line or distributed.world_size() == 1:  # else it would be a word at every step
                skipped.add(parallel.of_all(tuple(unread)))
                unread.clear()
            now = not s.checkpoint_every and time.monotonic() - saved_at > CHECKPOINT_SECONDS
            loss, (stopping, due) = parallel.agreed(mean, stop.requested, now)
            norm = gradient_norm(parameters)
            size = UpdateSize(parameters) if due_line else None
            if guard.check(loss, norm):  # before the update and the moving averages
                clip_gradients(method, run.optim)
                method.before_update(clock)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                method.after_update(clock)
            else:
                optimiser.zero_grad(set_to_none=True)
                skip(step)
            bar.update(step + 1, float(loss), batch_size, wait)
            done, said = step + 1, Said()
            if not starved and bar.starving():
                starved = True  # said once
                why = why_starved(source, plan, device=device, workers=workers)
                bar.note(f"Waiting for data takes {bar.data_wait:.0%} of the time.  {why}")
            if due_line:
                rates = {g["decay"]: g for g in optimiser.param_groups}
                line = {
                    "step": done,
                    "epoch": done / run.steps_per_epoch,
                    "loss": float(loss),
                    "lr": learning_rate(run.optim, clock),
                    "weight_decay": rates[True]["weight_decay"] if True in rates else 0.0,
                    "gradient_norm": float(norm),
                    **parallel.averaged(out.logs),
                    **moved(method, size),
                }
                features = None if out.features is None else distributed.gather(out.features)
                with together.whole(), plainly(s.compile):  # a probe needs the weights
                    said = parallel.from_first(record.line(line, features) if record else said)
                if said.destroyed:
                    destroyed(said.destroyed, done)
            look(done)
            due = due or bool(s.checkpoint_every and done % s.checkpoint_every == 0)
            if said.collapsed and s.on_collapse == "stop":
                save(done, final=True)
                raise GuardStop(
                    f"Stopped at step {done} of {total}; everything is saved. {said.collapsed}"
                )
            if stopping and done < total:
                if first:
                    (folder / STOPPED).write_text(f"{done}\n", encoding="utf-8")
                save(done, final=True)
                raise Stopped(
                    f"Stopped at step {done} of {total}; everything is saved. Go on with "
                    f"`nolabel resume {folder}`."
                )
            if due and done < total:
                save(done)
        save(total, final=True)
    if record:
        record.close()
    if not quiet:
        images = (total - start) * batch_size
        spent = time.monotonic() - began
        say(f"Done: {total} steps, {images:,} images in {spent:.0f} s. Encoder: {folder}")
        say(str(examine(read_metrics(folder / "metrics.jsonl"), total)))
