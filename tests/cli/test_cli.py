"""The command line as a user meets it: help, errors, exit codes, JSON."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import nolabel as nl
from nolabel import cli
from nolabel.backbones import PRESETS
from nolabel.cli import runs as cli_runs
from nolabel.cli.pretrain_flags import read_flags
from nolabel.data.open import DATASETS
from nolabel.encoders import ENCODERS
from nolabel.encoders.convert.families import LAYOUTS
from nolabel.methods import METHODS
from nolabel.pictures import PICTURES, options_of
from nolabel.protocols.run import PROTOCOLS

SHORT = ["--steps", "2", "--batch-size", "8", "--precision", "fp32", "--workers", "0",
         "--backbone", "vit_pico", "--image-size", "32", "--device", "cpu"]  # fmt: skip


def fails(capsys, code, *args):
    """Runs the command line; returns its one message."""
    try:
        got = cli.main(list(args))
    except SystemExit as leave:  # tyro's way
        got = leave.code
    err = capsys.readouterr()
    assert got == code, err
    assert "Traceback" not in err.err
    return err.err + err.out


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("methods", list(METHODS)),
        ("backbones", list(PRESETS)),
        ("datasets", list(DATASETS)),
        ("protocols", list(PROTOCOLS)),
        ("pictures", list(PICTURES)),
        ("weights", [*ENCODERS, *LAYOUTS]),
    ],
)
def test_list_names_everything_and_writes_json(what, names, capsys, tmp_path):
    assert cli.main(["list", what, "--json", str(tmp_path / "x.json")]) == 0
    out = capsys.readouterr().out
    listed = [row["name"] for row in json.loads((tmp_path / "x.json").read_text())]
    assert set(names) <= set(listed)
    assert all(name in out for name in names)


@pytest.mark.parametrize("args", [["--help"], *(["list", what] for what in cli.LISTS)])
def test_help_and_lists_import_nothing_heavy(args):
    code = (
        "import sys; from nolabel.cli import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'timm', 'numpy.linalg', 'sklearn'} & set(sys.modules) "
        "- {'numpy.linalg'}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "args",
    [
        ["pretrain", "dinoo", "--data", "creatures"], ["ablate", "dinoo", "--data", "creatures"],
        ["plan", "--method", "dinoo"], ["bench", "step", "--method", "dinoo"],
        ["bench", "data", "--data", "creatures", "--recipe", "dinoo"],
        ["scan", "--data", "creatures", "--method", "dinoo"], ["demo", "--method", "dinoo"],
    ],
)  # fmt: skip
def test_a_misspelt_method_is_answered_without_torch(args):
    """And before any image is read."""
    code = (
        "import sys; from nolabel.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "Did you mean 'dino'" in done.stderr, done.stderr


def test_list_alone_lists_everything(capsys, tmp_path):
    assert cli.main(["list", "--json", str(tmp_path / "all.json")]) == 0
    out = capsys.readouterr().out
    assert set(json.loads((tmp_path / "all.json").read_text())) == set(cli.LISTS)
    assert all(name in out for name in [*METHODS, *PICTURES, *PROTOCOLS, "WEIGHTS"])


def test_help_before_a_verb_is_help_after_it(capsys):
    for words in (["pretrain"], ["list"], ["show"]):
        assert fails(capsys, 0, "help", *words) == fails(capsys, 0, *words, "--help")
    assert "Did you mean 'pretrain'" in fails(capsys, 2, "help", "pretrian")


def test_options_of_the_optimiser_need_no_prefix():
    for line in (["--lr", "0.1"], ["--lr=0.1"], ["--optim.lr", "0.1"]):
        assert read_flags("dino", line).explicit.optim == {"lr": 0.1}
    assert read_flags("mocov3", ["--no-decay-all"]).explicit.optim == {"decay_all": False}


def test_a_pipe_that_closes_early_gives_no_traceback():
    command = [sys.executable, "-c", "import sys, nolabel.cli as c; sys.exit(c.main(['--help']))"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()  # before the first word, as `| head -0` would
    printed = child.stderr.read().decode()
    child.wait(60)
    assert printed == "", printed


def test_every_verb_is_a_function_with_a_page_of_help():
    other = {"list": None, "import": "import_checkpoint"}  # what a keyword and a type are called
    for verb in cli.VERBS:
        name = other.get(verb, verb)
        if name:
            function = getattr(nl, name)
            assert inspect.isfunction(function) and name in dir(nl)
            assert "Args:" in (inspect.getdoc(function) or ""), name


def test_importing_the_package_imports_nothing_heavy():
    code = "import nolabel, sys; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("method", list(METHODS))
def test_help_of_a_method_lists_its_own_options(method, capsys):
    from nolabel import methods

    text = fails(capsys, 0, "pretrain", method, "--help-all")
    import dataclasses

    for field in dataclasses.fields(methods.load(method).Options):
        assert f"--{field.name.replace('_', '-')}" in text or f"no-{field.name}" in text
    few = fails(capsys, 0, "pretrain", method, "--help")
    for flag in ("--data", "--minutes", "--batch-size", "--probe", "--optim.lr", "--dry-run"):
        assert flag in text and flag in few
    assert len(few.splitlines()) < 75


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_help(verb, capsys):
    assert fails(capsys, 0, verb, "--help")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pretrian"], "Did you mean 'pretrain'"),
        (["pretrain"], "needs a METHOD"),
        (["pretrain", "dinoo", "--data", "creatures"], "Did you mean 'dino'"),
        (["pretrain", "dino", "--data", "creatures", "--teacher-momentun", ".9"],
         "--teacher-momentum"),
        (["pretrain", "dino", "--data", "creatures", "--backbone", "vit_nan"], "vit_nano"),
        (["pretrain", "dino", "--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["pretrain", "dino"], "--data"),
        (["pretrain", "dino", "--data", "creatures", "--steps", "5", "--epochs", "2"],
         "--steps"),
        (["pretrain", "dino", "--data", "creatures", "--steps", "0"], "above 0"),
        (["pretrain", "dino", "--data", "digits", "--batch-size", "9999"], "1438 images"),
        (["pretrain", "mae", "--data", "creatures", "--backbone", "resnet18"], "Use a ViT"),
        (["pretrain", "dino", "--data", "creatures", "--image-size", "30", "--patch-size", "8"],
         "--image-size 24 or 32"),
        (["pretrain", "dino", "--data", "creatures", "--local-size", "15"], "Use 16 px"),
        (["pretrain", "simclr", "--data", "creatures", "--image-size", "16", "--patch-size",
          "32"], "patches of 32"),
        (["pretrain", "none.py:X", "--data", "creatures"], "No such file"),
        (["pretrain", "dino", "--data", "creatures", "--recipe", "papr"], "'paper'"),
        (["pretrain", "dino", "--data", "creatures", "--device", "gpu"], "cuda"),
        (["evaluate", "knm", "--encoder", "pixels", "--train", "digits"], "'knn'"),
        (["evaluate", "knn", "--encoder", "nothing_here", "--train", "digits"], "nothing_here"),
        (["show", "attentions", "--encoder", "x", "--data", "digits"], "'attention'"),
        (["show", "attention", "--encoder", "random:resnet_nano", "--data", "digits"],
         "Use a ViT"),
        (["show", "reconstruct", "--encoder", "random:vit_pico", "--data", "digits"],
         "folder of a run"),
        (["resume", "/nowhere"], "holds no run"),
        (["report", "/nowhere"], "holds no run"),
        (["list", "method"], "'methods'"),
    ],
)  # fmt: skip
def test_wrong_use_gets_one_clear_message_and_code_2(args, message, capsys):
    assert message in fails(capsys, 2, *args)


def test_a_folder_without_images_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("none here")
    text = fails(capsys, 1, "pretrain", "simclr", "--data", str(tmp_path))
    assert "image" in text


def test_labels_of_one_class_are_refused(tmp_path, capsys):
    (tmp_path / "only").mkdir()
    for i in range(4):
        Image.new("RGB", (32, 32), (i, i, i)).save(tmp_path / "only" / f"{i}.png")
    text = fails(
        capsys, 1, "evaluate", "knn", "--encoder", "pixels", "--train", str(tmp_path),
    )  # fmt: skip
    assert "class" in text


def test_a_damaged_encoder_file_is_refused(tmp_path, capsys, tiny_run):
    run = tiny_run()
    file = run.folder / "encoder.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-20] ^= 1
    file.write_bytes(raw)
    text = fails(capsys, 1, "evaluate", "knn", "--encoder", str(file), "--train", "digits")
    assert "encoder.safetensors" in text


def test_a_configuration_with_an_unknown_key_is_refused(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("settings:\n  batch_sise: 4\n")
    text = fails(capsys, 2, "pretrain", "dino", "--data", "creatures", "--config", str(file))
    assert "batch_size" in text


def test_pretrain_evaluate_compare_show_report_and_resume_work_in_a_row(photos, tmp_path, capsys):
    out = tmp_path / "run"
    args = ["pretrain", "mae", "--data", str(photos), "--out", str(out), *SHORT,
            "--decoder-dim", "32", "--decoder-heads", "2",
            "--json", str(tmp_path / "p.json")]  # fmt: skip
    assert cli.main(args) == 0
    assert json.loads((tmp_path / "p.json").read_text())["settings"]["steps"] == 2
    assert cli.main(["resume", str(out)]) == 0
    learning = [n for n, p in PROTOCOLS.items() if p.learns and n != "finetune"]
    for protocol in learning:
        file = tmp_path / f"{protocol}.json"
        assert cli.main(["evaluate", protocol, "--encoder", str(out), "--train", str(photos),
                         "--json", str(file)]) == 0  # fmt: skip
        raw = json.loads(file.read_text())
        assert {"protocol", "encoder", "train", "test", "rows", "best"} <= raw.keys()
        shares = [r for r in raw["rows"] if r["metric"].startswith("top")]
        assert shares and all(0 <= r["low"] <= r["value"] <= r["high"] <= 1 for r in shares)
    assert cli.main(["compare", "pixels", f"random:{out}", str(out), "--train", str(photos),
                     "--json", str(tmp_path / "c.json")]) == 0  # fmt: skip
    encoders = {r["encoder"] for r in json.loads((tmp_path / "c.json").read_text())["rows"]}
    assert len(encoders) == 3
    for picture in PICTURES.values():
        place = tmp_path / picture.name
        few = ["--steps", "2"] if "steps" in {o.name for o in options_of(picture.name)} else []
        args = ["show", picture.name, "--encoder", str(out), "--data", str(photos), "--count", "3",
                "--out", str(place), *few]  # fmt: skip
        if (
            picture.of_text or picture.name == "prototypes"
        ):  # the documentation's commands draw them
            words = ["--words", "dog"] if picture.name in ("ask", "paint", "bias") else []
            capsys.readouterr()
            assert cli.main([*args, *words]) == 2
            printed = capsys.readouterr().err
            assert ("no text tower" if picture.of_text else "no prototypes") in printed
            continue
        assert cli.main(args) == 0
        drawn = [Image.open(p) for p in place.glob("*.png")]
        assert drawn
        assert all(len(p.convert("RGB").getcolors(1 << 20)) > 10 for p in drawn)
        assert (place / "numbers.json").exists()
    assert cli.main(["report", str(out)]) == 0
    assert "<html" in (out / "report.html").read_text()


def test_dry_run_prints_the_resolved_run_and_trains_nothing(photos, tmp_path, capsys):
    out = tmp_path / "never"
    args = ["pretrain", "dino", "--data", str(photos), "--out", str(out), *SHORT, "--dry-run"]
    assert cli.main(args) == 0
    text = capsys.readouterr().out
    assert not out.exists()
    for expected in (
        "48 images",
        "vit_pico",
        "2 steps",
        "global: 2 x 32",
        "MB",
        "teacher_momentum",
    ):
        assert expected in text


def test_a_users_own_method_trains_with_its_own_options(photos, tmp_path, capsys):
    page = Path(__file__).parents[2] / "docs" / "own-method.md"
    code = page.read_text().split("```python\n# mine.py\n")[1].split("```")[0]
    file = tmp_path / "mine.py"
    file.write_text(code)
    assert "--weight" in fails(capsys, 0, "pretrain", f"{file}:Mine", "--help")
    out = tmp_path / "mine"
    args = ["pretrain", f"{file}:Mine", "--data", str(photos), "--out", str(out), *SHORT]
    assert cli.main([*args, "--weight", "2"]) == 0
    assert (out / "encoder.safetensors").exists()
    assert cli.main(["resume", str(out)]) == 0


def test_the_demo_ends_with_numbers_pictures_and_a_report(few_creatures, tmp_path, capsys):
    from nolabel.tools.demo import demo

    numbers = demo(tmp_path / "demo", steps=2, batch_size=16, precision="fp32")
    assert set(numbers["knn"]) == {"pixels", "random", "trained"}
    assert all(0 < v < 1 for v in numbers["knn"].values())
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("data:image/png") >= 2
    assert "http" not in page.replace("http-equiv", "")


def test_bench_data_writes_rates_and_stages(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.new("RGB", (64, 48), (i, 0, 0)).save(tmp_path / "photos" / f"{i}.jpg")
    for workers in ("0", "1"):
        out = tmp_path / f"{workers}.json"
        assert (
            cli.main(
                ["bench", "data", "--data", str(tmp_path / "photos"), "--image-size", "32",
                 "--seconds", "0.2", "--workers", workers, "--json", str(out)]
            )
            == 0
        )  # fmt: skip
        found = json.loads(out.read_text())
        assert found["images_per_second"] >= found["images_per_second_per_core"] > 0
        assert set(found["stages"]) >= {"read", "decode", "crop", "colour", "blur", "collate"}
        assert abs(sum(s["share"] for s in found["stages"].values()) - 1) < 1e-6
        assert "end to end" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["bench"], "needs a WHAT"),
        (["bench", "stp"], "'stp'"),
        (["bench", "data", "--data", "creatures", "--workers", "-1"], "--workers is -1"),
        (["bench", "data", "--data", "creatures", "--recipe", "dinno"], "dino"),
        (
            ["bench", "embed", "--data", "digits", "--encoder", "pixels", "--seconds", "0"],
            "above 0",
        ),
        (["bench", "embed", "--data", "digits", "--encoder", "pixels", "--precision", "f"], "bf16"),
    ],
)
def test_bench_says_what_is_wrong(flags, says, capsys):
    assert says in fails(capsys, 2, *flags)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs a system that reads ahead")
def test_resume_has_the_newest_checkpoint_alone_read_ahead(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda f, *_: asked.append(os.readlink(f"/proc/self/fd/{f}"))
    )
    cli_runs.read_ahead(tmp_path)  # nothing there: no error, which is for what opens it
    place = tmp_path / "checkpoints"
    place.mkdir()
    for step, when in ((9, 100), (10, 300), (4, 200)):
        (place / f"step-{step:08d}.ckpt").write_bytes(b"x")
        os.utime(place / f"step-{step:08d}.ckpt", (when, when))
    cli_runs.read_ahead(tmp_path)
    assert asked == [str(place / "step-00000010.ckpt")]
