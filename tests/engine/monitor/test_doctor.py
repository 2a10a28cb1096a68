"""The run's doctor: alarms that last, silence on healthy runs, a plain verdict at the end."""

from __future__ import annotations

import json

import pytest
import torch

import nolabel as nl
from nolabel.engine.monitor.doctor import ADVICE, Doctor, examine
from nolabel.engine.monitor.metrics import read_metrics
from nolabel.engine.update_size import UpdateSize, teacher_distance
from nolabel.errors import GuardStop
from nolabel.nn.state import Ema
from nolabel.tools.report.verdict import verdict


def lines(n=100, every=5, loss=lambda t: 5 * 0.98**t + 1, **more):
    """A healthy history of n lines; more: name -> function of the number of the line."""
    healthy = {"gradient_norm": lambda t: 1.0, "data_wait": lambda t: 0.02,
               "feature_std": lambda t: 0.8, "agreement": lambda t: 0.7,
               "agreement_others": lambda t: 0.1}  # fmt: skip
    return [
        {"step": every * (t + 1), "loss": loss(t), **{k: f(t) for k, f in (healthy | more).items()}}
        for t in range(n)
    ]


def states(history):
    doctor = Doctor(history[-1]["step"])
    return [v.state if (v := doctor.update(line)) else "" for line in history]


def test_a_healthy_run_is_learning_and_nothing_is_said():
    assert examine(lines(), 500).state == "learning"
    assert not any(states(lines()))
    assert examine(lines(3), 500).state == "early" and examine([], 10).state == "early"


def test_a_sign_of_collapse_counts_when_it_lasts_and_not_in_the_first_steps():
    early = lines(feature_std=lambda t: 0.01 if t < 9 else 0.8)  # until step 45
    assert not any(states(early))
    short = lines(feature_std=lambda t: 0.01 if 20 <= t < 26 else 0.8)
    assert not any(states(short))
    lasting = states(lines(feature_std=lambda t: 0.01 if t >= 20 else 0.8))
    first = lasting.index("collapsed")
    assert first == 28 and set(lasting[first:]) == {"collapsed"}  # 40 steps after step 105
    found = examine(lines(feature_std=lambda t: 0.01 if t >= 20 else 0.8), 500)
    assert found.state == "collapsed" and "since step 105" in found.why
    assert found.advice == ADVICE["features"]


@pytest.mark.parametrize(("sign", "change"), [
    ("embeddings", {"agreement_others": lambda t: 0.99}),
    ("targets", {"target_information": lambda t: 0.04, "target_entropy": lambda t: 6.0}),
    ("prototypes", {"target_information": lambda t: 0.5, "target_entropy": lambda t: 0.1}),
])  # fmt: skip
def test_each_sign_has_its_own_advice(sign, change):
    assert examine(lines(**change), 500).advice == ADVICE[sign]


def test_a_collapse_is_known_within_500_steps_of_a_long_run():
    history = lines(40, every=100, agreement_others=lambda t: 0.99)  # lines come every 100 steps
    assert history[states(history).index("collapsed")]["step"] <= 500


def test_growing_losses_and_gradients_and_losses_that_are_no_number_are_diverging():
    grown = lines(loss=lambda t: 2.0 if t < 60 else 9.0)
    assert examine(grown, 500).state == "diverging" and "4.5 times" in examine(grown, 500).why
    one = lines(loss=lambda t: 200.0 if t == 70 else 2.0)  # a spike is not
    assert not any(states(one))
    burst = lines(gradient_norm=lambda t: 1.0 if t < 90 else 500.0)
    assert "500 times" in examine(burst, 500).why
    gone = lines(loss=lambda t: None if t > 95 else 2.0)
    assert "not finite" in examine(gone, 500).why
    # From zero (memories that fill first) nothing can grow by a factor.
    assert not any(states(lines(loss=lambda t: 0.0 if t < 50 else 5.0)))


def test_waiting_for_data_and_a_loss_that_stays_are_said_at_the_end():
    slow = lines(data_wait=lambda t: 0.4)
    assert examine(slow, 500).state == "learning"  # learning first, speed as a note
    assert str(examine(slow, 500)).startswith("Learning. Speed: 40% of the time")
    assert "--workers than 3" in str(examine(slow, 500, workers=3))
    assert "took turns with training (0 workers)" in str(examine(slow, 500, workers=0))
    assert str(examine(lines(data_wait=lambda t: 0.9 if t < 20 else 0.0), 500)) == "Learning."
    flat = lines(loss=lambda t: 5 - 4 * min(t / 40, 1))
    assert examine(flat, 500).state == "stopped improving"
    rising = lines(loss=lambda t: 1 + t / 100)  # a teacher that becomes surer
    assert examine(rising, 500).state == "learning"


def test_a_probe_has_the_last_word_on_improvement():
    def probed(best):
        history = lines(loss=lambda t: 5 - 4 * min(t / 40, 1))
        for t in range(9, 100, 10):
            history[t]["probe_knn"] = best(t)
        return history

    assert examine(probed(lambda t: t / 200), 500).state == "learning"
    found = examine(probed(lambda t: 0.3 - abs(t - 30) / 1000), 500)
    assert found.state == "stopped improving" and "probe" in found.why


def test_an_updates_size_is_relative_to_the_weights():
    p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    size = UpdateSize([p])
    p.data += torch.tensor([0.0, 0.5])
    assert float(size()) == pytest.approx(0.1)


def test_a_teachers_distance_is_relative_to_its_student_and_no_part_of_its_state():
    student = torch.nn.Linear(2, 1, bias=False)
    student.weight.data = torch.tensor([[3.0, 4.0]])
    teacher = Ema(student)
    assert not teacher.followed
    student.weight.data = torch.tensor([[6.0, 8.0]])
    teacher.follow(student, 0.5)
    assert float(teacher_distance(teacher)) == pytest.approx(0.25)
    assert list(teacher.state_dict()) == ["module.weight"]
    assert [n for n, _ in teacher.named_modules()] == ["", "module"]


def test_a_collapsed_run_stops_when_asked_to_and_can_go_on(tmp_path, capsys):
    given = {"data": "creatures", "steps": 90, "batch_size": 16, "backbone": "resnet_nano",
             "precision": "fp32", "log_every": 10, "stop_gradient": False,
             "projection_norm": False}  # fmt: skip
    with pytest.raises(GuardStop, match="embeddings of different images"):
        nl.pretrain("byol", out=tmp_path / "stopped", on_collapse="stop", **given)
    found = read_metrics(tmp_path / "stopped" / "metrics.jsonl")
    assert found[-1]["verdict"] == "collapsed" and 60 <= found[-1]["step"] < 90
    assert 0 < found[-1]["update_size"] < 1 and 0 < found[-1]["momentum_distance"] < 1
    assert list((tmp_path / "stopped" / "checkpoints").glob("step-*.ckpt"))
    assert verdict([], found, 90).startswith("Collapsed")
    capsys.readouterr()
    nl.pretrain("byol", out=tmp_path / "warned", **given)
    printed = capsys.readouterr().err
    assert printed.count("Collapsed") == 2  # when it happened, and at the end
    text = (tmp_path / "warned" / "metrics.jsonl").read_text()
    assert json.loads(text.splitlines()[-1])["step"] == 90


def test_a_loss_that_leaps_up_is_a_spike_and_noise_or_a_fall_is_none():
    noise = [0.1 * ((i * 7919) % 13 - 6) / 6 for i in range(100)]
    doctor = Doctor(1000)
    for i in range(100):
        doctor.update({"step": i + 1, "loss": 3.0 - 0.01 * i + noise[i]})
    assert doctor.spikes == 0
    for i, leap in enumerate([0.0, 4.0, 0.0, 0.0, 4.0, -2.0]):
        doctor.update({"step": 101 + i, "loss": 2.0 + leap})
    assert doctor.spikes == 2
    early = Doctor(1000)
    for i, loss in enumerate([1.0, 9.0, 1.0]):
        early.update({"step": i + 1, "loss": loss})
    assert early.spikes == 0  # too few lines to know what is usual
