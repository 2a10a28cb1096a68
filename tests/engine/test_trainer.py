"""The trainer by itself: a step, a rejected step, a save that fails; no run is trained."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from nolabel.engine import run_folder
from nolabel.engine import trainer as module
from nolabel.engine.checkpoint import SaveFailed, load_checkpoint
from nolabel.engine.run_folder import CAPTURED
from nolabel.errors import GuardStop
from nolabel.nn.random_state import rng_state
from nolabel.types import Clock

STEPS = 6  # as in conftest


def clock(step):
    return Clock(step, STEPS, 4)


def kept(trainer):
    """Weights, statistics and moments, as copies."""
    return copy.deepcopy((trainer.method.state_dict(), trainer.optimiser.state_dict()["state"]))


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    return a == b


def test_a_step_updates_and_measures(toy_trainer):
    trainer, notes = toy_trainer()
    before = kept(trainer)
    result = trainer.train_step(clock(0), measure=True)
    assert math.isfinite(result.loss) and result.gradient_norm > 0 and result.update_size() > 0
    assert result.step.logs == {"own": 2.0} and result.data_wait > 0
    assert not result.stop and not result.save
    assert not equal(before[0], trainer.method.state_dict())
    assert all(p.grad is None for p in trainer.method.parameters())
    assert trainer.train_step(clock(1)).update_size is None
    assert not notes


def test_a_rejected_step_leaves_nothing_behind_but_the_means_to_repeat_it(toy_trainer):
    trainer, notes = toy_trainer()
    trainer.train_step(clock(0))
    before, rng = kept(trainer), rng_state()
    trainer.method.factor = math.nan
    result = trainer.train_step(clock(1))
    assert not math.isfinite(result.loss)
    assert equal(before[0], trainer.method.state_dict())
    assert equal(before[1], trainer.optimiser.state_dict()["state"])
    assert all(p.grad is None for p in trainer.method.parameters())
    assert trainer.guard.consecutive == 1
    assert "Step 1: loss or gradients are not finite" in notes[0] and "nolabel replay" in notes[1]

    captured = load_checkpoint(trainer.run.folder / CAPTURED)
    assert captured.step == 1
    assert equal(captured.state["learner"]["method"], dict(before[0]))
    assert torch.equal(captured.state["rng"]["cpu"], rng["cpu"])  # that of before the step

    trainer.train_step(clock(2))  # the first of several in a row is the one that is kept
    assert load_checkpoint(trainer.run.folder / CAPTURED).step == 1
    assert len(notes) == 3 and trainer.guard.consecutive == 2
    trainer.method.factor = 1.0
    trainer.train_step(clock(3))
    assert trainer.guard.consecutive == 0
    assert not equal(before[0], trainer.method.state_dict())


def test_three_rejected_steps_in_a_row_end_the_run(toy_trainer):
    trainer, _ = toy_trainer()
    trainer.method.factor = math.inf
    trainer.train_step(clock(0))
    trainer.train_step(clock(1))
    with pytest.raises(GuardStop, match="3 steps in a row") as stop:
        trainer.train_step(clock(2))
    assert stop.value.exit_code == 3


def test_a_capture_that_cannot_be_written_does_not_stop_the_run(toy_trainer, monkeypatch):
    trainer, notes = toy_trainer()
    monkeypatch.setattr(module, "save_checkpoint", full)
    trainer.method.factor = math.nan
    trainer.train_step(clock(0))
    assert notes[-1] == "The step could not be saved for `nolabel replay`. no space"
    trainer.method.factor = 1.0
    trainer.train_step(clock(1))


def full(*args, **kwargs):
    raise SaveFailed("no space")


def unwritable(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("where", "name", "fails"),
    [(module, "save_checkpoint", full), (run_folder, "export", unwritable)],
)
def test_a_failed_save_goes_on_from_the_older_one_and_a_final_one_raises(
    toy_trainer, monkeypatch, where, name, fails
):
    trainer, notes = toy_trainer()
    trainer.save(1)
    assert not notes and load_checkpoint(trainer.run.folder).step == 1
    assert (trainer.run.folder / "encoder.safetensors").is_file()
    with monkeypatch.context() as m:
        m.setattr(where, name, fails)
        trainer.save(2)
        assert len(notes) == 1
        assert notes[0].startswith("Step 2: the checkpoint could not be saved; training goes on.")
        assert "space" in notes[0].lower()
        with pytest.raises((SaveFailed, OSError), match="(?i)no space"):
            trainer.save(3, final=True)
    if name == "save_checkpoint":
        assert load_checkpoint(trainer.run.folder).step == 1
    trainer.save(4, final=True)
    assert load_checkpoint(trainer.run.folder).step == 4


def test_where_the_last_checkpoint_does_not_fit_the_encoder_is_still_written(
    toy_trainer, monkeypatch
):
    trainer, _ = toy_trainer()
    monkeypatch.setattr(module, "save_checkpoint", full)
    with pytest.raises(SaveFailed):
        trainer.save(3, final=True)
    assert (trainer.run.folder / "encoder.safetensors").is_file()


def test_saving_draws_nothing(toy_trainer):
    trainer, _ = toy_trainer()
    before = rng_state()
    trainer.save(0)
    assert torch.equal(before["cpu"], rng_state()["cpu"])


def test_a_request_to_stop_and_the_time_for_a_save_are_part_of_the_result(toy_trainer):
    trainer, _ = toy_trainer()
    trainer.stop.requested = True
    trainer.saved_at -= 2 * module.CHECKPOINT_SECONDS
    result = trainer.train_step(clock(0))
    assert result.stop and result.save
    trainer.save(1)
    trainer.stop.requested = False
    result = trainer.train_step(clock(1))
    assert not result.stop and not result.save
    by_steps, _ = toy_trainer(checkpoint_every=2)
    by_steps.saved_at -= 2 * module.CHECKPOINT_SECONDS
    assert not by_steps.train_step(clock(0)).save


def test_the_network_stands_still_while_new_heads_warm_up(toy_trainer):
    trainer, _ = toy_trainer(init="unused", warm_heads=1)
    before = copy.deepcopy(trainer.method.state_dict())
    trainer.train_step(clock(0))
    now = trainer.method.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in now.items() if k.startswith("backbone."))
    assert not torch.equal(now["head.weight"], before["head.weight"])
    trainer.train_step(clock(1))
    now = trainer.method.state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in now.items() if k.startswith("backbone."))


def test_a_trainer_from_a_state_goes_on_exactly(toy_trainer):
    first, _ = toy_trainer()
    first.train_step(clock(0))
    first.save(1)
    second = first.train_step(clock(1))
    state = load_checkpoint(first.run.folder).state
    assert set(state) == {"learner", "rng", "guard"}
    assert set(state["learner"]) == {"method", "optimiser", "optimiser_kind"}
    again, _ = toy_trainer(start=1, state=state)
    repeated = again.train_step(clock(1))
    assert torch.equal(second.loss, repeated.loss)
    assert equal(first.method.state_dict(), again.method.state_dict())
