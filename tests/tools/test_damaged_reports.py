"""Whatever lies in a run's folder, its report names what is damaged and shows the rest."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nolabel as nl
from nolabel.errors import FileDamaged, NolabelError
from nolabel.tools.report import build_report
from nolabel.tools.show import draw_missing

RUN = Path(__file__).parents[1] / "fixtures" / "runs_3f745f9" / "simclr-resnet"
ROW = {"encoder": "run", "setting": "k=20", "metric": "top1", "value": 0.5, "low": 0.4, "high": 0.6}
BINARY = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path):
    """A finished run with a comparison and a picture, without a film."""
    folder = tmp_path / "run"
    shutil.copytree(RUN, folder, ignore=shutil.ignore_patterns("checkpoints", "expected*", "film"))
    (folder / "comparison.json").write_text(json.dumps({"run": "run", "rows": [ROW]}))
    (folder / "pictures").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "pictures" / "pca.png")
    (folder / "pictures" / "numbers.json").write_text(json.dumps({"pca": {"caption": "Seen."}}))
    return folder


def with_film(folder):
    shutil.copytree(RUN / "film", folder / "film")


def text(name, content):
    def change(folder):
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def folder_instead(name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def pipe_instead(name):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def huge(name, size=2**31):
    """A file of so many zeros, which takes no room."""

    def change(folder):
        with open(folder / name, "wb") as file:
            file.truncate(size)

    return change


def line(**values):
    """A last line of metrics.jsonl that is wrong."""

    def change(folder):
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 9, "loss": 1.0, **values}) + "\n")

    return change


def rows(*made):
    return text("comparison.json", json.dumps({"run": "run", "rows": list(made)}))


def film(name, **arrays):
    def change(folder):
        with_film(folder)
        np.savez(folder / "film" / name, **arrays)

    return change


def film_bytes(name, content):
    def change(folder):
        with_film(folder)
        (folder / "film" / name).write_bytes(content)

    return change


def _bomb() -> bytes:
    """An .npz of some kilobytes that claims a gigabyte of pixels."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": "|u1", "fortran_order": False, "shape": (1, 1 << 14, 1 << 14, 1)}
        )
        archive.writestr("pixels.npy", head.getvalue() + bytes(1 << 28))
    return out.getvalue()


LAST = "step-000000008.npz"
F16 = np.float16
DAMAGES = {
    "config.yaml is binary": (text("config.yaml", BINARY), "config.yaml"),
    "config.yaml is empty": (text("config.yaml", ""), "config.yaml"),
    "config.yaml is a list": (text("config.yaml", "- a\n- b\n"), "config.yaml"),
    "config.yaml is cut": (text("config.yaml", "method: simclr\nsettings:\n  data: ["), "config"),
    "config.yaml has other types": (
        text("config.yaml", "method: simclr\nsettings: {steps: x, data: [1]}\n"), "config.yaml"),
    "config.yaml has an unknown method": (text("config.yaml", "method: [simclr]\n"), "config.yaml"),
    "config.yaml is huge": (huge("config.yaml"), "config.yaml"),
    "metrics are binary": (text("metrics.jsonl", BINARY), "metrics.jsonl"),
    "metrics are a folder": (folder_instead("metrics.jsonl"), "metrics.jsonl"),
    "metrics are a pipe": (pipe_instead("metrics.jsonl"), "metrics.jsonl"),
    "metrics are huge": (huge("metrics.jsonl"), "metrics.jsonl"),
    "metrics are cut": (text("metrics.jsonl", '{"step": 1, "loss": 2.0}\n{"step": 2, "lo'),
                        "metrics.jsonl (1 of 2 lines)"),
    "metrics are nested": (text("metrics.jsonl", "[" * 100_000), "metrics.jsonl (1 of 1 lines)"),
    "a loss is a text": (line(loss="x"), "metrics.jsonl (1 of "),
    "a loss is a list": (line(loss=[1]), "metrics.jsonl (1 of "),
    "a number is out of range": (line(gradient_norm=1e300), "metrics.jsonl (1 of "),
    "a step is a text": (line(step="9"), "metrics.jsonl (1 of "),
    "a step is huge": (line(step=10**200), "metrics.jsonl (1 of "),
    "a resumption is a text": (line(resumed_at="x"), "metrics.jsonl (1 of "),
    "the tournament is a list": (text("tournament.json", "[]"), "tournament.json"),
    "the comparison is binary": (text("comparison.json", BINARY), "comparison.json"),
    "the comparison is a list": (text("comparison.json", "[]"), "comparison.json"),
    "the comparison is a folder": (folder_instead("comparison.json"), "comparison.json"),
    "the comparison has no rows": (text("comparison.json", "{}"), "comparison.json"),
    "rows are numbers": (rows(1, 2), "comparison.json (2 of 2 rows)"),
    "a value is a text": (rows({**ROW, "value": "x"}), "comparison.json (1 of 1 rows)"),
    "a value is huge": (rows({**ROW, "value": 1e300}), "comparison.json (1 of 1 rows)"),
    "a limit is missing": (rows({**ROW, "high": None}), "comparison.json (1 of 1 rows)"),
    "an encoder is a list": (rows({**ROW, "encoder": [1]}), "comparison.json (1 of 1 rows)"),
    "a chance is a text": (rows(ROW, {**ROW, "chance": "x"}), "comparison.json (1 of 2 rows)"),
    "the environment is binary": (text("environment.json", BINARY), "environment.json"),
    "the environment is a folder": (folder_instead("environment.json"), "environment.json"),
    "skipped files are binary": (text("skipped.jsonl", BINARY), "skipped.jsonl"),
    "skipped files are a pipe": (pipe_instead("skipped.jsonl"), "skipped.jsonl"),
    "a picture is empty": (text("pictures/pca.png", ""), "Damaged, not shown: pca.png"),
    "a picture is cut": (text("pictures/pca.png", b"\x89PNG\r\n\x1a\n" + b"x" * 9), "pca.png"),
    "a picture is a folder": (folder_instead("pictures/pca.png"), "Damaged, not shown: pca.png"),
    "captions are a list": (text("pictures/numbers.json", "[]"), ""),
    "captions are binary": (text("pictures/numbers.json", BINARY), ""),
    "a caption is a number": (text("pictures/numbers.json", '{"pca": 5}'), ""),
    "the film is binary": (film_bytes(LAST, BINARY), "film"),
    "the film is empty": (film_bytes("images.npz", b""), "film"),
    "the film is no film": (film(LAST, more=np.ones(3)), "film"),
    "the film has other shapes": (film(LAST, patches=np.ones((4, 2), F16)), "film"),
    "the film has fewer images": (film(LAST, patches=np.ones((1, 2, 2, 8), F16)), "film"),
    "the film is not finite": (film(LAST, patches=np.full((4, 2, 2, 8), np.nan, F16)), "film"),
    "the film is of texts": (film(LAST, patches=np.full((4, 2, 2, 8), "x")), "film"),
    "the film has no pixels": (film("images.npz", pixels=np.ones((0, 8, 8, 3), np.uint8)), "film"),
    "the film's pixels are floats": (film("images.npz", pixels=np.ones((4, 8, 8, 3))), "film"),
    "the film is a bomb": (film_bytes("images.npz", _bomb()), "film"),
    "the film has another number": (film_bytes("step-x.npz", BINARY), "film"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_a_report_names_what_is_damaged_and_shows_the_rest(what, folder):
    change, said = DAMAGES[what]
    change(folder)
    began = time.process_time()
    page = build_report(folder).read_text()
    assert time.process_time() - began < 30
    assert said in page
    assert ("Damaged" in page) == bool(said)
    if "comparison" not in said:
        assert "50.0%" in page
    if "metrics" not in said:
        assert "Loss: " in page
    if "pca" not in said:
        assert "<figcaption>" in page


def test_an_undamaged_folder_is_not_called_damaged(folder):
    with_film(folder)
    page = build_report(folder).read_text()
    assert "Damaged" not in page and "Features during training" in page and "Seen." in page


@pytest.mark.parametrize("change", [folder_instead, pipe_instead])
def test_a_report_of_a_folder_that_is_no_run_is_refused_in_words(change, folder):
    change("config.yaml")(folder)
    with pytest.raises(NolabelError, match="holds no run"):
        build_report(folder)


@pytest.mark.parametrize("content", [b"", BINARY, b"method: [simclr]\n", b"method: simclr\n"])
def test_pictures_of_a_damaged_run_are_left_out_in_words(content, folder):
    (folder / "config.yaml").write_bytes(content)
    assert all(isinstance(line, str) for line in draw_missing(folder))


def test_pictures_that_are_damaged_or_of_another_encoder_are_drawn_again(folder, monkeypatch):
    from nolabel.tools import show
    from nolabel.tools.report.parts import encoder_checksum

    pictures = folder / "pictures"
    for name in ("neighbours", "tsne", "attention"):
        shutil.copy(pictures / "pca.png", pictures / f"{name}.png")
    (pictures / "neighbours.png").write_bytes(b"")
    (pictures / "numbers.json").write_text(json.dumps({
        "pca": {"caption": "Old.", "encoder": "0" * 64},
        "tsne": {"caption": "New.", "encoder": encoder_checksum(folder)},
    }))  # fmt: skip
    assert show._drawn(folder) == {"tsne", "attention"}  # older versions kept no checksum
    page = build_report(folder).read_text()
    assert "Drawn of another or an earlier encoder. Old." in page
    assert page.count("earlier encoder") == 2  # its caption and its text for screen readers


def test_a_reconstruction_without_its_decoder_says_what_is_missing(tiny_run, photos):
    """The decoder is in the checkpoints alone: gone, half written, or that of another run."""
    folder = tiny_run("autoencoder", steps=1).folder
    (own,) = (folder / "checkpoints").glob("*.ckpt")
    (foreign,) = (RUN / "checkpoints").glob("*.ckpt")
    half = own.read_bytes()[: own.stat().st_size // 2]
    own.unlink()
    for name, content, said in (
        ("", b"", "holds no checkpoint"),
        (own.name, b"", "damaged"),
        (own.name, half, "damaged"),
        (foreign.name, foreign.read_bytes(), "does not fit the run: missing: .* and [0-9]+ more"),
    ):
        if name:
            (own.parent / name).write_bytes(content)
        with pytest.raises(FileDamaged, match=said) as caught:
            nl.show("reconstruct", folder, data=photos, count=2)
        message = str(caught.value)
        assert "Heads and decoders" in message
        assert len(message) < 1000
        assert "Using the checkpoint before it" not in message
