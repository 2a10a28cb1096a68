"""Methods that learn from a frozen network: a run loads it, copies it and resumes from the copy."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import nolabel as nl
from nolabel.config import Request
from nolabel.encoders.text import load_text
from nolabel.engine import train, trainer
from nolabel.engine.build import build_method, load_method, load_teacher, save_frozen_inputs
from nolabel.engine.checkpoint import load_checkpoint
from nolabel.engine.placeholder import Placeholder
from nolabel.engine.resolve import resolve
from nolabel.errors import FileDamaged, Stopped, UsageError
from nolabel.nn.frozen import Frozen
from nolabel.testing import TINY

FIXTURES = Path(__file__).parents[1] / "fixtures" / "runs_3f745f9"
QUICK = {"batch_size": 8, "precision": "fp32", "workers": 0, "image_size": 32, "device": "cpu",
         "quiet": True}  # fmt: skip

COLOURS = '''
import torch
from dataclasses import dataclass
from nolabel.methods.base import Method
from nolabel.methods.capabilities import Tokenizes
from nolabel.types import Step
from nolabel.views.plan import View, ViewPlan
from torch import nn


class Colours(Method, Tokenizes):
    """A tokenizer: the id of a patch is the nearest of sixteen colours."""

    vocabulary = 16

    @dataclass(frozen=True, kw_only=True)
    class Options:
        weight: float = 1.0  # of the loss

    def __init__(self, backbone, options):
        super().__init__(backbone, options)
        self.backbone, self.patch = backbone, backbone.patch_size
        self.colours = nn.Parameter(torch.randn(16, 3))

    @classmethod
    def views(cls, options, image_size):
        return ViewPlan(views=(View(name="image", size=image_size),))

    def distances(self, x):
        mean = nn.functional.avg_pool2d(x, self.backbone.patch_size).flatten(2).transpose(1, 2)
        return torch.cdist(mean, self.colours[None].expand(len(x), -1, -1))

    def tokens(self, x):
        return self.distances(x).argmin(-1)

    def step(self, batch, clock):
        x = batch.views["image"][0]
        h = self.backbone(x)
        nearest = self.distances(x).min(-1).values.mean()
        return Step(self.options.weight * nearest + 0 * h.sum(), {}, h.detach())

    @property
    def encoder(self):
        return self.backbone
'''


class StopAfterTwo(trainer.StopRequest):
    """Asks to stop at the second step of each session."""

    asked = 0

    @property
    def requested(self):
        self.asked += 1
        return self.asked >= 2

    @requested.setter
    def requested(self, value):
        pass


@pytest.fixture
def tokenizer(photos, tmp_path):
    """The folder of a run of a small tokenizer, with positions of its own size."""
    file = tmp_path / "colours.py"
    file.write_text(textwrap.dedent(COLOURS))
    run = nl.pretrain(
        f"{file}:Colours", data=str(photos), out=tmp_path / "tokenizer-run", steps=2,
        backbone="vit_pico", patch_size=8, mean=(0.5,) * 3, std=(0.25,) * 3, lr=0.1, **QUICK,
    )  # fmt: skip
    return run.folder


def pretrain(method, photos, out, teacher, **options):
    given = {**QUICK, "backbone": "vit_pico", "steps": 4, **TINY.get(method, {}), **options}
    return nl.pretrain(method, data=str(photos), out=out, teacher=str(teacher), **given)


def check_resume_without_the_original(method, photos, tmp_path, monkeypatch, teacher):
    """Trains without interruption, and stopped and resumed after the teacher's folder is gone."""
    whole = pretrain(method, photos, tmp_path / "whole", teacher).folder
    monkeypatch.setattr(trainer, "StopRequest", StopAfterTwo)
    with pytest.raises(Stopped):
        pretrain(method, photos, tmp_path / "parts", teacher)
    monkeypatch.undo()
    shutil.rmtree(teacher)
    train.resume(tmp_path / "parts", quiet=True)
    assert load_checkpoint(tmp_path / "parts").step == 4
    a, b = ((f / "encoder.safetensors").read_bytes() for f in (whole, tmp_path / "parts"))
    assert a == b
    return tmp_path / "parts"


@pytest.mark.parametrize("method", ["distill", "eva"])
def test_a_run_goes_on_exactly_when_its_teacher_is_gone(
    method, tiny_run, photos, tmp_path, monkeypatch
):
    teacher = tiny_run("simclr", out="teacher", mean=(0.4,) * 3, std=(0.2,) * 3).folder
    folder = check_resume_without_the_original(method, photos, tmp_path, monkeypatch, teacher)
    loaded, run = load_method(folder)
    assert not loaded.training and run.method == method
    copy = nl.load(folder / "teacher.safetensors")
    assert copy.mean == (0.4,) * 3 and copy.meta["method"] == "simclr"
    named = dict(loaded.teacher.module.named_parameters())
    assert named and all(torch.equal(v, named[k]) for k, v in copy.backbone.named_parameters())


def test_a_run_goes_on_exactly_when_its_tokenizer_is_gone(tokenizer, photos, tmp_path, monkeypatch):
    trained = load_method(tokenizer)[0].colours.detach()
    folder = check_resume_without_the_original("beit", photos, tmp_path, monkeypatch, tokenizer)
    loaded, _ = load_method(folder)
    assert torch.equal(loaded.tokenizer.module.colours, trained)
    assert loaded.tokenizer.mean == (0.5,) * 3
    assert sorted(p.name for p in (folder / "tokenizer").iterdir()) == [
        "code", "config.yaml", "weights.safetensors"
    ]  # fmt: skip


def test_the_teacher_is_neither_trained_nor_saved_with_the_method(tiny_run, photos, tmp_path):
    teacher = tiny_run("simclr", out="teacher").folder
    before = load_file(teacher / "encoder.safetensors")
    run = pretrain("distill", photos, tmp_path / "run", teacher)
    after = load_file(run.folder / "teacher.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    method, _ = load_method(run.folder)
    names = {n.split(".")[0] for n in method.state_dict()}
    assert names == {"backbone", "head", "anchors"}
    assert not any(p.requires_grad for p in method.teacher.module.parameters())


def test_a_teacher_leaves_the_seeds_weights_as_they_are(tiny_run, photos, tmp_path):
    """A run's fresh weights depend on its seed, not on whether the teacher was loaded before."""
    run = pretrain("distill", photos, tmp_path / "run", "random:vit_nano", teacher_temperature=0.1)
    first, _ = build_method(run)
    second, _ = build_method(run, load_teacher(run, run.folder))
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_an_encoder_may_replace_the_run_it_learned_from(tiny_run, photos, tmp_path):
    folder = tiny_run("simclr", out="same").folder
    old = load_file(folder / "encoder.safetensors")
    run = pretrain("distill", photos, folder, folder, overwrite=True)
    kept = load_file(run.folder / "teacher.safetensors")
    assert all(torch.equal(old[k], kept[k]) for k in old)


def test_pixels_need_no_copy(photos, tmp_path):
    run = pretrain("eva", photos, tmp_path / "run", "pixels")
    assert not (run.folder / "teacher.safetensors").exists()
    assert load_method(run.folder)[0].teacher.module.name == "pixels"


def test_measuring_first_uses_the_teacher_too(photos, tmp_path):
    run = pretrain("distill", photos, tmp_path / "run", "random:vit_pico", precision="auto")
    assert run.settings.precision in ("fp32", "bf16")


@pytest.mark.parametrize(
    ("method", "example"), [("distill", "timm:"), ("eva", "timm:"), ("beit", "runs/vqvae")]
)
def test_no_teacher_is_refused_with_an_example(method, example, photos, tmp_path):
    with pytest.raises(UsageError, match=f"{method} learns from a frozen network.*{example}"):
        pretrain(method, photos, tmp_path / "run", "")
    assert not (tmp_path / "run").exists()


def test_a_run_without_tokens_is_no_tokenizer(tiny_run, photos, tmp_path):
    folder = tiny_run("simclr", out="teacher").folder
    with pytest.raises(UsageError, match="run of simclr, which makes no tokens"):
        pretrain("beit", photos, tmp_path / "run", folder)


@pytest.mark.parametrize("name", ["nowhere", "timm:vit_small_patch16_224.dino"])
def test_a_tokenizer_must_be_a_runs_folder(name, photos, tmp_path):
    with pytest.raises(UsageError, match=r"not the folder of a run.*runs/vqvae"):
        pretrain("beit", photos, tmp_path / "run", name)


def test_a_teacher_of_other_channels_is_refused(photos, tmp_path):
    grey = nl.pretrain(
        "simclr", data=str(photos), out=tmp_path / "grey", backbone="vit_pico", channels=1,
        steps=1, **QUICK, **TINY["simclr"],
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"takes images of 1 channels.*have 3.*--channels 1"):
        pretrain("distill", photos, tmp_path / "run", grey.folder)


def test_images_of_one_channel_learn_from_a_teacher_of_one(photos, tmp_path):
    run = pretrain("distill", photos, tmp_path / "run", "random:vit_pico", channels=1)
    assert len(load_method(run.folder)[0].teacher.mean) == 1


def test_a_damaged_copy_is_told(tokenizer, photos, tmp_path):
    run = pretrain("beit", photos, tmp_path / "run", tokenizer)
    file = run.folder / "tokenizer" / "weights.safetensors"
    state = load_file(file)
    save_file({k: v for k, v in state.items() if k != "colours"}, file)
    with pytest.raises(FileDamaged, match="copy of the tokenizer"):
        load_method(run.folder)


def test_views_of_a_run_can_be_shown_without_the_teacher_it_names(tiny_run, photos, tmp_path):
    teacher = tiny_run("simclr", out="teacher").folder
    run = pretrain("eva", photos, tmp_path / "run", teacher)
    shutil.rmtree(teacher)
    assert nl.show("views", run.folder, str(photos), count=2)


def test_a_dry_run_counts_the_teacher(photos, tmp_path, capsys):
    from nolabel import cli

    args = ["pretrain", "distill", "--data", str(photos), "--backbone", "vit_pico", "--image-size",
            "32", "--batch-size", "8", "--dry-run", "--anchors", "8"]  # fmt: skip
    size = {}
    for teacher in ("pixels", "random:vit_tiny"):
        assert cli.main([*args, "--teacher", teacher]) == 0
        line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("memory"))
        size[teacher] = float(line.split()[1])
    # 5.5 million parameters; the projection into 3072 pixels is larger than that into 192 numbers.
    assert size["random:vit_tiny"] > 20


def test_config_of_the_copy_reads_as_a_run(tokenizer, photos, tmp_path):
    run = pretrain("beit", photos, tmp_path / "run", tokenizer)
    raw = yaml.safe_load((run.folder / "tokenizer" / "config.yaml").read_text())
    assert raw["method"].startswith("colours.py:Colours@") and raw["settings"]["patch_size"] == 8
    assert [(run.folder / "tokenizer" / copy).is_file() for copy in raw["code"]] == [True]


def test_images_are_resized_and_normalised_as_the_frozen_network_knows_them():
    given = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    frozen = Frozen(
        torch.nn.Identity(), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), given=given, image_size=8
    )
    pixels = torch.rand(2, 3, 8, 8, dtype=torch.float64)

    def normalised(mean, std):
        mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, std))
        return (pixels - mean) / std

    out = frozen.prepare(normalised(*given))
    torch.testing.assert_close(out, normalised(frozen.mean, frozen.std))
    constant = torch.zeros(1, 3, 16, 16)  # the mean of the run's images
    expected = (torch.tensor(given[0]) - torch.tensor(frozen.mean)) / torch.tensor(frozen.std)
    assert frozen.prepare(constant).shape == (1, 3, 8, 8)
    assert frozen.prepare(constant, (4, 12)).shape == (1, 3, 4, 12)
    torch.testing.assert_close(
        frozen.prepare(constant), expected.view(1, 3, 1, 1).expand(1, 3, 8, 8)
    )


def test_images_that_fit_already_stay_the_same_tensor():
    frozen = Frozen(torch.nn.Identity(), (0.5,), (0.5,), image_size=8)
    x = torch.randn(1, 1, 8, 8)
    assert frozen.prepare(x) is x


def test_the_projection_of_a_clip_run_is_kept_with_the_copy_of_the_teacher(tmp_path):
    images = Placeholder(20, 32)
    clip = FIXTURES / "clip-text"
    asked = {"data": images.name, "backbone": "vit_pico", "batch_size": 4, "teacher": str(clip)}
    run = resolve(Request.of("eva", steps=1, **asked), source=images).run
    first = load_teacher(run)
    shared = load_text(clip, device="cpu").shared
    assert torch.equal(first.projection.weight, shared.image.weight)
    save_frozen_inputs(first, tmp_path)
    again = load_teacher(run, tmp_path)
    assert torch.equal(again.projection.weight, shared.image.weight)
    (tmp_path / "teacher-projection.safetensors").write_bytes(b"nothing")
    with pytest.raises(FileDamaged, match="teacher-projection"):
        load_teacher(run, tmp_path)
