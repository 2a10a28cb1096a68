"""Chooses method and views of a run by trial: successive halving among `recipes.candidates`.

All candidates train on the run's data and network, in one process, and take turns. They share what
was measured and decoded once. After each round they are judged, by the labels of `--probe` or by a
measure that needs none. The winner keeps its weights and trains on, with the schedule of the whole
run: at most `SHARE` of the time goes to the others.

What was judged best so far is always in the run's folder, as a run that can be resumed. A run that
is cut short during the tournament is resumed from there, without the rounds that are missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nolabel._files import read_json, write_text
from nolabel.config import Run
from nolabel.data.decoded import OFF, decoded_once
from nolabel.data.facts import Facts
from nolabel.data.progress import phase
from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder
from nolabel.engine import run_folder
from nolabel.engine.build import Built, build
from nolabel.engine.entrants import Note, entrants
from nolabel.engine.fit import Fitted
from nolabel.engine.halving import LEAST_STEPS, halve, plan_rounds
from nolabel.engine.length import RESERVE, Length
from nolabel.engine.log import say
from nolabel.engine.machine import cache_memory
from nolabel.engine.measurement import measurement
from nolabel.engine.monitor.probe import MOST, Probe, self_retrieval
from nolabel.engine.monitor.snapshots import FeatureSnapshots
from nolabel.engine.resolve import Resolved
from nolabel.engine.stop import StopRequest
from nolabel.engine.trainer import Trainer
from nolabel.errors import GuardStop, Stopped, command
from nolabel.nn.random_state import RngState, rng_state, set_rng_state
from nolabel.recipes.candidates import Candidate, described

SHARE = 0.25  # of the minutes, for candidates that lose and for judging
READ_SECONDS, LEAST_LABELLED = 3.0, 400  # to read the probe's images once; but so many at least

Judge = Callable[[Encoder], float]


@dataclass(kw_only=True)
class Contender:
    """A candidate that takes part: it trains in turns, from where it stopped."""

    candidate: Candidate
    resolved: Resolved
    built: Built
    trainer: Trainer
    rng: RngState
    steps: int = 0  # done
    seconds: float = 0.0  # of training
    failed: bool = False

    @property
    def encoder(self) -> Encoder:
        """As it is now."""
        plan, s = self.built.plan, self.built.run.settings
        return Encoder(
            self.built.method.encoder, mean=plan.mean, std=plan.std, image_size=s.image_size
        )

    def train(self, seconds: float, stop: StopRequest) -> None:
        """Takes steps for so many seconds, or until a stop is requested."""
        set_rng_state(self.rng)
        began = time.monotonic()
        end = self.trainer.total - 1
        with phase(f"tournament: {self.candidate.name}"):
            while time.monotonic() - began < seconds and self.steps < end and not stop.requested:
                try:
                    self.trainer.train_step(self.trainer.clock(self.steps))
                except GuardStop:  # its steps are not finite
                    self.failed = True
                    break
                self.steps += 1
        self.seconds += time.monotonic() - began
        self.rng = rng_state()


class Won(NamedTuple):
    """The winner, to be trained on."""

    built: Built
    step: int  # steps done
    state: dict[str, Any]  # of a checkpoint
    length: Length
    images: Source  # from which batches are read: the data, kept in memory


@dataclass(kw_only=True)
class Tournament:
    """A tournament, and what it writes into the run's folder.

    Attributes:
        folder: of the run.
        judge: scores an encoder; more is better.
        judged_by: in words.
        note: prints lines for the user.
        stop: of all contenders.
        contenders: by name.
        rounds: those that were judged, as in the file.
    """

    folder: Path
    judge: Judge
    judged_by: str
    note: Note
    stop: StopRequest = field(default_factory=StopRequest)
    contenders: dict[str, Contender] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def play(self, seconds: Sequence[float]) -> Contender:
        """Plays the rounds; the winner, whose state is in the folder."""
        names = list(self.contenders)
        self.write("running", self.contenders[names[0]])
        with self.stop:
            name = halve(names, seconds, self._train, self._judge, self._judged)
        self._end_if_stopped()
        return self.contenders[name]

    def _train(self, name: str, seconds: float) -> None:
        self.contenders[name].train(seconds, self.stop)
        self._end_if_stopped()

    def _end_if_stopped(self) -> None:
        """Saves the best so far where a stop was requested. Raises Stopped."""
        if not self.stop.requested:
            return
        leader = self.rounds[-1]["best"] if self.rounds else next(iter(self.contenders))
        best = self.contenders[leader]
        self._keep(best)
        run_folder.note_stop(self.folder, best.steps)
        raise Stopped(
            f"Stopped during the tournament; {best.candidate.name} is saved, the best so far. "
            f"Train it on with `{command('nolabel', 'resume', str(self.folder))}`."
        )

    def _judge(self, name: str) -> float:
        contender = self.contenders[name]
        if contender.failed:
            return -1.0
        with phase(f"tournament: judging {name}"):
            return self.judge(contender.encoder)

    def _judged(self, scores: Mapping[str, float], left: Sequence[str]) -> None:
        """Records a round, keeps the best, and lets go of those that do not go on."""
        results, best = [], self.contenders[left[0]]
        for name, score in scores.items():
            c = self.contenders[name]
            results.append({"name": name, "steps": c.steps, "seconds": c.seconds, "score": score})
            if name not in left:
                c.trainer.feed.close()
        self.rounds.append({"best": left[0], "results": results})
        self._keep(best)
        self.write("running", best)
        shown = ", ".join(f"{r['name']} {r['score']:.1%} ({r['steps']} steps)" for r in results)
        self.note(f"tournament, round {len(self.rounds)}, {self.judged_by}: {shown}")

    def _keep(self, best: Contender) -> None:
        """Makes the folder that of this contender's run, as it is now.

        Checkpoints of another one go first: they would not fit the config.yaml.
        """
        for old in (self.folder / "checkpoints").glob("step-*.ckpt"):
            old.unlink()
        run_folder.write_config(best.built.run)
        set_rng_state(best.rng)
        best.trainer.save(best.steps)

    def write(self, state: str, best: Contender) -> None:
        """Writes tournament.json.

        Args:
            state: running or finished.
            best: so far.
        """
        about = {
            "state": state,
            "judged_by": self.judged_by,
            "choice": best.candidate.name,
            "why": best.candidate.why,
            "candidates": [described(c.candidate) for c in self.contenders.values()],
            "rounds": self.rounds,
            "seconds_of_losers": sum(c.seconds for c in self.contenders.values()) - best.seconds,
        }
        with contextlib.suppress(OSError):  # a full disk loses the record, not the run
            write_text(self.folder / run_folder.TOURNAMENT, json.dumps(about, indent=1) + "\n")


def judge_of(run: Run, images: Source, facts: Facts | None = None) -> tuple[Judge, str]:
    """What judges the encoders of a run, and its name.

    Args:
        run: resolved.
        images: the training data.
        facts: of these; labelled images that are read as slowly are judged by fewer.
    """
    fit_in = int(READ_SECONDS / facts.seconds) if facts and facts.seconds else MOST
    probe = Probe.of(run, most=min(max(fit_in, LEAST_LABELLED), MOST))
    if probe is not None:
        return probe.accuracy, "k-NN on the labels of --probe"
    return lambda encoder: self_retrieval(encoder, images), "self-retrieval, without labels"


def tournament(
    first: Built,
    resolved: Resolved,
    fitted: Fitted,
    device: torch.device,
    deadline: float,
    note: Note = say,
) -> Won | None:
    """Chooses among the candidates by trial, in the run's folder, which exists.

    Args:
        first: of the rule's choice, measured and on the device.
        resolved: of it, before the measurement.
        fitted: the outcome of `fit`.
        device: where to train.
        deadline: time.monotonic() at which the run ends.
        note: prints lines for the user.

    Returns:
        The winner; None where the time is too short to choose.

    Raises:
        Stopped: stopped on request; the best so far is saved.
    """
    run, minutes = first.run, first.run.settings.minutes or 0.0
    left = deadline - time.monotonic() - RESERVE
    step_seconds = left / run.settings.steps
    offered = entrants(resolved, run, fitted, note)
    rounds = plan_rounds(len(offered), step_seconds, SHARE * 60 * minutes)
    if rounds is None:
        note(
            f"tournament: none, as two candidates would not get {LEAST_STEPS} steps each within "
            f"{SHARE:.0%} of {minutes:g} min; {run.method} is the rule's choice"
        )
        return None
    offered = offered[: rounds.candidates]
    names = " against ".join(c.name for c, _ in offered)
    note(f"tournament: {names}, first {rounds.seconds[0]:.0f} s of training each")
    kept = [p for _, its in offered if isinstance(p := its.run.settings.cache, int)]
    pixels = max(kept, default=OFF)
    images = decoded_once(resolved.source, pixels, cache_memory(), workers=run.settings.workers)
    judge, judged_by = judge_of(run, images, fitted.facts)
    game = Tournament(folder=run.folder, judge=judge, judged_by=judged_by, note=note)
    trains = left - rounds.lost  # seconds of the winner
    for candidate, its in offered:
        with phase(f"tournament: setting up {candidate.name}"):
            if its is resolved:
                built, steps = first, int(trains / step_seconds)
            else:
                built = _built(its, run, device, trains)
                steps = built.run.settings.steps
            # Whatever is predicted: a trainer must have as many steps as the rounds may take.
            built = _at_length(built, its, max(steps, 2 * LEAST_STEPS))
            built = dataclasses.replace(built, run=built.run.with_settings(cache=pixels))
            game.contenders[candidate.name] = _contender(candidate, its, built, game, images)
    best = game.play(rounds.seconds)
    game.write("finished", best)
    note(f"tournament: {best.candidate.name} trains on")
    return _won(best, images, deadline, note)


def _built(its: Resolved, like: Run, device: torch.device, trains: float) -> Built:
    """Method, views and run of a candidate, its length measured.

    Args:
        its: run, resolved.
        like: the run of the first candidate.
        device: where to train.
        trains: seconds that it would train as the winner.
    """
    built = build(its)
    built.method.to(device)
    spent = 60 * (like.settings.minutes or 0.0) - RESERVE - trains
    run = measurement(
        its, built.method, built.plan, device, began=time.monotonic() - spent, quiet=True
    )
    built.method.options = run.options
    return dataclasses.replace(built, run=dataclasses.replace(run, data_digest=like.data_digest))


def _contender(
    candidate: Candidate, its: Resolved, built: Built, game: Tournament, images: Source
) -> Contender:
    """A candidate with its trainer, which reads `images`."""
    device = next(built.method.parameters()).device
    trainer = Trainer(
        built.run, built.method, built.plan, its.source, device, length=Length(built.run),
        images=images, note=game.note,
    )  # fmt: skip
    trainer.stop = game.stop
    if others := list(game.contenders.values()):  # each file is listed once
        trainer.unreadable = others[0].trainer.unreadable
    return Contender(
        candidate=candidate, resolved=its, built=built, trainer=trainer, rng=rng_state()
    )


def _won(best: Contender, images: Source, deadline: float, note: Note) -> Won:
    """The winner with its schedule over the time that is left."""
    s, plan = best.built.run.settings, best.built.plan
    if not s.private:  # the film begins before training
        untrained = build(best.resolved).method.encoder.to(best.trainer.device)
        film = FeatureSnapshots(best.built.run.folder, images, plan, s.image_size, s.steps, note)
        film.snapshot(0, untrained)
    left = deadline - time.monotonic() - RESERVE
    seconds = best.seconds / max(best.steps, 1)
    steps = best.steps + max(int(left / seconds), 1)
    built = _at_length(best.built, best.resolved, steps)
    run_folder.write_config(built.run)
    best.trainer.feed.close()
    length = Length(built.run, deadline, done=best.steps)
    return Won(built, best.steps, best.trainer.state(best.rng), length, images)


def _at_length(built: Built, resolved: Resolved, steps: int) -> Built:
    """With what the recipe says for so many steps."""
    rates = resolved.at_length(steps)
    run = dataclasses.replace(built.run, options=rates.options, optim=rates.optim)
    built.method.options = run.options
    return dataclasses.replace(built, run=run.with_settings(steps=steps))


def cut_short(folder: Path) -> str:
    """What to say once when a run goes on whose tournament did not end; "" else."""
    about = read_json(folder / run_folder.TOURNAMENT)
    if not isinstance(about, dict) or about.get("state") != "running":
        return ""
    with contextlib.suppress(OSError):
        about["state"] = "cut short"
        write_text(folder / run_folder.TOURNAMENT, json.dumps(about, indent=1) + "\n")
    return (
        f"The tournament was cut short; {str(about.get('choice'))[:50]}, the best so far, trains "
        "on without the rounds that are missing."
    )
