"""`nolabel pretrain METHOD --help` shows the values that a run then takes."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from nolabel import cli, methods
from nolabel.cli import help as page
from nolabel.config import Settings
from nolabel.protocols.run import PROTOCOLS
from nolabel.types import Optim


@pytest.fixture
def wide(monkeypatch):
    """A screen on which every option has one line."""
    monkeypatch.setenv("COLUMNS", "400")


def printed(capsys, *args):
    """Option -> its values, a column each, read from the text."""
    assert cli.main(["pretrain", *args]) == 0
    lines = capsys.readouterr().out.splitlines()
    out = {}
    for line in lines:
        if found := re.match(r"  --([\w.-]+)(?: \S+)*?  +(\S.*)", line):
            out[found[1].replace("-", "_")] = re.split(r"  +", found[2].rstrip())
    return out


def shown(value):
    """A value of a JSON file as the help prints it."""
    if value is None or value in ("", []):
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return " ".join(shown(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize(
    ("method", "network"),
    [("dino", "vit_pico"), ("simclr", "resnet_nano"), ("mae", "vit_nano"), ("barlow", "resnet18")],
)
def test_the_values_are_those_that_a_run_takes(method, network, photos, tmp_path, capsys, wide):
    """Both recipes, on the user's data; values that are measured first are shown as "measured"."""
    given = [method, "--data", str(photos), "--batch-size", "8", "--backbone", network,
             "--image-size", "32"]  # fmt: skip
    table = printed(capsys, *given, "--help-all")
    for column, recipe in enumerate(("auto", "paper")):
        file = tmp_path / f"{recipe}.json"
        assert cli.main(["pretrain", *given, "--recipe", recipe, "--dry-run",
                         "--json", str(file)]) == 0  # fmt: skip
        run = json.loads(file.read_text())
        taken = {
            **run["options"],
            **{"optim." + k: v for k, v in run["optim"].items()},
            **{k: v for k, v in run["settings"].items() if v not in (None, "auto")},
        }
        assert taken.keys() - table.keys() == set()
        for name, value in taken.items():
            assert table[name][column] == shown(value), name
        for name in ("precision", "workers"):
            assert table[name][column] == "measured"
            assert run["settings"][name] in (None, "auto")


def test_a_network_that_trial_steps_choose_is_not_named(photos, capsys, wide):
    table = printed(capsys, "simclr", "--data", str(photos), "--help-all")
    assert table["backbone"][0] == table["image_size"][0] == table["steps"][0] == "measured"
    assert table["minutes"][0] == "40"
    table = printed(capsys, "simclr", "--data", str(photos), "--epochs", "3", "--help-all")
    assert table["backbone"][0] == "resnet_nano" and table["minutes"][0] == "-"


def test_a_finished_run_took_what_the_help_said(photos, tmp_path, capsys, wide):
    given = ["simclr", "--data", str(photos), "--batch-size", "8", "--steps", "1", "--workers",
             "0", "--precision", "fp32", "--out", str(tmp_path / "run")]  # fmt: skip
    table = printed(capsys, *given, "--help-all")
    assert cli.main(["pretrain", *given, "--json", str(tmp_path / "run.json")]) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    for name, value in {**run["settings"], **run["options"]}.items():
        if name != "warm_heads":  # without --init they mean nothing
            assert table[name][0] == shown(value), name
    for name, value in run["optim"].items():
        assert table["optim." + name][0] == shown(value), name


def test_without_data_the_help_says_for_which_data_its_values_are(capsys, wide):
    assert cli.main(["pretrain", "dino", "--help"]) == 0
    text = capsys.readouterr().out
    assert "50,000 images" in text and "224 px" in text and "32 px" in text
    table = printed(capsys, "dino", "--help")
    assert table["prototypes"] == ["8192", "1024", "65536", "K, outputs of the head"]
    assert table["batch_size"][:3] == ["128", "64", "1024"]


def test_what_is_impossible_says_why(capsys, wide):
    assert cli.main(["pretrain", "simclr", "--data", "digits", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "paper: not possible here. Batch size 4096 is larger than the data" in text


@pytest.mark.parametrize("method", ["dino", "clip", "distill"])
def test_every_option_is_in_one_group_and_has_an_explanation(method):
    kind = methods.load(method)
    listed = [n for first, more in page.groups(kind).values() for n in (*first, *more)]
    classes = (Settings, kind.Options, page.VerbFlags)
    # A setting that is also an option of the method is listed once, as that.
    wanted = list({f.name: None for c in classes for f in dataclasses.fields(c)})
    wanted += ["optim." + f.name for f in dataclasses.fields(Optim)]
    assert sorted(listed) == sorted(wanted)
    for c in (Settings, kind.Options, page.VerbFlags, Optim):
        silent = [name for name, text in page.comments(c).items() if not text]
        assert not silent, silent


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_option_of_a_protocol_has_an_explanation_of_its_own(protocol, capsys, wide):
    """tyro takes a comment above a field for all fields down to the next blank line."""
    with pytest.raises(SystemExit):
        cli.main(["evaluate", protocol, "--help"])
    rows = re.findall(r"(\S.*?) \((?:default:|required)", capsys.readouterr().out)
    texts = [row.rpartition("  ")[2] for row in rows]
    assert len(texts) > 2 and len(set(texts)) == len(texts)
