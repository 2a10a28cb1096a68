"""Exports: read back by the target library itself, they give the encoder's features."""

from __future__ import annotations

import json
import os
import re
import sys

import numpy as np
import pytest
import torch

import nolabel as nl
from nolabel._files import MARK, write_text
from nolabel.backbones import build
from nolabel.cli import main
from nolabel.data.creatures.world import Creatures
from nolabel.encoders import Encoder, save_encoder
from nolabel.encoders.convert import export as exports
from nolabel.encoders.convert.export import TOLERANCE, export
from nolabel.errors import DataError, UsageError

VIT = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
NETWORKS = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "no bias of qkv": ("vit_tiny_patch16_224", {**VIT, "qkv_bias": False}),
    "layer scale": ("vit_tiny_patch16_224", {**VIT, "init_values": 0.1}),
    "registers": (
        "vit_tiny_patch16_224",
        {**VIT, "reg_tokens": 3, "no_embed_class": True, "init_values": 0.1},
    ),
    "gated": ("vit_tiny_patch16_224", {**VIT, "swiglu": True}),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {**VIT, "embed_dim": 64, "num_heads": 1}),
    "beit": (
        "beit_base_patch16_224",
        {
            **VIT,
            "use_abs_pos_emb": False,
            "init_values": 0.1,
            "use_shared_rel_pos_bias": True,
            "use_fc_norm": False,
        },
    ),
    "beit, a bias each": (
        "beit_base_patch16_224",
        {**VIT, "use_rel_pos_bias": True, "use_fc_norm": False, "init_values": 0.1},
    ),
    "swin": ("swin_nano", {}),
    "resnet18": ("resnet18", {}),
    "resnet50": ("resnet50", {}),
    "convnext": ("convnext_mini", {}),
    "convnext, version 2": ("convnextv2_atto", CONVNEXT),
    "convnext, normed first": ("convnext_tiny_hnf", CONVNEXT),
}
CONVNEXTS = [name for name in NETWORKS if name.startswith("convnext")]  # fmt: skip


def encoder(name):
    """With every weight drawn anew, so that none is zero or one by chance of its start."""
    kind, kwargs = NETWORKS[name]
    size = 32 if kind.startswith(("vit", "beit", "swin")) else 64
    backbone = build(kind, image_size=size, kwargs=dict(kwargs))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, t in backbone.net.state_dict().items():
            if t.is_floating_point():
                t.add_(torch.randn(t.shape, generator=generator) * 0.02)
                if "running_var" in key:
                    t.abs_()
    return Encoder(backbone.eval(), name=name, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))


def run_card(folder, **names):
    """Runs the code of a model card; returns the names that it sets."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    exec(code, names)
    return names


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in CONVNEXTS])
def test_transformers_computes_the_same(name, tmp_path):
    pytest.importorskip("transformers")
    result = export(encoder(name), "hf", tmp_path / "out")
    assert result["largest_difference"] < TOLERANCE / 4
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} == set(
        result["files"]
    )
    assert sum(p.numel() for p in run_card(tmp_path / "out")["model"].parameters())
    assert "# embedding = model(pixel_values=images)." in result["loading"]


def test_the_card_of_an_export_to_transformers_names_the_output_that_is_the_embedding(tmp_path):
    """Its pooler has random weights, others at every load."""
    pytest.importorskip("transformers")
    e = encoder("vit")
    export(e, "hf", tmp_path / "out")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    card = (tmp_path / "out" / "README.md").read_text()
    named = re.search(r"# embedding = (.*)", card)
    assert named is not None and "pooler_output" in card
    found = eval(named[1], {**run_card(tmp_path / "out"), "images": images})
    torch.testing.assert_close(found, e.embed(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "gated"])
def test_timm_computes_the_same(name, tmp_path):
    result = export(encoder(name), "timm", tmp_path / "out")
    assert result["largest_difference"] < TOLERANCE / 4
    assert sum(p.numel() for p in run_card(tmp_path / "out")["model"].parameters())


@pytest.mark.parametrize("name", ["vit", "registers", "beit", "swin", "resnet18", "convnext"])
def test_onnx_computes_the_same_for_any_number_of_images(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    e = encoder(name)
    result = export(e, "onnx", tmp_path / "out")
    assert result["largest_difference"] < TOLERANCE / 4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    pixels = np.random.default_rng(0).random((7, 3, e.size, e.size), dtype=np.float32)
    found = session.run(["embedding"], {"images": pixels})[0]
    normalised = (pixels - np.array(e.mean)[:, None, None]) / np.array(e.std)[:, None, None]
    expected = e.embed(torch.from_numpy(normalised.astype(np.float32)))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    of_card = run_card(tmp_path / "out", pixels=pixels)
    np.testing.assert_array_equal(of_card["embedding"], found)


def test_the_image_processor_of_transformers_prepares_as_the_encoder_does(tmp_path):
    transformers = pytest.importorskip("transformers")
    export(encoder("vit"), "hf", tmp_path / "out")
    prepare = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    image = Creatures("test").read(0).image
    x = prepare(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(x, encoder("vit").prepare([image]), atol=2e-2, rtol=0)


def test_a_run_is_exported_by_the_verb_with_a_card(tmp_path, capsys):
    run = nl.pretrain(
        "simclr", data=Creatures(count=64), backbone="vit_pico", steps=2,
        batch_size=32, quiet=True, precision="fp32", out=tmp_path / "run",
    )  # fmt: skip
    given = ["export", "--encoder", str(run.folder), "--to", "timm", "--out", str(tmp_path / "o")]
    assert main([*given, "--json", str(tmp_path / "result.json")]) == 0
    printed = capsys.readouterr().out
    assert "largest difference" in printed and "local-dir" in printed
    assert json.loads((tmp_path / "result.json").read_text())["largest_difference"] < TOLERANCE
    card = (tmp_path / "o" / "README.md").read_text()
    assert "simclr" in card and "32 px" in card and "timm.create_model" in card
    assert main(given) == 2 and "--overwrite" in capsys.readouterr().err


def test_an_export_replaces_an_export_and_nothing_of_the_users(tmp_path, monkeypatch):
    out = tmp_path / "desk"
    (out / "mine").mkdir(parents=True)
    (out / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match="holds no export"):
        export(encoder("vit"), "timm", out, overwrite=True)
    export(encoder("vit"), "timm", tmp_path / "o")
    (tmp_path / "o" / "notes.txt").write_text("dear")
    mark = json.loads((tmp_path / "o" / MARK).read_text())
    mark["files"] += ["../desk/mine/thesis.txt", "*", "old.bin"]
    (tmp_path / "o" / MARK).write_text(json.dumps(mark))
    (tmp_path / "o" / "old.bin").touch()
    export(encoder("vit"), "timm", tmp_path / "o", overwrite=True)
    names = {p.name for p in (tmp_path / "o").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", MARK, "notes.txt"}
    assert (out / "mine" / "thesis.txt").read_text() == "years"
    monkeypatch.chdir(tmp_path / "o")
    with pytest.raises(UsageError, match="current folder"):
        export(encoder("vit"), "timm", tmp_path / "o", overwrite=True)


def test_files_that_are_written_can_be_read_by_those_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        export(encoder("vit"), "timm", tmp_path / "o")
        e = encoder("vit")
        save_encoder(tmp_path / "e.safetensors", e.backbone, branch="encoder", method="x",
                     mean=e.mean, std=e.std, image_size=32, run=None)  # fmt: skip
        write_text(tmp_path / "t.txt", "text")
    finally:
        os.umask(before)
    files = [*(tmp_path / "o").iterdir(), tmp_path / "e.safetensors", tmp_path / "t.txt"]
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in files if p.is_file()} == dict.fromkeys(
        (p.name for p in files), "0o640"
    )


def test_what_a_library_cannot_say_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(UsageError, match="no max pooling in its stem"):
        export(nl.load("random:resnet_nano"), "timm", tmp_path / "out")
    with pytest.raises(UsageError, match="no max pooling in its stem"):
        export(nl.load("random:resnet_nano"), "hf", tmp_path / "out")
    with pytest.raises(UsageError, match="cannot be exported to transformers"):
        export(nl.load("pixels"), "hf", tmp_path / "out")
    with pytest.raises(UsageError, match="'pixels' is no network of timm's. Use --to onnx"):
        export(nl.load("pixels"), "timm", tmp_path / "out")
    with pytest.raises(UsageError, match="Unknown format"):
        export(nl.load("random:vit_pico"), "keras", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    write = exports._write_timm

    def wrong(e, folder):
        read_back, loading = write(e, folder)
        return lambda x: {"embedding": read_back(x)["embedding"] + 2e-4}, loading

    monkeypatch.setattr(exports, "_write_timm", wrong)
    with pytest.raises(DataError, match="differ by 2.0e-04"):
        export(encoder("vit"), "timm", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_onnxruntime_is_imported_with_its_telemetry_off(monkeypatch, tmp_path):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    with pytest.raises(UsageError, match="needs onnx packages"):
        export(encoder("vit"), "onnx", tmp_path / "out")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
