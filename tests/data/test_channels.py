"""Runs on images of other than three channels: trained, saved, resumed, evaluated, shown."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import nolabel
from nolabel import cli
from nolabel.data.sources.arrays import Arrays
from nolabel.encoders import load
from nolabel.errors import UsageError

SHORT = ["--steps", "3", "--batch-size", "8", "--precision", "fp32", "--workers", "0",
         "--backbone", "vit_pico", "--image-size", "32", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 16-bit images with five channels."""
    where = tmp_path_factory.mktemp("five")
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        (where / kind).mkdir()
        for i in range(12):
            level = 3000 if kind == "a" else 9000
            np.save(where / kind / f"{i}.npy", rng.integers(0, level, (40, 36, 5)).astype("u2"))
    return where


@pytest.mark.parametrize("method", ["dino", "mae", "simclr"])
def test_five_channels_of_sixteen_bits_from_training_to_pictures(method, folder, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--data", str(folder), "--channels", "5", "--out", str(run)]
    assert cli.main(["pretrain", method, *flags, *SHORT]) == 0
    encoder = load(run)
    assert encoder.channels == 5 and len(encoder.mean) == 5
    assert all(0.02 < m < 0.12 for m in encoder.mean)  # measured, not ImageNet's
    image = np.load(folder / "a" / "0.npy")
    z = encoder.embed([folder / "a" / "0.npy", image])
    assert z.shape == (2, encoder.dim) and torch.allclose(z[0], z[1])
    out = tmp_path / "knn.json"
    train = ["--train", str(folder), "--json", str(out)]
    assert cli.main(["evaluate", "knn", "--encoder", str(run), *train]) == 0
    assert json.loads(out.read_text())["best"]["value"] >= 0.5
    assert cli.main(["compare", str(run), "pixels", f"random:{run}", "--train", str(folder)]) == 0
    what = {"mae": "reconstruct", "dino": "pca", "simclr": "views"}[method]
    pictures = ["--encoder", str(run), "--data", str(folder), "--out", str(tmp_path / "pictures")]
    assert cli.main(["show", what, *pictures]) == 0
    assert cli.main(["resume", str(run)]) == 0
    capsys.readouterr()


def test_grey_sets_can_be_learnt_as_one_channel(tmp_path):
    run = nolabel.pretrain(
        "simclr", data="digits", channels=1, steps=2, batch_size=8, image_size=32, device="cpu",
        backbone="resnet_nano", precision="fp32", out=str(tmp_path / "run"),
    )  # fmt: skip
    encoder = load(run.folder)
    assert encoder.channels == 1
    assert encoder.embed(np.zeros((3, 8, 8, 1), np.uint8)).shape[0] == 3


def test_a_source_or_a_list_of_ones_own_tells_its_channels(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 65536, (40, 36, 2)).astype(np.uint16) for _ in range(8)]
    short = {"steps": 1, "batch_size": 8, "image_size": 32, "device": "cpu",
             "backbone": "resnet_nano", "precision": "fp32", "quiet": True}  # fmt: skip
    for name, data, more in (
        ("list", arrays, {"channels": 2}),
        ("source", Arrays("mine", np.stack(arrays), channels=2), {}),
    ):
        run = nolabel.pretrain("simclr", data=data, out=str(tmp_path / name), **more, **short)
        assert run.settings.channels == 2 and len(run.settings.mean) == 2
        assert load(run.folder).embed(arrays).shape[0] == 8


def test_mismatched_channels_are_refused(folder, tmp_path, capsys):
    def says(*args):
        assert cli.main(["pretrain", "simclr", *args, "--out", str(tmp_path / "x"), *SHORT]) == 2
        return capsys.readouterr().err

    assert "--channels is 0" in says("--data", str(folder), "--channels", "0")
    assert "belong together" in says("--data", str(folder), "--mean", "0.1")
    both = ["--mean", "0.1", "--std", "0.2"]
    assert "each of 5 channels" in says("--data", str(folder), "--channels", "5", *both)
    grey = tmp_path / "grey"
    nolabel.pretrain(
        "simclr", data="digits", channels=1, steps=1, batch_size=8, image_size=32, device="cpu",
        backbone="vit_pico", precision="fp32", out=str(grey),
    )  # fmt: skip
    assert "--channels 1" in says("--data", str(folder), "--channels", "5", "--init", str(grey))
    with pytest.raises(UsageError, match="different numbers of channels"):
        nolabel.compare([str(grey), "random:vit_pico", load("random:vit_pico")], train="digits")


def test_scan_measures_each_channel(folder, tmp_path):
    out = tmp_path / "scan.json"
    flags = ["--data", str(folder), "--channels", "5", "--out", str(tmp_path / "s")]
    assert cli.main(["scan", *flags, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    pixels = np.concatenate([np.load(p).reshape(-1, 5) for p in folder.rglob("*.npy")]) / 65535
    assert np.allclose(found["mean"], pixels.mean(0), atol=1e-4)
    assert np.allclose(found["std"], pixels.std(0), atol=1e-4)
    assert found["recipe"]["command"].endswith("--channels 5")
    assert np.asarray(Image.open(tmp_path / "s" / "contact-sheet.png")).max() == 255
