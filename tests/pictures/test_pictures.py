"""Attention, PCA, reconstructions, views and videos: right on known cases."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from nolabel.backbones import build
from nolabel.data.creatures.world import Creatures
from nolabel.encoders import Encoder, load
from nolabel.errors import UsageError
from nolabel.methods.autoencoder import Autoencoder
from nolabel.methods.mae import MAE
from nolabel.methods.vqvae import VQVAE
from nolabel.nn.pixels import to_pixels
from nolabel.pictures._tiles import Pictures
from nolabel.pictures.attention import attention, mass_mask
from nolabel.pictures.pca import pca, principal
from nolabel.pictures.picture import Picture
from nolabel.pictures.reconstruct import reconstruct
from nolabel.pictures.views import views
from nolabel.tools.show import show
from nolabel.views import IMAGENET_MEAN, IMAGENET_STD, View, ViewPlan
from nolabel.views.plan_file import read_views
from nolabel.views.suitability import measure_operations

ORACLE = Path(__file__).parents[1] / "oracles" / "attention_mass.safetensors"


@pytest.fixture(scope="module")
def images():
    return Creatures(size=32, count=20).images(np.arange(4))


def test_mass_mask_matches_the_official_numbers():
    o = load_file(ORACLE)
    with safe_open(ORACLE, "pt") as file:
        mass = float(file.metadata()["mass"])
    assert torch.equal(mass_mask(o["attention"], mass), o["mask"])


def test_the_kept_mass_is_enough_and_masks_are_nested():
    a = torch.rand(3, 2, 50, generator=torch.Generator().manual_seed(0))
    share = a / a.sum(-1, keepdim=True)
    before = None
    for mass in (0.2, 0.5, 0.8):
        kept = mass_mask(a, mass)
        assert ((share * kept).sum(-1) >= mass - 1e-5).all()
        if before is not None:
            assert (kept | ~before).all()
        before = kept


def test_attention_on_the_true_mask_reaches_the_ceiling_of_the_grid():
    creatures = Creatures(size=32, count=20)
    samples = [creatures.read(i) for i in range(4)]
    masks = np.stack([s.mask for s in samples])

    class Oracle(Encoder):
        """Attends evenly to every patch of which three tenths lie in the figure."""

        def attention(self, x, layer, patch=None):
            cells = masks.reshape(4, 8, 4, 8, 4).mean((2, 4)) > 0.3
            a = torch.from_numpy(cells.reshape(4, 1, 64).astype(np.float32)) + 1e-6
            return a / a.sum(-1, keepdim=True)

    (p,) = attention(
        Oracle(build("vit_pico", image_size=32)),
        [s.image for s in samples],
        mass=0.999,
        masks=masks,
    )
    assert p.numbers["iou_best_head"] > 0.9 * p.numbers["iou_ceiling"]
    assert p.numbers["iou_ceiling"] < 1


def test_pca_equals_the_singular_value_decomposition():
    x = np.random.default_rng(0).normal(size=(200, 12)) * np.arange(1, 13)
    scores, share = principal(x)
    _, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.linalg.norm(scores, axis=0), s[:3], rtol=1e-8)
    np.testing.assert_allclose(share, s[:3] ** 2 / (s**2).sum(), rtol=1e-8)


def test_pca_gives_two_copies_of_an_image_the_same_colours(images):
    (p,) = pca(load("random:vit_pico"), [images[0], images[1], images[0]])
    np.testing.assert_allclose(p.data["scores"][0], p.data["scores"][2], atol=1e-4)


def test_pca_works_on_a_resnet(images):
    (p,) = pca(load("random:resnet_nano", image_size=32), list(images))
    assert p.image.ndim == 3


def test_mae_reconstruction_removes_the_masked_patches(images):
    backbone = build("vit_pico", image_size=32)
    MAE.init(backbone)
    mae = MAE(backbone, MAE.Options(decoder_dim=32, decoder_depth=1, decoder_heads=2)).eval()
    x = load("random:vit_pico").prepare(images)
    made = reconstruct(mae, x, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert [p.name for p in made] == ["reconstruct-75", "reconstruct-85", "reconstruct-95"]
    for p, ratio in zip(made, (0.75, 0.85, 0.95), strict=True):
        removed = p.data["mask"].reshape(4, -1).sum(1)
        assert (removed == 64 - int(64 * (1 - ratio))).all()
        assert "true" in p.caption  # normalised targets know more than the network
        assert np.isfinite(p.numbers["psnr"])


def test_unmasked_reconstruction_is_compared_with_the_mean_colour(images):
    torch.manual_seed(0)
    vqvae = VQVAE(
        build("vit_pico", image_size=32),
        VQVAE.Options(codes=8, decoder_dim=32, decoder_depth=1, decoder_heads=2),
    ).eval()
    x = load("random:vit_pico").prepare(images)
    (p,) = reconstruct(vqvae, x, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert p.name == "reconstruct"
    drawn = p.data["prediction"].astype(float)
    assert drawn.shape == images.shape
    error = np.square(drawn - images).mean()
    assert p.numbers["psnr"] == pytest.approx(10 * np.log10(255**2 / error))
    flat = images.mean((1, 2), keepdims=True)
    trivial = np.square(flat - images).mean()
    assert p.numbers["psnr_mean_colour"] == pytest.approx(10 * np.log10(255**2 / trivial))
    assert f"{p.numbers['psnr_mean_colour']:.1f} dB" in p.caption
    assert "psnr_swapped" not in p.numbers


def test_autoencoder_is_also_decoded_with_the_code_of_another_image(images):
    torch.manual_seed(0)
    auto = Autoencoder(build("vit_pico", image_size=32), Autoencoder.Options(width=16)).eval()
    x = load("random:vit_pico").prepare(images)
    (p,) = reconstruct(auto, x, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    drawn = np.roll(p.data["prediction"], 1, 0).astype(float)
    error = np.square(drawn - images).mean()
    assert p.numbers["psnr_swapped"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
    (alone,) = reconstruct(auto, x[:1], mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert "psnr_swapped" not in alone.numbers  # there is no other image


@pytest.mark.parametrize("method", ["autoencoder", "vqvae", "dvae", "mae"])
def test_show_reconstruct_serves_every_generative_run(method, tiny_run, photos):
    made = show("reconstruct", tiny_run(method).folder, str(photos), count=3)
    assert [p.name for p in made] == (
        [f"reconstruct-{r}" for r in (75, 85, 95)] if method == "mae" else ["reconstruct"]
    )
    for p in made:
        assert np.isfinite(p.numbers["psnr"]) and np.isfinite(p.numbers["psnr_mean_colour"])


def test_reconstruct_of_a_method_without_pixels_names_those_with(tiny_run, photos):
    with pytest.raises(UsageError, match="vqvae"):
        show("reconstruct", tiny_run("simclr").folder, str(photos))


def test_pixels_survive_normalising_and_back(images):
    x = load("random:vit_pico").prepare(images).numpy()
    np.testing.assert_array_equal(to_pixels(x, IMAGENET_MEAN, IMAGENET_STD), images)


def test_views_show_every_crop(images):
    plan = ViewPlan(views=(View(name="global", count=2, size=32), View(name="local", size=16)))
    (p,) = views(plan, list(images))
    assert p.image.shape[1] > 4 * 112


def test_what_operations_destroy_is_drawn_beside_the_views_with_its_numbers(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), dtype=np.uint8)
    plan = ViewPlan(views=(View(name="global", count=2, size=16, noise=0.5),))
    found = measure_operations(x)
    made = views(plan, list(x[:2]), found, x)
    assert [p.name for p in made] == ["views", "operations"]
    numbers = made.numbers["operations"]
    assert {n: numbers[f"{n}_moved"] for n in found.moved} == found.moved
    assert {n: numbers[f"{n}_strength"] for n in found.strength} == found.strength
    assert numbers["quarter_turns_detected"] == found.detected["quarter_turns"]
    assert made[1].image.shape[1] > (1 + len(found.detected) + len(found.moved)) * 112
    made.save(tmp_path)
    again = read_views(str(tmp_path / "views.yaml"), ViewPlan(views=(View(name="global", count=2,
                                                                          size=16),)))  # fmt: skip
    assert again == plan


def test_saved_pictures_bring_their_data_and_numbers(images, tmp_path):
    made = pca(load("random:vit_pico"), list(images))
    assert isinstance(made, Pictures)
    made.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"pca.png", "pca.npz", "numbers.json"}
    numbers = json.loads((tmp_path / "numbers.json").read_text())["pca"]["numbers"]
    assert numbers == made.numbers["pca"]
    assert "data:image/png" in made._repr_html_()


@pytest.mark.parametrize("kind", ["png", "npz", "webp", "json"])
def test_a_full_disk_leaves_no_half_of_a_picture_and_what_was_there(tmp_path, monkeypatch, kind):
    def picture(value):
        image = np.full((9, 9, 3), value, np.uint8)
        return Pictures([Picture(name="a", image=image, caption=str(value), data={"x": image},
                                 frames=np.stack([image, 255 - image]), video="webp")])  # fmt: skip

    picture(1).save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert len(before) == 4
    replace = os.replace

    def full(source, target):
        if str(target).endswith(kind):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        picture(2).save(tmp_path)
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    kept = next(name for name in before if name.endswith(kind))
    assert after[kept] == before[kept]


def test_damaged_captions_of_older_pictures_do_not_stop_new_ones(tmp_path):
    one = Pictures([Picture(name="a", image=np.zeros((9, 9, 3), np.uint8), caption="New.")])
    for damaged in (b"", b"[]", b"\xff", b"[" * 100_000):
        (tmp_path / "numbers.json").write_bytes(damaged)
        one.save(tmp_path)
        assert json.loads((tmp_path / "numbers.json").read_text())["a"]["caption"] == "New."


@pytest.mark.parametrize("kind", ["webp", "mp4"])
def test_attention_on_a_video_is_a_film_with_every_frame(images, tmp_path, kind):
    if kind == "mp4":
        pytest.importorskip("av")
    encoder = load("random:vit_pico")
    made = attention(encoder, images, video=kind)
    assert made[0].frames.shape == (len(images), 128, 384, 3)
    path = next(p for p in made.save(tmp_path) if p.suffix == f".{kind}")
    if kind == "webp":
        with Image.open(path) as video:
            assert video.n_frames == len(images) and video.size == (384, 128)
    else:
        import av

        with av.open(str(path)) as video:
            frames = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
        assert len(frames) == len(images)
        assert np.abs(frames[1].astype(int) - made[0].frames[1]).mean() < 12
    with pytest.raises(UsageError, match="video"):
        attention(encoder, images, video="gif")
