"""Runs with a user's own code: it is copied, found from any folder, and executed if trusted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import nolabel as nl
from nolabel import _usercode, cli
from nolabel.engine.build import load_method
from nolabel.errors import FileDamaged, UntrustedCode, UsageError
from own_code import CONV_NET, MEAN_COLOUR

# Notes in the folder EXECUTED that the file was executed.
NOTE = """
import os
import pathlib

pathlib.Path(os.environ["EXECUTED"]).joinpath(pathlib.Path(__file__).stem).touch()
"""
METHOD, NET = NOTE + MEAN_COLOUR, NOTE + CONV_NET
QUICK = {"steps": 4, "batch_size": 8, "precision": "fp32", "workers": 0, "image_size": 32,
         "checkpoint_every": 2, "quiet": True}  # fmt: skip


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    """A user who has not run any code yet, in a working folder with two files."""
    monkeypatch.setenv("NOLABEL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("EXECUTED", str(tmp_path / "executed"))
    (tmp_path / "executed").mkdir()
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    Path("my.py").write_text(METHOD)
    Path("net.py").write_text(NET)
    new_process(monkeypatch)


def new_process(monkeypatch):
    monkeypatch.setattr(_usercode.loading, "_FILES", {})
    monkeypatch.setattr(_usercode.loading, "_REPORTED", set())


def another_user(monkeypatch, tmp_path):
    """Another user, who received the folder of a run and works elsewhere."""
    monkeypatch.setenv("NOLABEL_STATE", str(tmp_path / "another"))
    for mark in executed(tmp_path):
        (tmp_path / "executed" / mark).unlink()
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    new_process(monkeypatch)


def executed(tmp_path):
    return sorted(os.listdir(tmp_path / "executed"))


def train(photos, tmp_path, method="my.py:Mine", out="run", **options):
    given = {**QUICK, **({} if "backbone" in options else {"backbone": "vit_pico"}), **options}
    return nl.pretrain(method, data=str(photos), out=str(tmp_path / out), **given)


def stopped_early(folder):
    """As if the run had been killed after the checkpoint of step 2."""
    newest = max((folder / "checkpoints").glob("step-*.ckpt"))
    assert "4" in newest.name
    newest.unlink()


def weights(folder):
    return load_method(folder)[0].state_dict()


def test_a_methods_file_is_copied_with_its_hash(photos, tmp_path):
    run = train(photos, tmp_path)
    raw = yaml.safe_load((run.folder / "config.yaml").read_text())
    ((copy, record),) = raw["code"].items()
    assert (run.folder / copy).read_text() == METHOD
    assert raw["method"] == f"my.py:Mine@{record['sha256'][:12]}"
    assert record["original"] == str(tmp_path / "desk/my.py")
    assert copy == f"code/my-{record['sha256'][:12]}.py"


def test_a_run_goes_on_from_its_copy_from_anywhere(photos, tmp_path, monkeypatch, capsys):
    """The original is changed, then gone; the working folder is another one."""
    run = train(photos, tmp_path)
    whole = weights(run.folder)
    shutil.copytree(run.folder, tmp_path / "second")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "desk/my.py").write_text(METHOD.replace("self.options.weight * loss", "0 * loss"))
    for folder, message in ((run.folder, "has changed"), (tmp_path / "second", "is gone")):
        new_process(monkeypatch)
        stopped_early(folder)
        nl.resume(folder, quiet=True)
        assert capsys.readouterr().err.count(message) == 1
        for key, value in weights(folder).items():
            assert torch.equal(value, whole[key]), key
        (tmp_path / "desk/my.py").unlink(missing_ok=True)
    new_process(monkeypatch)
    assert cli.main(["report", str(run.folder), "--no-draw"]) == 0
    assert "Not drawn" not in (run.folder / "report.html").read_text()


def test_a_folder_of_somebody_else_is_not_executed(photos, tmp_path, monkeypatch, capsys):
    run = train(photos, tmp_path)
    stopped_early(run.folder)
    another_user(monkeypatch, tmp_path)
    folder = str(run.folder)
    for command in (["resume", folder], ["show", "views", "--encoder", folder, "--data",
                    str(photos)], ["pretrain", "beit", "--data", str(photos), "--teacher", folder,
                    "--steps", "1"]):  # fmt: skip
        assert cli.main(command) == 2
        assert "--trust-code" in capsys.readouterr().err
    assert cli.main(["report", folder, "--no-draw"]) == 0
    assert "Read it; if you trust it" in (run.folder / "report.html").read_text()
    nl.load(folder)  # a ViT's weights need no code
    assert executed(tmp_path) == []
    assert cli.main(["resume", folder, "--trust-code"]) == 0
    assert len(executed(tmp_path)) == 1
    new_process(monkeypatch)
    load_method(folder)  # what was trusted once stays so


def test_the_arguments_of_python_trust_as_the_flag_does(photos, tmp_path, monkeypatch):
    run = train(photos, tmp_path)
    stopped_early(run.folder)
    another_user(monkeypatch, tmp_path)
    with pytest.raises(UntrustedCode, match="trust_code=True"):
        nl.resume(run.folder, quiet=True)
    nl.resume(run.folder, quiet=True, trust_code=True)


def test_showing_and_judging_take_the_argument_too(photos, tmp_path, monkeypatch):
    folder = str(train(photos, tmp_path, "simclr", backbone="net.py:Net").folder)
    calls = {
        "show": lambda trust: nl.show("views", folder, str(photos), count=2, **trust),
        "evaluate": lambda trust: nl.evaluate("knn", folder, train=str(photos), **trust),
        "compare": lambda trust: nl.compare([folder], train=str(photos), **trust),
    }
    for i, call in enumerate(calls.values()):
        another_user(monkeypatch, tmp_path)
        # Trust is recorded, so each call is made as a new user.
        monkeypatch.setenv("NOLABEL_STATE", str(tmp_path / f"another-{i}"))
        with pytest.raises(UntrustedCode, match="trust_code=True"):
            call({})
        call({"trust_code": True})


def test_no_name_in_a_configuration_makes_a_file_run(photos, tmp_path, monkeypatch, capsys):
    """Whatever a stranger writes into config.yaml, nothing outside the copies is executed."""
    run = train(photos, tmp_path, "simclr", hidden=16, projection=8)
    text = (run.folder / "config.yaml").read_text()
    (tmp_path / "evil.py").write_text(METHOD + NET)
    (run.folder / "code").mkdir()
    (run.folder / "code/evil-123456789abc.py").write_text(METHOD + NET)
    another_user(monkeypatch, tmp_path)
    for evil in (f"{tmp_path}/evil.py:Mine", f"{tmp_path}/evil.py", "evil.py:Mine@123456789abc"):
        for key in ("method", "backbone", "data", "probe", "init"):
            raw = yaml.safe_load(text)
            place = raw if key == "method" else raw["settings"]
            place[key] = f"random:{evil}" if key == "init" else evil
            (run.folder / "config.yaml").write_text(yaml.safe_dump(raw))
            assert cli.main(["resume", str(run.folder)]) in (1, 2), (key, evil)
            cli.main(["report", str(run.folder)])
            cli.main(["show", "views", "--encoder", str(run.folder), "--data", str(photos)])
            capsys.readouterr()
    assert executed(tmp_path) == []
    raw = yaml.safe_load(text)
    raw["settings"]["backbone"] = f"{tmp_path}/evil.py:Net"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    command = ["pretrain", "simclr", "--data", str(photos), "--config",
               str(tmp_path / "config.yaml"), "--dry-run"]  # fmt: skip
    assert cli.main(command) == 2
    assert "--trust-code" in capsys.readouterr().err
    assert executed(tmp_path) == []


def test_a_run_made_before_copies_were_kept(photos, tmp_path, monkeypatch):
    run = train(photos, tmp_path)
    raw = yaml.safe_load((run.folder / "config.yaml").read_text())
    raw["method"] = "my.py:Mine"
    del raw["code"]
    (run.folder / "config.yaml").write_text(yaml.safe_dump(raw))
    shutil.rmtree(run.folder / "code")
    new_process(monkeypatch)
    stopped_early(run.folder)
    nl.resume(run.folder, quiet=True)  # this user ran these bytes
    another_user(monkeypatch, tmp_path)
    with pytest.raises(UsageError, match="there is no such file here"):
        load_method(run.folder)
    monkeypatch.chdir(tmp_path / "desk")
    with pytest.raises(UntrustedCode):
        load_method(run.folder)
    assert executed(tmp_path) == []


def test_a_changed_copy_stops_everything(photos, tmp_path, monkeypatch):
    run = train(photos, tmp_path)
    (copy,) = (run.folder / "code").iterdir()
    copy.write_text(METHOD + "\n# changed\n")
    new_process(monkeypatch)
    with pytest.raises(FileDamaged, match="was changed after"):
        nl.resume(run.folder, trust_code=True)


def test_a_network_of_ones_own_is_trained_resumed_and_evaluated(photos, tmp_path, monkeypatch):
    run = train(photos, tmp_path, "simclr", backbone="net.py:Net")
    whole = weights(run.folder)["backbone.net.conv.0.weight"]
    assert run.settings.backbone.startswith("net.py:Net@")
    Path("net.py").unlink()
    new_process(monkeypatch)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    stopped_early(run.folder)
    nl.resume(run.folder, quiet=True)
    assert torch.equal(weights(run.folder)["backbone.net.conv.0.weight"], whole)
    judge = ["evaluate", "knn", "--encoder", str(run.folder), "--train", str(photos)]
    assert cli.main(judge) == 0
    another_user(monkeypatch, tmp_path)
    assert cli.main(judge) == 2
    assert cli.main(["pretrain", "simclr", "--data", str(photos), "--init", str(run.folder),
                     "--dry-run"]) == 2  # fmt: skip
    assert executed(tmp_path) == []
    assert cli.main([*judge, "--trust-code"]) == 0


def test_a_process_elsewhere_resumes_and_says_what_became_of_the_original(photos, tmp_path):
    run = train(photos, tmp_path, backbone="net.py:Net")
    stopped_early(run.folder)
    Path("my.py").unlink()
    Path("net.py").write_text(NET + "# more\n")
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-m", "nolabel", "resume", str(run.folder)]
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "my.py is gone" in done.stderr and "net.py has changed" in done.stderr
    other = os.environ | {"NOLABEL_STATE": str(tmp_path / "another")}
    stopped_early(run.folder)
    done = subprocess.run(
        command, cwd=tmp_path / "elsewhere", capture_output=True, text=True, env=other
    )
    assert done.returncode == 2 and "--trust-code" in done.stderr
    done = subprocess.run(
        [*command, "--trust-code"], cwd=tmp_path / "elsewhere", capture_output=True, env=other
    )
    assert done.returncode == 0


class Given(nn.Module):
    """A network that no file of the run holds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)

    def forward(self, x):
        return self.conv(x).relu()


@pytest.mark.parametrize("given", [Given, Given()])
def test_a_network_given_in_python_is_given_again(photos, tmp_path, monkeypatch, given, capsys):
    from nolabel.backbones import own

    run = train(photos, tmp_path, "simclr", backbone=given)
    stopped_early(run.folder)
    monkeypatch.setattr(own, "_REGISTERED", {})
    assert cli.main(["resume", str(run.folder)]) == 2
    assert "nolabel.resume(folder, backbone=network)" in capsys.readouterr().err
    with pytest.raises(UsageError, match="was passed in from Python"):
        nl.load(run.folder)
    nl.resume(run.folder, quiet=True, backbone=given)
    encoder = nl.load(run.folder, backbone=Given)
    assert encoder.embed(torch.randn(2, 3, 32, 32)).shape == (2, 8)
    print(nl.evaluate("knn", encoder, train=str(photos)))


@pytest.mark.parametrize("method", ["mae", "simmim", "ibot", "dinov2"])
def test_methods_that_hide_patches_refuse_it_with_the_reason(photos, tmp_path, method):
    with pytest.raises(UsageError, match=r"needs a backbone that can .*'net\.py:Net@\w+' cannot"):
        train(photos, tmp_path, method, backbone="net.py:Net")


def test_an_embedding_alone_is_no_map(photos, tmp_path):
    Path("net.py").write_text(NET.replace("self.conv(x)", "self.conv(x).mean((2, 3))"))
    with pytest.raises(UsageError, match="features of patches"):
        train(photos, tmp_path, "vqvae", backbone="net.py:Net")
    run = train(photos, tmp_path, "simclr", backbone="net.py:Net")
    with pytest.raises(UsageError, match="features of patches"):
        nl.show("pca", run.encoder, data=str(photos))
