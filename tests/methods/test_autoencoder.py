"""Autoencoder: the loss, the bottleneck, and skip connections, with which it learns nothing."""

from __future__ import annotations

import json

import pytest
import torch

from judging import SHORT
from nolabel.backbones import build
from nolabel.backbones.decoder import prime_factors
from nolabel.errors import UsageError
from nolabel.methods.autoencoder import Autoencoder
from nolabel.nn.pixels import mean_colour_error
from nolabel.types import Batch, Clock

CLOCK = Clock(0, 10, 2)


def make(backbone="vit_pico", size=32, **changes):
    torch.manual_seed(0)
    net = build(backbone, image_size=size)
    return Autoencoder(net, Autoencoder.Options(**{"code": 8, "width": 16, **changes})).train()


def pictures(n=4, seed=0):
    x = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Batch(views={"image": x[None]})


@pytest.mark.parametrize("skip", [False, True])
def test_loss_and_code_use_are_the_loops_over_pixels(skip):
    """On a ViT, whose training mode is its evaluation mode too; 32 of 34 images are watched."""
    m = make(skip=skip)
    batch = pictures(34)
    x = batch.views["image"][0]
    out = m.step(batch, CLOCK)

    def error(a, b):
        return sum(
            (u - v).double().square().mean().item() for u, v in zip(a, b, strict=True)
        ) / len(b)

    with torch.no_grad():
        pooled, maps = m.encode(x)
        code = m.to_code(pooled)
        pred = m.decoder(code, maps)
        wrong = torch.cat(
            [m.decoder(code[[i - 1]], {k: v[[i]] for k, v in maps.items()}) for i in range(32)]
        )
    assert out.loss.item() == pytest.approx(error(pred, x), rel=1e-5)
    shuffled = error(wrong, x[:32])
    assert float(out.logs["error_shuffled"]) == pytest.approx(shuffled, rel=1e-5)
    use = 1 - error(pred[:32], x[:32]) / shuffled
    assert float(out.logs["code_use"]) == pytest.approx(use, rel=1e-3, abs=1e-6)


def test_the_mean_colour_error_is_the_variance_within_an_image():
    x = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0)) + 3
    total = 0.0
    for image in x.double():
        for channel in image:
            values = channel.flatten().tolist()
            mean = sum(values) / len(values)
            total += sum((v - mean) ** 2 for v in values)
    assert mean_colour_error(x).item() == pytest.approx(total / x.numel(), rel=1e-5)


@pytest.mark.parametrize("backbone", ["vit_pico", "resnet_nano"])
def test_without_skip_all_that_reaches_the_decoder_is_the_code(backbone):
    m = make(backbone).eval()
    x = pictures(3).views["image"][0]
    assert m.encode(x)[1] == {}
    code = m.to_code(m.backbone(x))
    assert code.shape == (3, 8)
    torch.testing.assert_close(m.decoder(code, {}), m.reconstruct(x))
    torch.testing.assert_close(m.swapped(x), m.reconstruct(x).roll(1, 0))


def test_skip_takes_the_first_features_of_each_resolution_and_never_the_last():
    m = make("resnet_nano", skip=True).eval()
    x = pictures(2).views["image"][0]
    pooled, maps = m.encode(x)
    layers = m.backbone.layers(x, 4)
    assert {side: t.shape[1] for side, t in maps.items()} == {16: 32, 8: 64, 4: 128}
    assert m.decoder.skips == {16: 32, 8: 64, 4: 128}
    torch.testing.assert_close(pooled, layers[-1].pooled)
    torch.testing.assert_close(maps[4].flatten(2).transpose(1, 2), layers[2].patches)
    m = make("vit_pico", skip=True).eval()
    maps = m.encode(x)[1]
    torch.testing.assert_close(
        maps[8].flatten(2).transpose(1, 2), m.backbone.layers(x, 4)[0].patches
    )


def test_the_look_for_skips_moves_no_running_statistics():
    m = make("resnet_nano", skip=True)
    assert m.backbone.training
    means = [v for k, v in m.state_dict().items() if k.endswith("running_mean")]
    assert means and all((v == 0).all() for v in means)


@pytest.mark.parametrize(("backbone", "size"), [("resnet18", 64), ("resnet_nano", 48),
                                                ("vit_pico", 36)])  # fmt: skip
@pytest.mark.parametrize("skip", [False, True])
def test_the_image_comes_back_at_its_own_size(backbone, size, skip):
    m = make(backbone, size, skip=skip).eval()
    x = torch.randn(2, 3, size, size)
    assert m.reconstruct(x).shape == x.shape


def test_a_map_grows_by_prime_factors():
    assert [prime_factors(n) for n in (1, 8, 14, 16, 7)] == [
        [1],
        [2, 2, 2],
        [2, 7],
        [2, 2, 2, 2],
        [7],
    ]


@pytest.mark.parametrize(
    ("change", "message"), [({"code": 0}, "code is 0"), ({"width": 0}, "width")]
)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        make(**change)


def test_skip_needs_a_layer_before_the_last():
    net = build("vit_pico", image_size=32, kwargs={"depth": 1})
    with pytest.raises(UsageError, match="has one layer"):
        Autoencoder(net, Autoencoder.Options(skip=True))


def test_an_image_of_no_whole_cells_is_refused():
    with pytest.raises(UsageError, match="does not divide"):
        make("resnet18", 48)


def last_lines(run):
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return {k: sum(line[k] for line in lines[-5:]) / 5 for k in ("loss", "code_use")}


@pytest.mark.long
def test_with_skip_the_pixels_are_far_better_and_the_code_is_hardly_used(tmp_path):
    import nolabel as nl

    given = {"data": "creatures", "steps": 100, "batch_size": 64, "lr": 0.003, "width": 32, **SHORT}
    plain = last_lines(nl.pretrain("autoencoder", out=tmp_path / "plain", **given))
    around = last_lines(nl.pretrain("autoencoder", out=tmp_path / "skip", skip=True, **given))
    assert around["loss"] < 0.5 * plain["loss"], (plain, around)
    assert plain["code_use"] > 0.6 and around["code_use"] < 0.3, (plain, around)


@pytest.mark.long
def test_without_skip_a_short_run_beats_its_random_start_by_k_nn(gain_of_a_short_run):
    found = gain_of_a_short_run(
        "autoencoder", backbone="resnet_nano", steps=150, batch_size=64, lr=0.003, width=32
    )
    assert found["low"] > 0, found
