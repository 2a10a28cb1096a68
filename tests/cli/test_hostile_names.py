"""Names of files and classes are text: a terminal shows them and never obeys them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nolabel.cli import main
from nolabel.errors import BadImage, printable, visible

ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202egnp"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("names")
    noise = np.random.default_rng(0)
    for name in (f"one{ESCAPES}", "two"):
        (root / "set" / name).mkdir(parents=True)
        for i in range(8):
            pixels = noise.integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(root / "set" / name / f"{i}{ESCAPES}.png")
        (root / "set" / name / f"broken\n{ESCAPES}.png").write_bytes(b"no image")
    return root


@pytest.mark.parametrize(
    "command",
    [
        "scan --data set",
        "embed --encoder random:vit_pico --data set --out e.npy",
        "evaluate labelfree --encoder random:vit_pico --test set",
        "evaluate knn --encoder random:vit_pico --train set",
        "compare random:vit_pico pixels --train set",
        "show neighbours --encoder random:vit_pico --data set --out s",
        "pack --data set --out p",
        "pretrain simclr --data set --backbone vit_pico --steps 2 --batch-size 4 --out r",
        "bench embed --encoder random:vit_pico --data set --seconds 0.1",
        "embed --encoder random:vit_pico --data missing\x1b[2J --out f.npy",
    ],
)
def test_no_verb_prints_a_control_character(
    folder: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(folder)
    code = main(command.split(" "))
    for text in capsys.readouterr():
        assert visible(text) == text, ascii(text)
    assert code in (0, 2)


def test_what_a_terminal_obeys_is_escaped_and_the_rest_stays():
    assert visible("café\t日本\n🦊") == "café\t日本\n🦊"
    assert visible("a\x1b[31m\r\x07\x9b") == r"a\x1b[31m\r\x07\x9b"
    assert visible("\u202egpj.exe\u2066") == r"\u202egpj.exe\u2066"
    assert visible("\udcff") == r"\udcff"
    assert printable("two\nlines\there") == r"two\nlines\there"
    assert str(BadImage("a\nb\x1b", "what\x07")) == r"a\nb\x1b: what\x07"
