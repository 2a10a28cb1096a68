"""A file that cannot be read changes no number, and every protocol says that it was left out."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

import nolabel as nl
from nolabel.protocols import all as every
from nolabel.protocols.run import PROTOCOLS

RNG = np.random.default_rng(0)
SMALL = {
    "knn": {},
    "linear": {"epochs": 3},
    "linear, blocks": {"epochs": 2, "blocks": (1, 2), "augmented": 2},
    "fewshot": {"k": (2,), "draws": 3},
    "finetune": {"epochs": 1},
    "robustness": {"corruptions": ("noise",), "strengths": (3,), "epochs": 2},
}
WITHOUT_TRAIN = {
    "labelfree": {"views": 2},
    "labelfree, some": {"views": 2, "images": 40},
    "retrieval": {},
    "retrieval, longest": {"longest": 16},
    "copies": {"side": 16},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Train and test, and the same with junk that sorts first, in the middle and last."""
    root = tmp_path_factory.mktemp("junk")
    for part, count in (("train", 24), ("test", 24)):
        for j, label in enumerate("abc"):
            (root / "clean" / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = RNG.integers(0, 150 + 40 * j, (12, 12, 3), np.uint8)
                Image.fromarray(pixels).save(root / "clean" / part / label / f"{i:02d}.png")
    shutil.copytree(root / "clean", root / "junk")
    for part in ("train", "test"):
        for name in ("a/000.png", "a/001.png", "b/07b.png", "c/zz.png"):
            (root / "junk" / part / name).write_text("junk")
        whole = (root / "clean" / part / "a" / "03.png").read_bytes()
        (root / "junk" / part / "b" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return root


def judged(name, folder, both=True):
    """The values of a protocol's rows, and its notes."""
    options = (SMALL | WITHOUT_TRAIN)[name]
    given = {"test": str(folder / "test")}
    if name in SMALL:
        given = {"train": str(folder / "train"), **(given if both else {})}
    report = nl.evaluate(name.partition(",")[0], "random:vit_pico", **given, **options)
    return [(r["setting"], r["metric"], r["value"]) for r in report.rows], report.notes


@pytest.mark.parametrize("name", [*SMALL, *WITHOUT_TRAIN])
def test_junk_changes_no_number_and_is_told(folders, name):
    clean, notes = judged(name, folders / "clean")
    assert not any("could not be read" in n for n in notes)
    found, notes = judged(name, folders / "junk")
    assert found == clean
    told = [n for n in notes if "5 image(s)" in n and "could not be read" in n]
    assert len(told) == (2 if name in SMALL else 1)


@pytest.mark.parametrize("name", ["knn", "finetune"])
def test_junk_does_not_change_what_is_split_off(folders, name):
    clean = judged(name, folders / "clean", both=False)[0]
    found, notes = judged(name, folders / "junk", both=False)
    assert found == clean and sum("5 image(s)" in n for n in notes) == 1


def test_tables_of_several_protocols_and_encoders_tell_it_too(folders, monkeypatch):
    monkeypatch.setattr(every, "PROTOCOLS", {n: PROTOCOLS[n] for n in ("knn", "retrieval")})
    train, test = (str(folders / "junk" / part) for part in ("train", "test"))
    text = str(nl.compare(["pixels", "random:vit_pico"], train=train, test=test))
    assert text.count("could not be read") == 2
    alone = nl.compare(["pixels"], test=test, protocols=["retrieval"])
    assert str(alone).count("could not be read") == 1
    transfer = nl.evaluate("transfer", "pixels", test=[train], protocols=("knn",))
    assert sum("could not be read" in n for n in transfer.notes) == 1
    found = every.evaluate_all("pixels", train, test)
    assert all(any("could not be read" in n for n in r.notes) for r in found.reports)
