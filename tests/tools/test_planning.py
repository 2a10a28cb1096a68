"""What a run would cost: counted steps against longer ones and against formulas by hand."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from nolabel import cli, methods, recipes
from nolabel.backbones import depth_of
from nolabel.encoders import load
from nolabel.engine import cost
from nolabel.engine.synthetic import build_on
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.tools import plan

SMALL = {"backbone": "vit_pico", "image_size": 32, "recipe": "auto", "images": 10_000,
         "batch_size": 64}  # fmt: skip


def options(name):
    return recipes.automatic(
        methods.load(name), RecipeContext(image_size=32, images=10_000)
    ).options


@pytest.mark.parametrize("name", ["dino", "mae"])
def test_shallow_copies_and_few_images_tell_what_a_deep_network_and_many_take(name):
    kind, given = methods.load(name), options(name)
    guess = cost.extrapolated(kind, given, "vit_pico", 32, None, "fp32", 6)
    depth = {"depth": depth_of("vit_pico")}
    assert depth == {"depth": 4}
    true = cost.count(build_on(kind, given, "vit_pico", 32, None, depth), 6, 32, "fp32")
    assert guess.trainable == true.trainable
    assert guess.untrained == true.untrained
    assert guess.flops == pytest.approx(true.flops, rel=1e-3)
    assert guess.activations == pytest.approx(true.activations, rel=0.02)


def test_the_count_of_a_transformer_is_the_formula_by_hand():
    given = options("simclr")
    model = build_on(methods.load("simclr"), given, "vit_pico", 32)
    net = model.backbone
    d, t, views, images = net.dim, 65, 2, 4
    layer = 24 * t * d * d + 4 * t * t * d  # products of matrices, two FLOP each
    last = (4 * t + 20) * d * d + 4 * t * d  # keys and values of all, the rest of the class token
    head = 2 * (d * given.hidden + given.hidden * given.projection)
    patches = 2 * 64 * (3 * net.patch_size**2) * d
    forward = views * images * ((net.depth - 1) * layer + last + head)
    # Backward costs twice as much, but no image needs a gradient.
    expected = 3 * forward + 2 * views * images * patches
    found = cost.count(model, images, 32, "fp32").flops
    assert found == pytest.approx(expected, rel=0.02)


def test_more_devices_are_faster_wait_more_and_shards_are_smaller():
    one = plan.plan("dino", devices=1, **SMALL)
    eight = plan.plan("dino", devices=8, **SMALL)
    many = plan.plan("dino", devices=1024, **{**SMALL, "batch_size": 4096})
    shard = plan.plan("dino", devices=8, shard=True, **SMALL)
    assert eight["compute_seconds"] == pytest.approx(one["compute_seconds"] / 8, rel=1e-6)
    assert one["bytes_sent_per_step"] == one["waiting_seconds"] == 0
    expected = 2 * 7 / 8 * 4 * eight["trainable_parameters"]
    assert eight["bytes_sent_per_step"] == pytest.approx(expected)
    # 450 GB/s inside one machine, 50 GB/s between several.
    assert many["waiting_seconds"] > eight["waiting_seconds"]
    for part in ("weights", "gradients", "moments"):
        assert shard["memory"][part] == pytest.approx(eight["memory"][part] / 8)
    deep = {**SMALL, "backbone": "vit_small_patch16_224"}  # heavier than its head
    shard = plan.plan("dino", devices=8, shard=True, **deep)
    layers = plan.plan("dino", devices=8, shard=True, shard_layers=True, **deep)
    assert layers["memory"]["gathered weights"] < 0.9 * shard["memory"]["gathered weights"]
    assert layers["bytes_sent_per_step"] > 1.2 * shard["bytes_sent_per_step"]
    assert one["memory"]["moments"] == 8 * one["trainable_parameters"]
    assert many["checkpoint_every_seconds"] < one["checkpoint_every_seconds"]
    assert one["fits"]
    assert not plan.plan(
        "dino", devices=1, gpu="v100", **{**SMALL, "batch_size": 60_000, "images": 100_000}
    )["fits"]


def test_what_cannot_be_planned_is_said():
    with pytest.raises(UsageError, match="64 or 72|63 or 72|Use --batch-size"):
        plan.plan("dino", devices=9, **SMALL)
    with pytest.raises(UsageError, match="h200"):
        plan.plan("dino", gpu="h20", **SMALL)
    with pytest.raises(UsageError, match="--shard-layers is for runs with --shard"):
        plan.plan("dino", shard_layers=True, **SMALL)
    with pytest.raises(UsageError, match="share"):
        plan.plan("dino", share=0.0, **SMALL)


def test_plan_and_bench_step_by_command(tmp_path, capsys):
    given = ["--method", "mae", "--backbone", "vit_pico", "--image-size", "32", "--recipe", "paper"]
    out = tmp_path / "plan.json"
    assert cli.main(["plan", *given, "--devices", "2", "--price", "3", "--json", str(out)]) == 0
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert found["cost"] == pytest.approx(3 * found["device_hours"])
    assert abs(found["check"]["error"]) < 1.0
    assert "checked" in printed
    assert "2 x h200" in printed
    out = tmp_path / "step.json"
    assert cli.main(["bench", "step", *given, "--batch-size", "8", "--precision", "fp32",
                     "--json", str(out)]) == 0  # fmt: skip
    step = json.loads(out.read_text())
    assert 0 < step["share_of_peak"] < 1.5
    assert step["flops_per_second"] == pytest.approx(
        step["flops_per_image"] * step["images_per_second"]
    )
    # A step is counted in the same way by both.
    assert step["flops_per_image"] == pytest.approx(found["flops_per_image"], rel=0.02)
    assert "TFLOP/s" in capsys.readouterr().out


def test_bench_embed_counts_what_a_vision_transformer_multiplies(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(5):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    out = tmp_path / "embed.json"
    given = ["--encoder", "random:vit_pico", "--image-size", "32", "--batch-size", "4"]
    assert cli.main(["bench", "embed", *given, "--data", str(tmp_path / "photos"), "--seconds",
                     "0.05", "--json", str(out)]) == 0  # fmt: skip
    found = json.loads(out.read_text())
    net = load("random:vit_pico", image_size=32).backbone.net
    width, tokens = net.embed_dim, net.patch_embed.num_patches + 1
    a_layer = 2 * tokens * width**2 * (4 + 2 * 4) + 4 * tokens**2 * width
    patches = 2 * (tokens - 1) * net.patch_embed.proj.weight.numel()
    last = 2 * width**2 * (2 * tokens + 2 + 2 * 4) + 4 * tokens * width  # for the class token
    assert found["flops_per_image"] == (len(net.blocks) - 1) * a_layer + last + patches
    assert found["flops_per_second"] == pytest.approx(
        found["flops_per_image"] * found["images_per_second"]
    )
    assert set(found["precisions"]) == {"fp32", "bf16"}
    assert found["images_per_second"] == max(p["whole"] for p in found["precisions"].values())
    assert found["images"] == 6
    assert "of the bare network, bf16" in capsys.readouterr().out
