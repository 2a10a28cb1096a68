"""A user's own source: a subclass with two methods, passed as an object or as a file."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import nolabel as nl
from nolabel.data.loader import make_loader
from nolabel.data.open import name_of_object, open_again, open_source, record_source
from nolabel.data.source import Source, Subset, prerender
from nolabel.data.split import split
from nolabel.data.text.captions import has_texts, texts_of
from nolabel.errors import BadImage, UsageError
from nolabel.types import Sample
from nolabel.views import FastViews, View, ViewPlan

CODE = """
import numpy as np
from nolabel.data.source import Source
from nolabel.types import Sample

class Mine(Source):
    def __len__(self):
        return 40
    def read(self, i):
        return Sample(image=np.full((32, 32, 3), i, np.uint8))

class Sized(Mine):
    def __init__(self, size):
        self.size = size

class Half(Source):
    def __len__(self):
        return 40
"""


class Plain(Source):
    """The minimum: only the abstract methods."""

    def __len__(self):
        return 12

    def read(self, i):
        if i == 3:
            raise BadImage(self.path(i), "broken")
        return Sample(image=np.full((4, 5, 3), i, np.uint8))


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("NOLABEL_STATE", str(tmp_path / "state"))
    path = tmp_path / "my_source.py"
    path.write_text(
        f"{CODE}# {tmp_path}\n"
    )  # unique content: files with the same hash are executed once
    return path


def test_two_methods_suffice_and_the_rest_has_defaults():
    source = open_source(Plain())
    assert (source.name, source.path(3), source.channels, source.block) == (
        "Plain", "Plain[3]", 3, 0,
    )  # fmt: skip
    assert source.labels is None and source.classes == () and source.label(0) is None
    assert source.groups is None and source.domains is None
    assert not (source.in_memory or source.supports_draft or source.has_files)
    assert not has_texts(source) and texts_of(source, [0, 5]) == (None, None)
    prerender(source)  # does nothing for sources that are not in memory
    for call in (source.images, source.read_bytes):
        with pytest.raises(TypeError, match="read\\(i\\)"):
            call(np.array([0]))


def test_optional_members_of_a_source_are_used():
    class Complete(Plain):
        labels, classes = np.arange(12) % 2, ("even", "odd")

        def read_text(self, i):
            if i == 5:
                raise OSError("gone")
            return None if i == 7 else f"number {i}"

    source = Complete()
    rest, part = split(source, 0.5)
    assert len(rest) == len(part) == 6 and set(part.labels) == {0, 1}
    assert texts_of(source, [4, 5, 7]) == ("number 4", None, None)
    assert Subset(source, [8, 4]).read_texts(np.array([1])) == ("number 4",)
    assert Subset(source, [8, 4]).read_text(0) == "number 8"


def test_objects_that_do_not_inherit_source_are_refused_with_a_hint():
    class Duck:
        name, labels, classes = "duck", None, ()

        def __len__(self):
            return 3

        def path(self, i):
            return str(i)

        def read(self, i):
            return Sample(image=np.zeros((4, 4, 3), np.uint8))

    for data in (Duck(), Plain):  # a class is not an instance
        with pytest.raises(UsageError, match="subclass of nolabel.data.source.Source"):
            open_source(data)
    with pytest.raises(UsageError, match="got Duck"):
        nl.pretrain("simclr", data=Duck(), steps=1)


def test_a_source_in_a_file_is_named_by_its_path_and_recorded_by_its_hash(file):
    source = open_source(f"{file}:Mine")
    assert (len(source), source.name, source.read(7).image[0, 0, 0]) == (40, "Mine", 7)
    recorded = record_source(f"{file}:Mine")
    assert recorded.startswith("my_source.py:Mine@")
    assert type(open_source(recorded)) is type(source)
    assert record_source("creatures:test") == "creatures:test"


def test_a_folder_named_like_a_source_file_is_a_folder(tmp_path):
    from PIL import Image

    (tmp_path / "odd.py").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "odd.py" / "a.png")
    assert len(open_source(str(tmp_path / "odd.py"))) == 1
    assert record_source(str(tmp_path / "odd.py")) == str(tmp_path / "odd.py")


def test_classes_that_cannot_be_instantiated_say_why(file, tmp_path):
    with pytest.raises(UsageError, match="Sized .*without arguments.*size"):
        open_source(f"{file}:Sized")
    with pytest.raises(UsageError, match="Half .*lacks read"):
        open_source(f"{file}:Half")
    with pytest.raises(UsageError, match="source class .*Found: Mine, Sized, Half"):
        open_source(f"{file}:Other")
    with pytest.raises(UsageError, match="No such file"):
        open_source(f"{tmp_path}/none.py:Mine")
    with pytest.raises(UsageError, match="'Mine' has images of 3 channels, not 5"):
        open_source(f"{file}:Mine", channels=5)


def test_a_run_records_the_source_by_its_hash(file, tmp_path):
    short = {"steps": 1, "batch_size": 8, "image_size": 32, "device": "cpu", "workers": 0,
             "backbone": "vit_pico", "precision": "fp32", "quiet": True}  # fmt: skip
    run = nl.pretrain("simclr", data=f"{file}:Mine", out=str(tmp_path / "run"), **short)
    assert run.settings.data == record_source(f"{file}:Mine") and run.images == 40


def test_a_resumed_run_uses_its_copy_of_the_source(file, tmp_path):
    """In another process of the same user, after the original file has changed."""
    short = {"steps": 4, "batch_size": 8, "image_size": 32, "device": "cpu", "workers": 0,
             "backbone": "vit_pico", "precision": "fp32", "quiet": True}  # fmt: skip
    whole = nl.pretrain("simclr", data=f"{file}:Mine", out=str(tmp_path / "whole"), **short)
    run = nl.pretrain(
        "simclr", data=f"{file}:Mine", out=str(tmp_path / "run"), checkpoint_every=2, **short
    )
    for newest in (run.folder / "checkpoints").glob("step-*4.ckpt"):
        newest.unlink()
    file.write_text(CODE.replace("return 40", "return 50"))
    code = f"import nolabel as nl; nl.resume({str(run.folder)!r}, quiet=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "has changed since it was copied" in done.stderr, done.stderr
    a, b = (load_file(r.folder / "encoder.safetensors") for r in (whole, run))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_spawned_worker_gets_the_class_of_a_file(file, monkeypatch):
    """As on macOS and Windows, where workers are not forked."""
    monkeypatch.setattr("nolabel.data.workers.START", "spawn")
    source = open_source(record_source(f"{file}:Mine"))
    plan = ViewPlan(views=(View(name="image", size=8),))
    batches = [
        next(make_loader(source, FastViews(plan), seed=0, batch_size=4, start_step=0,
                         total_steps=1, workers=workers))
        for workers in (0, 1)
    ]  # fmt: skip
    assert torch.equal(batches[0].views["image"], batches[1].views["image"])


def test_a_run_on_a_source_object_names_it_and_goes_on_with_it(tmp_path):
    run = nl.pretrain(
        "simclr", data=Plain(), steps=2, batch_size=4, image_size=32, device="cpu", workers=0,
        backbone="vit_pico", precision="fp32", max_bad=1.0, out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    assert run.settings.data == "object:Plain"
    with pytest.raises(UsageError, match=r"'Plain' were passed in from Python.*nl.resume"):
        nl.resume(run.folder, quiet=True)
    assert nl.resume(run.folder, data=Plain(), quiet=True).settings.steps == 2
    with pytest.raises(UsageError, match="'creatures', opened by this name. Leave data out"):
        open_again(Plain(), "creatures", "The run", channels=3)


def test_lists_and_arrays_are_recorded_without_their_pixels():
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    names = [name_of_object(open_source(data)) for data in (pixels, list(pixels))]
    assert names == ["object:array", "object:list"]
