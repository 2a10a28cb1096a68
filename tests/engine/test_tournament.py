"""The method of a run chosen by trial: when, among whom, and what remains of it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

import nolabel as nl
from nolabel import cli
from nolabel.config import Layer, Request
from nolabel.data.creatures.world import Creatures
from nolabel.engine import entrants as module
from nolabel.engine import tournament
from nolabel.engine.entrants import asked, entrants
from nolabel.engine.fit import Fitted, automatic_method
from nolabel.engine.halving import Rounds
from nolabel.engine.monitor.metrics import read_metrics
from nolabel.engine.resolve import resolve
from nolabel.engine.saved_run import load_run
from nolabel.errors import Stopped, UsageError
from nolabel.recipes.candidates import LARGE, SMALL, Candidate
from nolabel.recipes.ladder import Choice, Rung

TINY = {"backbone": "vit_pico", "image_size": 32, "patch_size": 8, "batch_size": 8, "workers": 0,
        "precision": "fp32", "fit_views": False}  # fmt: skip


def request(tournament: str = "auto", **options: Any) -> Request:
    given = {"data": "creatures", "minutes": 10.0, **options}
    return dataclasses.replace(Request.of("simclr", **given), tournament=tournament)


def test_labels_are_needed_until_a_measure_without_them_is_good_enough(monkeypatch):
    assert not asked(request())
    assert asked(request(probe="creatures"))
    assert asked(request("on"))
    assert not asked(request("off", probe="creatures"))
    monkeypatch.setattr(module, "WITHOUT_LABELS", True)
    assert asked(request())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.2}, "temperature"),
        ({"minutes": None, "steps": 5}, "minutes"),
        ({"recipe": "paper"}, "paper"),
        ({"init": "random:resnet18"}, "--init"),
        ({"noise": 0.5}, "--noise"),
    ],
)
def test_what_is_for_one_method_leaves_no_choice(options, words):
    assert not asked(request(probe="creatures", **options))
    with pytest.raises(UsageError, match=words):
        asked(request("on", **options))


def test_words_that_are_not_known_are_refused(capsys):
    with pytest.raises(UsageError, match="auto"):
        asked(request("yes"))
    with pytest.raises(UsageError, match="is named"):
        nl.pretrain("simclr", data="creatures", tournament="on")
    assert cli.main(["pretrain", "simclr", "--data", "creatures", "--tournament", "on"]) == 2
    assert "is named" in capsys.readouterr().err


def fitted(choice: Choice | None = None) -> Any:
    return Fitted(request(), Creatures("train", size=32, count=4), None, choice)


def test_a_smaller_network_takes_part_where_fit_knows_one():
    source = Creatures("train", size=32, count=200)
    given = request("on", batch_size=8, fit_views=False).choose(
        backbone="resnet_mini", image_size=32
    )
    resolved = resolve(given, source=source, quiet=True)
    choice = Choice(Rung("resnet_mini", 32), 900, before=Rung("resnet_nano", 28))
    found = entrants(resolved, resolved.run, fitted(choice), pytest.fail)
    its = {c.name: its.run.settings for c, its in found}
    assert (its["simclr-smaller"].backbone, its["simclr-smaller"].image_size) == ("resnet_nano", 28)
    assert its["barlow"].backbone == "resnet_mini"


def test_the_rules_choice_comes_first_on_every_machine():
    assert SMALL[0].method == automatic_method("cpu")[0]
    assert LARGE[0].method == "dino"
    for listed in (SMALL, LARGE):
        assert len({c.name for c in listed}) == len(listed)
        assert listed[0].plain


def test_candidates_change_the_fitted_recipe_and_keep_the_network():
    source = Creatures("train", size=32, count=200)
    resolved = resolve(request(**TINY), source=source, quiet=True)
    found = entrants(resolved, resolved.run, fitted(), pytest.fail)
    assert [c for c, _ in found] == [c for c in SMALL if not c.smaller]
    runs = {c.name: its.run for c, its in found}
    assert {r.settings.backbone for r in runs.values()} == {"vit_pico"}
    assert runs["simclr-whole"].options.scale == (0.6, 1.0)
    plain, colour = runs["simclr"].options, runs["simclr-colour"].options
    assert colour.strength == pytest.approx(0.4 * plain.strength)
    its = dict((c.name, its) for c, its in found)["simclr-whole"]
    assert its.at_length(77).options.scale == (0.6, 1.0)


def test_candidates_that_equal_the_recipe_or_do_not_suit_are_left_out(monkeypatch):
    source = Creatures("train", size=32, count=40)
    resolved = resolve(request(**TINY), source=source, quiet=True)
    same = {"scale": resolved.run.options.scale}
    listed = (
        SMALL[0],
        Candidate(name="same", method="simclr", why="", options=same),
        Candidate(name="wrong", method="barlow", why="", options={"scale": 3}),
    )
    monkeypatch.setattr(module, "candidates", lambda on_gpu: listed)
    said: list[str] = []
    assert [c.name for c, _ in entrants(resolved, resolved.run, fitted(), said.append)] == [
        "simclr"
    ]
    assert len(said) == 1 and "wrong is left out" in said[0]


def played(monkeypatch, folder, scores: list[Any], rounds: Rounds) -> Any:
    """A tournament whose judge gives these scores, or raises them."""
    monkeypatch.setattr(tournament, "plan_rounds", lambda most, step, budget: rounds)

    def judge(encoder):
        score = scores.pop(0)
        if isinstance(score, BaseException):
            raise score
        return score

    monkeypatch.setattr(tournament, "judge_of", lambda run, images, facts: (judge, "a judge"))
    source = Creatures("train", size=32, count=64)
    return nl.pretrain(data=source, minutes=0.04, out=folder, tournament="on", quiet=True, **TINY)


def record(folder) -> Any:
    return json.loads((folder / "tournament.json").read_text())


def test_the_winner_keeps_its_weights_and_trains_on(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run = played(monkeypatch, folder, [0.1, 0.2, 0.3, 0.5, 0.4], Rounds(3, (0.05, 0.1)))
    about = record(folder)
    assert run.method == about["choice"] == "barlow"
    assert about["state"] == "finished" and len(about["rounds"]) == 2
    assert [r["score"] for r in about["rounds"][0]["results"]] == [0.1, 0.2, 0.3]
    done = next(r["steps"] for r in about["rounds"][1]["results"] if r["name"] == "barlow")
    lines = list(read_metrics(folder / "metrics.jsonl"))
    assert lines[0]["resumed_at"] == done > 0
    assert (folder / "film" / "step-000000000.npz").is_file()
    assert lines[-1]["step"] == run.settings.steps == load_run(folder).settings.steps
    assert nl.load(str(folder)).meta["method"] == "barlow"
    assert nl.resume(folder, quiet=True, data=Creatures("train", size=32, count=64)) == run


def test_a_run_that_is_killed_in_the_tournament_goes_on_with_the_best_so_far(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        scores = [0.1, 0.3, 0.2, ZeroDivisionError()]
        played(monkeypatch, folder, scores, Rounds(3, (0.05, 0.1)))
    about = record(folder)
    assert about["state"] == "running" and about["choice"] == "simclr-whole"
    done = next(r["steps"] for r in about["rounds"][0]["results"] if r["name"] == "simclr-whole")
    text = (folder / "config.yaml").read_text()
    config = text.replace(f"steps: {load_run(folder).settings.steps}\n", f"steps: {done + 2}\n")
    (folder / "config.yaml").write_text(config)
    run = nl.resume(folder, quiet=True, data=Creatures("train", size=32, count=64))
    assert run.options.scale == (0.6, 1.0) and run.settings.steps == done + 2
    assert record(folder)["state"] == "cut short"


def test_a_stop_request_saves_the_best_so_far(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    game = tournament.Tournament(folder=folder, judge=lambda encoder: 0.0, judged_by="", note=print)
    saved: list[str] = []
    monkeypatch.setattr(game, "_keep", lambda best: saved.append(best.name))
    monkeypatch.setattr(tournament.run_folder, "note_stop", lambda folder, step: None)

    class One:
        steps = 3

        def __init__(self, name: str):
            self.name, self.candidate = name, Candidate(name=name, method="simclr", why="")

        def train(self, seconds: float, stop: Any) -> None:
            stop.requested = True

    game.contenders = {name: One(name) for name in ("a", "b")}  # pyrefly: ignore
    game.rounds = [{"best": "b"}]
    with pytest.raises(Stopped, match="resume"):
        game._train("a", 1.0)
    assert saved == ["b"]


def test_options_that_are_chosen_yield_to_those_of_the_user():
    source = Creatures("train", size=32, count=40)
    chosen = Layer(options={"scale": (0.5, 1.0), "strength": 0.1})
    asked_for = dataclasses.replace(request(scale=(0.3, 0.9), **TINY), chosen=chosen)
    options = resolve(asked_for, source=source, quiet=True).run.options
    assert options.scale == (0.3, 0.9) and options.strength == 0.1
