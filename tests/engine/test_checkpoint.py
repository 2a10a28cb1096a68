"""A save that fails or is killed leaves older checkpoints intact; damaged files are skipped."""

from __future__ import annotations

import builtins
import copy
import errno
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nolabel.engine import checkpoint as ckpt
from nolabel.engine.optimiser import build_optimiser
from nolabel.errors import FileDamaged
from nolabel.nn.random_state import rng_state, set_rng_state
from nolabel.types import Optim


class Killed(BaseException):
    """Like SIGKILL: not caught by `except Exception` or `except OSError`."""


def state(n):
    return {"x": torch.arange(n), "nested": {"list": [torch.ones(2)], "step": n, "name": "a"}}


def names(folder):
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def file_that_fails(error, after):
    """`open` whose files take `after` writes, tear the next one in half and raise `error`; and its
    files' numbers of writes, which grow."""
    real, files = builtins.open, []

    def opened(path, mode="r", *args, **kwargs):
        file = real(path, mode, *args, **kwargs)
        if "w" not in mode:
            return file
        files.append(Torn(file))
        return files[-1]

    class Torn:
        def __init__(self, file):
            self.file, self.count = file, 0

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if self.count == after:
                self.file.write(bytes(data)[: len(data) // 2])
                raise error
            self.count += 1
            return self.file.write(data)

    return opened, files


def raiser(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def break_at(monkeypatch, call, error):
    if call in ("place", "payload"):
        fail, _ = file_that_fails(error, after=0 if call == "place" else 1)
        monkeypatch.setattr(builtins, "open", fail)
    elif call == "folder fsync":
        monkeypatch.setattr(ckpt, "sync_folder", raiser(error))
    else:
        monkeypatch.setattr(os, call, raiser(error))


CALLS = ["place", "payload", "fsync", "replace"]  # of the first line; what follows it; ...


@pytest.mark.parametrize("call", CALLS)
def test_killed_in_mid_save_the_previous_checkpoint_loads_and_no_orphan_outlives_a_save(
    call, tmp_path, monkeypatch
):
    ckpt.save_checkpoint(tmp_path, 1, state(3))
    with monkeypatch.context() as m, pytest.raises(Killed):
        break_at(m, call, Killed())
        ckpt.save_checkpoint(tmp_path, 2, state(4))
    loaded = ckpt.load_checkpoint(tmp_path)
    assert (loaded.step, loaded.notes) == (1, [])
    assert torch.equal(loaded.state["x"], torch.arange(3))
    assert names(tmp_path) == ["step-00000001.ckpt", "step-00000002.tmp"]
    ckpt.save_checkpoint(tmp_path, 3, state(5))
    assert names(tmp_path) == ["step-00000001.ckpt", "step-00000003.ckpt"]


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_save_that_breaks_at_any_of_its_writes_breaks_with_that_error(
    error, tmp_path, monkeypatch
):
    """torch.save would put an error of its own in its place."""
    ckpt.save_checkpoint(tmp_path, 1, state(3))
    with monkeypatch.context() as m:
        opened, files = file_that_fails(error, after=1000)
        m.setattr(builtins, "open", opened)
        ckpt.save_checkpoint(tmp_path, 1, state(3))
    writes = files[0].count
    assert writes > 10
    for after in range(writes):
        with monkeypatch.context() as m, pytest.raises((Killed, ckpt.SaveFailed)) as raised:
            m.setattr(builtins, "open", file_that_fails(error, after)[0])
            ckpt.save_checkpoint(tmp_path, 2, state(4))
        assert raised.value is error or raised.value.__cause__ is error
        assert ckpt.load_checkpoint(tmp_path).step == 1
        assert torch.serialization.get_crc32_options()  # switched off while saving, and on again


def test_killed_after_the_rename_the_new_checkpoint_loads(tmp_path, monkeypatch):
    ckpt.save_checkpoint(tmp_path, 1, state(3))
    with monkeypatch.context() as m, pytest.raises(Killed):
        break_at(m, "folder fsync", Killed())
        ckpt.save_checkpoint(tmp_path, 2, state(4))
    assert ckpt.load_checkpoint(tmp_path).step == 2


@pytest.mark.parametrize("call", CALLS)
def test_a_full_disk_removes_what_was_begun_and_says_how_much_is_free(call, tmp_path, monkeypatch):
    ckpt.save_checkpoint(tmp_path, 1, state(3))
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as m, pytest.raises(ckpt.SaveFailed, match=r"[\d,]+ are free"):
        break_at(m, call, full)
        ckpt.save_checkpoint(tmp_path, 2, state(4))
    assert names(tmp_path) == ["step-00000001.ckpt"]
    assert ckpt.load_checkpoint(tmp_path).step == 1
    ckpt.save_checkpoint(tmp_path, 3, state(4))
    assert ckpt.load_checkpoint(tmp_path).step == 3


def test_too_little_space_is_seen_before_a_byte_is_written(tmp_path, monkeypatch):
    ckpt.save_checkpoint(tmp_path, 1, state(3))
    tight = SimpleNamespace(total=10_000, used=9_000, free=1_000)
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda path: tight)
        m.setattr(torch, "save", raiser(AssertionError("must not be reached")))
        with pytest.raises(ckpt.SaveFailed, match="needs 4,000 bytes and 1,000 are free"):
            ckpt.save_checkpoint(tmp_path, 2, {"a": [{"b": (torch.zeros(1000),)}], "n": 3})
        with pytest.raises(ckpt.SaveFailed, match="needs 8,000"):
            ckpt.save_checkpoint(tmp_path, 2, {"a": torch.zeros(1000), "b": torch.zeros(1000)})
    assert names(tmp_path) == ["step-00000001.ckpt"]


def test_a_folder_that_cannot_be_written_is_no_full_disk(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(ckpt.SaveFailed, match="writable"):
        ckpt.save_checkpoint(tmp_path, 1, state(3))


def test_any_altered_byte_makes_the_older_checkpoint_the_one_used(tmp_path):
    for step in (8, 12):
        ckpt.save_checkpoint(tmp_path, step, state(step))
    newest = tmp_path / "checkpoints" / "step-00000012.ckpt"
    whole = newest.read_bytes()
    header = whole.index(b"\n") + 1
    places = [*range(header), *range(header, len(whole), 97), len(whole) - 1]
    for place in places:  # all of the header: its step and format are guarded too
        raw = bytearray(whole)
        raw[place] ^= 1
        newest.write_bytes(raw)
        loaded = ckpt.load_checkpoint(tmp_path)
        assert loaded.step == 8, place
        assert len(loaded.notes) == 1 and "step-00000012.ckpt" in loaded.notes[0]
    newest.write_bytes(whole)
    assert ckpt.load_checkpoint(tmp_path).step == 12


@pytest.mark.parametrize("size", [0, 1, 40, -1, -100])
def test_a_file_cut_short_is_passed_over(size, tmp_path):
    for step in (1, 2):
        path = ckpt.save_checkpoint(tmp_path, step, state(3))
    path.write_bytes(path.read_bytes()[:size])
    loaded = ckpt.load_checkpoint(tmp_path)
    assert loaded.step == 1
    assert "damaged" in loaded.notes[0]


def test_no_whole_checkpoint_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(FileDamaged, match="Start the run again"):
        ckpt.load_checkpoint(tmp_path)
    ckpt.save_checkpoint(tmp_path, 1, state(3)).write_bytes(b"[1, 2]\n")
    with pytest.raises(FileDamaged, match="--init"):
        ckpt.load_checkpoint(tmp_path)


def test_a_file_of_a_later_format_names_its_format(tmp_path):
    path = ckpt.save_checkpoint(tmp_path, 1, state(3))
    line, _, payload = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps(json.loads(line) | {"format": 9}).encode() + b"\n" + payload)
    with pytest.raises(FileDamaged, match="format 9"):
        ckpt.load_checkpoint(tmp_path)


def test_a_file_of_the_first_format_is_read_and_guarded(tmp_path):
    """Its first line had no spaces at its end."""
    path = ckpt.save_checkpoint(tmp_path, 1, state(3))
    line, _, payload = path.read_bytes().partition(b"\n")
    old = json.dumps(json.loads(line) | {"format": 1}).encode() + b"\n" + payload
    path.write_bytes(old)
    assert torch.equal(ckpt.load_checkpoint(tmp_path).state["x"], torch.arange(3))
    for place in (20, 60, len(line.rstrip()) + 1, len(old) // 2, len(old) - 1):
        raw = bytearray(old)
        raw[place] ^= 1
        path.write_bytes(raw)
        with pytest.raises(FileDamaged):
            ckpt.load_checkpoint(tmp_path)


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    """A file with the right digest and a payload that would call a function."""

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    ckpt.save_checkpoint(tmp_path, 1, {"x": Evil()})
    with pytest.raises(FileDamaged, match="cannot be read"):
        ckpt.load_checkpoint(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_the_newest_two_are_kept(tmp_path):
    for step in range(1, 6):
        ckpt.save_checkpoint(tmp_path, step, state(3))
    assert names(tmp_path) == ["step-00000004.ckpt", "step-00000005.ckpt"]


def test_a_damaged_later_file_never_displaces_a_whole_one(tmp_path):
    """A run that fell back from step 12 to 8 and now saves step 10."""
    ckpt.save_checkpoint(tmp_path, 8, state(3))
    ckpt.save_checkpoint(tmp_path, 12, state(3)).write_bytes(b"junk")
    ckpt.save_checkpoint(tmp_path, 10, state(3))
    assert names(tmp_path) == ["step-00000008.ckpt", "step-00000010.ckpt"]
    ckpt.save_checkpoint(tmp_path, 12, state(3), keep=1)
    assert names(tmp_path) == ["step-00000012.ckpt"]


def test_a_ninth_digit_does_not_upset_the_order(tmp_path):
    ckpt.save_checkpoint(tmp_path, 99_999_999, state(3))
    ckpt.save_checkpoint(tmp_path, 100_000_000, state(3))
    assert ckpt.load_checkpoint(tmp_path).step == 100_000_000


class Learner(nn.Module):
    """Dropout draws from torch's random state; batch norm has buffers."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(self.fc(x))).square().mean()


def go(learner, optimiser, steps, folder=None):
    """Trains; with a folder saves after each step."""
    for step in range(steps):
        learner(torch.randn(8, 4)).backward()
        optimiser.step()
        optimiser.zero_grad()
        if folder:
            inside = ckpt.capture(learner, optimiser)
            ckpt.save_checkpoint(folder, step + 1, {"learner": inside, "rng": rng_state()})


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_saving_perturbs_nothing_and_resuming_is_bit_exact(name, tmp_path):
    def fresh():
        torch.manual_seed(3)
        learner = Learner()
        return learner, build_optimiser(learner, Optim(name=name, lr=0.1))

    plain = fresh()
    go(*plain, 6)
    saving = fresh()
    go(*saving, 3, tmp_path)

    resumed = fresh()
    torch.manual_seed(99)
    loaded = ckpt.load_checkpoint(tmp_path)
    assert loaded.step == 3
    ckpt.restore(*resumed, loaded.state["learner"])
    set_rng_state(loaded.state["rng"])
    go(*resumed, 3)
    wanted = plain[0].state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in resumed[0].state_dict().items())

    again = fresh()
    go(*again, 6, tmp_path)
    assert all(torch.equal(v, wanted[k]) for k, v in again[0].state_dict().items())


def trained():
    learner = Learner()
    optimiser = build_optimiser(learner, Optim(name="adamw"))
    go(learner, optimiser, 1)
    return learner, optimiser, copy.deepcopy(ckpt.capture(learner, optimiser))


@pytest.mark.parametrize("change", ["missing", "unexpected", "misfit"])
def test_weights_that_do_not_fit_are_named(change):
    learner, optimiser, saved = trained()
    if change == "missing":
        del saved["method"]["norm.running_mean"]
    elif change == "unexpected":
        saved["method"]["norm.running_mean_2"] = torch.zeros(4)
    else:
        saved["method"]["norm.running_mean"] = torch.zeros(5)
    with pytest.raises(FileDamaged, match="norm.running_mean"):
        ckpt.restore(learner, optimiser, saved)


def test_moments_that_do_not_fit_are_named_and_nothing_is_changed():
    learner, optimiser, saved = trained()
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    saved["method"] = {k: v + 1 for k, v in saved["method"].items()}
    saved["optimiser"]["state"][0]["exp_avg"] = torch.zeros(7, 7)
    with pytest.raises(FileDamaged, match="exp_avg of fc.weight"):
        ckpt.restore(learner, optimiser, saved)
    assert all(torch.equal(v, before[k]) for k, v in learner.state_dict().items())


def test_the_state_of_another_optimiser_or_of_other_groups_is_refused():
    learner, _, saved = trained()
    with pytest.raises(FileDamaged, match="AdamW"):
        ckpt.restore(learner, build_optimiser(learner, Optim(name="sgd")), saved)
    learner.fc.bias.requires_grad_(False)
    with pytest.raises(FileDamaged, match="groups"):
        ckpt.restore(learner, build_optimiser(learner, Optim()), saved)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_random_state_of_gpus_returns_and_what_is_loaded_lies_on_the_cpu(tmp_path):
    ckpt.save_checkpoint(tmp_path, 1, {"rng": rng_state(), "w": torch.ones(3, device="cuda")})
    a = torch.rand(5, device="cuda")
    loaded = ckpt.load_checkpoint(tmp_path).state
    assert loaded["w"].device.type == "cpu"
    set_rng_state(loaded["rng"])
    assert torch.equal(torch.rand(5, device="cuda"), a)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_interrupted_anywhere_leaves_the_older_checkpoint_whole(tmp_path, monkeypatch, call):
    ckpt.save_checkpoint(tmp_path, 1, {"x": torch.arange(3)})

    class Killed(BaseException):
        pass

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(os, call, die)
        ckpt.save_checkpoint(tmp_path, 2, {"x": torch.arange(4)})
    assert ckpt.load_checkpoint(tmp_path).step == 1
    ckpt.save_checkpoint(tmp_path, 3, {"x": torch.arange(5)})
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-00000001.ckpt", "step-00000003.ckpt"}  # no orphan


def test_a_full_disk_loses_nothing_and_says_so(tmp_path, monkeypatch):
    ckpt.save_checkpoint(tmp_path, 1, {"x": torch.arange(3)})

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m, pytest.raises(ckpt.SaveFailed, match="space"):
        m.setattr(os, "fsync", full)
        ckpt.save_checkpoint(tmp_path, 2, {"x": torch.arange(4)})
    assert ckpt.load_checkpoint(tmp_path).step == 1
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_checkpoint_that_does_not_fit_names_what_is_wrong():
    net = nn.Linear(2, 2)
    state = ckpt.capture(net, torch.optim.SGD(net.parameters(), lr=0.1))
    del state["method"]["bias"]
    with pytest.raises(FileDamaged, match="bias"):
        ckpt.restore(net, None, state)
