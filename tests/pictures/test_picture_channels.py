"""Every picture of an encoder is drawn for images of any number of channels."""

from __future__ import annotations

import numpy as np
import pytest

import nolabel as nl
from nolabel.cli import main
from nolabel.data.sources.arrays import Arrays
from nolabel.encoders import load
from nolabel.pictures import PICTURES, options_of
from nolabel.tools.report import build_report
from nolabel.tools.show import draw_missing, show

NAMES = [n for n, info in PICTURES.items() if not (info.of_run or info.of_text)]


@pytest.fixture(scope="module", params=[1, 4, 5])
def seen(request):
    """An encoder, and a labelled set of images of its channels."""
    channels = request.param
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, channels)).astype(np.uint8)
    labels = np.arange(8) % 2
    source = Arrays("noise", pixels, labels=labels, classes=("x", "y"), channels=channels)
    return load("random:vit_pico", image_size=16, channels=channels, device="cpu"), source


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_drawn_of_any_channels(name, seen):
    encoder, source = seen
    options = {"steps": 1} if "steps" in {o.name for o in options_of(name)} else {}
    pictures = show(name, encoder, source if PICTURES[name].data else None, count=2, **options)
    assert len(pictures)
    for picture in pictures:
        assert picture.image.dtype == np.uint8 and picture.image.shape[2] == 3


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (5, np.uint16)])
def test_a_run_its_report_and_a_search_are_drawn_of_any_channels(channels, dtype, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        high = np.iinfo(dtype).max
        np.save(path, rng.integers(0, high, (16, 16, channels)).astype(dtype))
    data, run = str(tmp_path / "data"), tmp_path / "run"
    nl.pretrain(
        "mae", data=data, channels=channels, backbone="vit_pico", image_size=16, steps=1,
        batch_size=4, workers=0, device="cpu", precision="fp32", out=run, quiet=True,
    )  # fmt: skip
    assert draw_missing(run) == []
    names = {p.stem.partition("-")[0] for p in (run / "pictures").glob("*.png")}
    assert names >= {"attention", "pca", "neighbours", "tsne", "reconstruct"}
    assert build_report(run).stat().st_size > 20_000
    assert len(show("views", run, data, count=2)) == 1
    index, query = str(tmp_path / "index.npy"), str(tmp_path / "data" / "a" / "0.npy")
    assert main(["embed", "--encoder", str(run), "--data", data, "--out", index]) == 0
    found = ["--index", index, "--encoder", str(run), "--query", query]
    assert main(["search", *found, "--out", str(tmp_path / "found")]) == 0
    assert (tmp_path / "found" / "search.png").is_file()
