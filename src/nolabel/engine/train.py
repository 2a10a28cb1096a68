"""The loop: short, ours, exact.

One optimiser step: micro-batches forward and backward, guard, clip, the method's gradient edits,
update, the method's moving averages.  Its whole position is one integer, the step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from nolabel.data.loader import make_loader
from nolabel.data.sources import Source, open_source, warm
from nolabel.data.stages import why_starved
from nolabel.engine import calibrate, probe
from nolabel.engine import start as begin
from nolabel.engine.build import build_method, companion, keep, load_method, plan_of
from nolabel.engine.checkpoint import (
    SaveFailed,
    capture,
    load_checkpoint,
    restore,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from nolabel.engine.doctor import Doctor, examine
from nolabel.engine.environment import environment
from nolabel.engine.film import Film
from nolabel.engine.health import NonFiniteGuard, signals
from nolabel.engine.log import MetricsLog, Progress, read_metrics, say
from nolabel.engine.optimiser import (
    UpdateSize,
    build_optimiser,
    clip_gradients,
    gradient_norm,
    moved,
    set_rates,
)
from nolabel.engine.skipped import Skipped
from nolabel.engine.stop import StopRequest
from nolabel.errors import DataError, GuardStop, Stopped, UsageError
from nolabel.methods.base import Method
from nolabel.options import Run, read_yaml, with_length
from nolabel.schedules import learning_rate
from nolabel.types import Batch, Clock
from nolabel.views import FastViews
from nolabel.views.plan import ViewPlan
from nolabel.weights.file import save_encoder
from nolabel.weights.text import TEXT_FILE, save_text

CHECKPOINT_SECONDS = 300.0


def device_of(run: Run) -> torch.device:
    """The device of a run."""
    name = run.settings.device
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pretrain(run: Run, source: Source, *, quiet: bool = False) -> Run:
    """Trains from scratch into the run's folder and returns the run as it was resolved.

    Raises:
        UsageError: the folder already holds a run.
        GuardStop: the loss stayed non-finite.
        Stopped: asked to stop; saved and resumable.
    """
    folder = run.folder
    if folder.exists() and any(folder.iterdir()):
        ours = (folder / "config.yaml").exists()
        if not run.settings.overwrite:
            raise UsageError(
                f"The folder {folder} {'already holds a run' if ours else 'is not empty'}. Use "
                f"another --out, `nolabel resume {folder}` to go on, or --overwrite to replace it."
            )
        if not ours:
            raise UsageError(
                f"{folder} is not empty and holds no run; --overwrite replaces runs only. Use "
                "another --out."
            )
    extra = companion(run, source)  # once: it may lie in the folder that is replaced
    method, plan = build_method(run, extra)
    if run.settings.init:
        net = method.encoder
        run = dataclasses.replace(run, backbone_kwargs={**net.kwargs})
        run = dataclasses.replace(
            run, settings=dataclasses.replace(run.settings, backbone=net.name, patch_size=None)
        )
    device = device_of(run)
    method.to(device)
    warm(source)
    run = calibrate.resolve(run, method, plan, source, device, quiet=quiet)
    run = _warm_heads(run, method, quiet)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    keep(extra, folder)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(run.to_dict(), sort_keys=False), encoding="utf-8"
    )
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2), encoding="utf-8")
    # Fresh weights again, so that a run depends on its seed and not on how it was measured.
    method, plan = build_method(run, extra)
    _loop(run, method.to(device), plan, source, device, start=0, quiet=quiet)
    return run


def _warm_heads(run: Run, method: Method, quiet: bool) -> Run:
    """Settles for how long new heads learn alone before a network that `--init` brought."""
    s = run.settings
    if not s.init or s.warm_heads is not None:
        return run
    steps = 0 if method.continued else max(round(begin.WARM * int(s.steps or 0)), 1)
    if steps and not quiet:
        say(f"init: the new heads alone learn in the first {steps} steps")
    return dataclasses.replace(run, settings=dataclasses.replace(s, warm_heads=steps))


def resume(folder: str | Path, *, quiet: bool = False) -> Run:
    """Continues a stopped run exactly where its last checkpoint stands."""
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder} holds no run (no config.yaml). Give the folder of a run.")
    run = Run.from_dict(read_yaml(folder / "config.yaml"))
    run = dataclasses.replace(run, settings=dataclasses.replace(run.settings, out=str(folder)))
    s = run.settings
    source = open_source(s.data, image_size=s.image_size, download=s.download, channels=s.channels)
    if len(source) != run.images:
        raise DataError(
            f"The data changed: the run was started on {run.images} images, {s.data} now holds "
            f"{len(source)}. Restore the data, or start a new run with --init {folder}."
        )
    warm(source)
    device = device_of(run)
    # The weights come from the checkpoint: what --init named may be gone by now.
    bare = dataclasses.replace(run, settings=dataclasses.replace(s, init=None))
    extra = companion(run, folder=folder)
    method, plan = build_method(bare, extra)
    method.to(device)
    if not any((folder / "checkpoints").glob("step-*.ckpt")):
        say(f"{folder} has no checkpoint yet: starting from step 0.")
        method, plan = build_method(run, extra)
        _loop(run, method.to(device), plan, source, device, start=0, quiet=quiet)
        return run
    loaded = load_checkpoint(folder)
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
    batch_size = int(s.batch_size or 0)
    method.train()
    optimiser = build_optimiser(method, run.optim)
    guard = NonFiniteGuard()
    skipped = Skipped(folder / "skipped.jsonl", len(source), s.max_bad)
    if state is None:
        torch.manual_seed(s.seed + 1)
    else:
        restore(method, optimiser, state["learner"])
        set_rng_state(state["rng"])
        guard.consecutive = int(state["guard"])
    parameters = [p for p in method.parameters() if p.requires_grad]
    log_every = s.log_every or max(min(total // 100, 100), 1)
    probe_every = s.probe_every or max(total // 10, 1)
    prober = probe.Probe(s.probe, s.image_size, s.download, s.channels) if s.probe else None
    frozen_for = int(s.warm_heads or 0)
    network = {id(p) for p in begin.backbones(method)} if frozen_for else set()
    watch = None
    if s.init and s.init_guard != "off" and len(source) >= begin.LEAST:
        watch = begin.StartGuard(folder, method.encoder, plan, source, prober)
    metrics = MetricsLog(folder / "metrics.jsonl", start)
    doctor, alarm = Doctor(total), None
    for old in read_metrics(folder / "metrics.jsonl"):
        alarm = doctor.look(old)
    loader: Iterator[Batch] = iter(
        make_loader(
            source,
            FastViews(plan, s.seed, device=device if s.views_on == "device" else "cpu"),
            seed=s.seed,
            batch_size=batch_size,
            start_step=start,
            total_steps=total,
            accumulate=s.accumulate,
            workers=int(s.workers or 0),
            pin=device.type == "cuda",
            with_text=method.wants_text,
        )
    )
    saved_at, began, first = time.monotonic(), time.monotonic(), start
    starved = False

    def save(step: int, *, final: bool = False) -> None:
        nonlocal saved_at
        payload = {
            "learner": capture(method, optimiser),
            "rng": rng_state(),
            "guard": guard.consecutive,
        }
        try:
            save_checkpoint(folder, step, payload)
            export(run, method, plan)
        except (SaveFailed, OSError) as error:
            if final:
                raise
            bar.note(f"Could not save at step {step}; going on from the older checkpoint. {error}")
        saved_at = time.monotonic()

    def destroyed(why: str, step: int) -> None:
        """The network that --init named is being destroyed."""
        advice = "Try a smaller --optim.lr or more --warm-heads."
        if s.init_guard == "warn":
            bar.note(f"Step {step}: the weights of --init are being destroyed: {why}. {advice}")
            return
        assert watch is not None  # noqa: S101 - it is who calls
        back = watch.go_back(method.encoder)
        export(run, method, plan)
        raise GuardStop(
            f"Stopped at step {step}: the weights of --init were being destroyed ({why}). The "
            f"encoder in {folder} is that of step {back}. {advice}"
        )

    with StopRequest() as stop, Progress(total, start, enabled="off" if quiet else "auto") as bar:
        film = Film(folder, source, plan, int(s.image_size or 0), total, bar.note)
        film.look(start, method.encoder)
        for step in range(start, total):
            clock = Clock(step, total, run.steps_per_epoch)
            set_rates(optimiser, run.optim, clock)
            wait, losses = 0.0, []
            for _ in range(s.accumulate):
                tick = time.monotonic()
                batch = next(loader)
                wait += time.monotonic() - tick
                skipped.add(batch.skipped)
                with autocast(s.precision, device):
                    out = method.step(batch.to(device), clock)
                (out.loss / s.accumulate).backward()
                losses.append(out.loss.detach())
            if step < frozen_for:  # new heads alone learn
                for p in parameters:
                    if id(p) in network:
                        p.grad = None
            loss, norm = torch.stack(losses).mean(), gradient_norm(parameters)
            due_line = (step + 1) % log_every == 0 or step + 1 == total
            size = UpdateSize(parameters) if due_line else None
            if guard.check(loss, norm):  # before the update and the moving averages
                clip_gradients(method, run.optim)
                method.before_update(clock)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                method.after_update(clock)
            else:
                optimiser.zero_grad(set_to_none=True)
                bar.note(f"Step {step}: loss or gradients are not finite; the step is skipped.")
            bar.update(step + 1, float(loss), batch_size, wait)
            done = step + 1
            if not starved and bar.starving():
                starved = True  # said once
                why = why_starved(source, plan, device=device, workers=int(s.workers or 0))
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
                    "images_per_second": bar.rate,
                    "data_wait": bar.data_wait,
                    "seconds": time.monotonic() - began,
                    **{k: float(v) for k, v in out.logs.items()},
                    **moved(method, size),
                }
                if start and done - start <= log_every:
                    line["resumed_at"] = start
                if out.features is not None:
                    line |= signals(out.features)
                if prober and (done % probe_every < log_every or done == total):
                    line["probe_knn"] = prober(method.encoder, plan)
                    bar.note(f"step {done}: k-NN {line['probe_knn']:.1%}")
                if watch and (done % probe_every < log_every or done == total):
                    seen = watch.look(done, method.encoder, line.get("probe_knn"))
                    why = seen.pop("why")
                    line |= seen
                    if why:
                        destroyed(why, done)
                before, alarm = alarm, doctor.look(line)
                line["loss_spikes"] = doctor.spikes
                if alarm:
                    line["verdict"] = alarm.state
                    if before is None or before.state != alarm.state:
                        bar.note(f"Step {done}: {alarm}")
                try:
                    metrics.write(line)
                except OSError as error:  # a full disk loses a line, not the run
                    bar.note(f"Could not write metrics at step {done}: {error}")
            film.look(done, method.encoder)
            due = done % s.checkpoint_every == 0 if s.checkpoint_every else (
                time.monotonic() - saved_at > CHECKPOINT_SECONDS
            )  # fmt: skip
            if due_line and alarm and alarm.state == "collapsed" and s.on_collapse == "stop":
                save(done, final=True)
                metrics.close()
                raise GuardStop(f"Stopped at step {done} of {total}; everything is saved. {alarm}")
            if stop.requested and done < total:
                save(done, final=True)
                metrics.close()
                raise Stopped(
                    f"Stopped at step {done} of {total}; everything is saved. Go on with "
                    f"`nolabel resume {folder}`."
                )
            if due and done < total:
                save(done)
        save(total, final=True)
    metrics.close()
    if not quiet:
        images = (total - first) * batch_size
        spent = time.monotonic() - began
        say(f"Done: {total} steps, {images:,} images in {spent:.0f} s. Encoder: {folder}")
        say(str(examine(read_metrics(folder / "metrics.jsonl"), total)))


def export(run: Run, method: Method, plan: ViewPlan) -> None:
    """Writes the public encoder file of the branch to judge, and the text side where there is
    one."""
    if method.wants_text:
        own: Any = method
        save_text(run.folder / TEXT_FILE, own.shared, own.tokenizer, method=run.method)
    encoder = method.encoder
    held = getattr(method, "teacher", None)  # an average of the student, or a frozen network
    teacher = isinstance(held, torch.nn.Module) and any(encoder is m for m in held.modules())
    shared = run.to_dict()
    shared["settings"].pop("out")  # where a run lies is no property of its encoder
    save_encoder(
        run.folder / "encoder.safetensors",
        encoder,
        branch="teacher" if teacher else "encoder",
        method=run.method,
        mean=plan.mean,
        std=plan.std,
        image_size=int(run.settings.image_size or encoder.image_size),
        run=shared,
    )


def autocast(precision: str, device: torch.device) -> Any:
    """bf16 autocast, or nothing."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


__all__ = ["build_method", "export", "load_method", "plan_of", "pretrain", "resume", "with_length"]
