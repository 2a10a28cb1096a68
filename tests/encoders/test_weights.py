"""The encoder file keeps what it was given or says what is wrong; every name finds its encoder."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nolabel.backbones import build
from nolabel.encoders import Encoder, load, load_encoder_file, read_header, save_encoder
from nolabel.errors import DataError, FileDamaged, NolabelError, UsageError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3}


def vit(**kwargs):
    return build("vit_nano", image_size=16, kwargs={**SMALL, **kwargs})


def write(path, backbone=None, **changes):
    settings = {
        "branch": "teacher",
        "method": "dino",
        "mean": MEAN,
        "std": STD,
        "image_size": 16,
        "run": {"method": "dino", "epochs": 3},
    }
    return save_encoder(path, backbone or vit(), **(settings | changes))


def pictures(n=3, side=20):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("run") / "encoder.safetensors")


@pytest.mark.parametrize(
    "make",
    [
        vit,
        lambda: vit(class_token=False, global_pool="avg"),
        lambda: vit(reg_tokens=2),
        lambda: build("resnet_nano", image_size=16),
        lambda: build("swin_nano", image_size=16),
    ],
)
def test_a_saved_encoder_comes_back_with_the_same_output_and_settings(tmp_path, make):
    backbone = make().eval()
    encoder = load_encoder_file(write(tmp_path / "e.safetensors", backbone))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(encoder.forward(x), backbone(x).detach())
    assert (encoder.mean, encoder.std, encoder.image_size) == (MEAN, STD, 16)
    assert encoder.meta["branch"] == "teacher"
    assert encoder.meta["run"] == {"method": "dino", "epochs": 3}


def test_the_weights_load_into_timm_directly(file):
    import timm

    header = read_header(file)
    net = timm.create_model(header["name"], num_classes=0, **header["kwargs"])
    net.load_state_dict(load_file(file))


def test_the_same_weights_give_the_same_bytes(tmp_path):
    backbone = vit()
    paths = [write(tmp_path / f"{i}.safetensors", backbone) for i in range(4)]
    assert len({p.read_bytes() for p in paths}) == 1


def test_no_byte_of_the_file_can_change_unnoticed(file, tmp_path):
    whole = file.read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    text = whole[8:start]
    places = [text.index(b"0.4") + 10, text.index(b"epochs") + 13, start, len(whole) - 1]
    places += np.random.default_rng(0).integers(0, len(whole), 24).tolist()
    bad = tmp_path / "bad.safetensors"
    for at in places:
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((FileDamaged, UsageError)):
            load_encoder_file(bad)


@pytest.mark.parametrize("keep", [0, 5, 40, 2000, -1])
def test_a_truncated_file_is_refused_in_one_clear_message(file, tmp_path, keep):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(FileDamaged, match=r"bad\.safetensors' is .*(\.|run\.)$") as caught:
        load_encoder_file(bad)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_never_opened(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(FileDamaged, match="nolabel never opens one"):
        load(path)


def test_a_foreign_safetensors_file_is_told_apart(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(FileDamaged, match="no header of nolabel"):
        load(path)


def forge(file, path, change):
    """Writes a file with a changed content and a checksum that fits it."""
    from nolabel.encoders.file import checksum

    header, tensors = read_header(file), load_file(file)
    change(header, tensors)
    header["checksum"] = checksum(header, tensors)
    save_file(tensors, path, {"nolabel": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: t.pop("cls_token"), "missing: cls_token"),
        (lambda h, t: t.update(extra=torch.ones(1)), "unexpected: extra"),
        (lambda h, t: t.update(cls_token=torch.ones(1, 1, 5)), r"cls_token is \[1, 1, 5\], not"),
        (lambda h, t: h["kwargs"].update(checkpoint_path="x.pth"), "checkpoint_path"),
        (lambda h, t: h.update(name="no_such_net"), "no_such_net"),
        (lambda h, t: h.update(mean=[1.0]), "'mean'"),
        (lambda h, t: h.pop("method"), "'method'"),
    ],
)
def test_a_file_that_does_not_fit_itself_is_refused_by_name(file, tmp_path, change, message):
    with pytest.raises(FileDamaged, match=message):
        load_encoder_file(forge(file, tmp_path / "f.safetensors", change))


def test_a_file_of_a_later_format_asks_for_an_update(file, tmp_path):
    path = forge(file, tmp_path / "f.safetensors", lambda h, t: h.update(format=99))
    with pytest.raises(UsageError, match="Update nolabel"):
        load_encoder_file(path)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = write(tmp_path / "encoder.safetensors")
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match="No space left"):
        write(path, method="other")
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.safetensors"]
    assert path.read_bytes() == before


def test_what_cannot_be_saved_is_refused_before_writing(tmp_path):
    with pytest.raises(UsageError, match="no weights"):
        write(tmp_path / "e.safetensors", build("pixels"))
    with pytest.raises(UsageError, match="Did you mean 'teacher'"):
        write(tmp_path / "e.safetensors", branch="teachr")
    with pytest.raises(UsageError, match="JSON"):
        write(tmp_path / "e.safetensors", run={"a": object()})
    with pytest.raises(DataError, match="folder exists"):
        write(tmp_path / "no" / "e.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_run_folder_a_file_and_a_random_twin_load(file):
    by_folder, by_file = load(file.parent, device="cpu"), load(str(file), device="cpu")
    twin = load(f"random:{file.parent}", device="cpu")
    images = pictures()
    assert torch.equal(by_folder.embed(images), by_file.embed(images))
    assert twin.backbone.kwargs == by_file.backbone.kwargs
    assert (twin.mean, twin.image_size) == (MEAN, 16)
    assert not torch.equal(twin.embed(images), by_file.embed(images))


def test_a_random_twin_starts_as_the_method_of_the_run_does(tmp_path):
    weights = {}
    for method in ("mocov3", "simclr", "mine.py:Mine"):
        path = write(tmp_path / "encoder.safetensors", build("vit_pico"), method=method)
        weights[method] = load(f"random:{path}", device="cpu").backbone.state_dict()
    qkv = "net.blocks.0.attn.qkv.weight"
    # MoCo v3 draws each third of qkv by itself, timm's start here all three together.
    assert weights["mocov3"][qkv].std() > 0.11 > 0.1 > weights["simclr"][qkv].std()
    assert torch.equal(weights["simclr"][qkv], weights["mine.py:Mine"][qkv])


def test_random_weights_are_always_the_same_and_leave_chance_alone(file):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = load("random:resnet_nano", image_size=16, device="cpu")
    load(file, device="cpu")
    assert torch.equal(torch.rand(3), expected)
    two = load("random:resnet_nano", image_size=16, device="cpu")
    assert torch.equal(one.embed(pictures()), two.embed(pictures()))


def test_pixels_are_the_prepared_image_itself():
    encoder = load("pixels", image_size=8, device="cpu")
    x = encoder.prepare(pictures())
    assert torch.equal(encoder.embed(pictures()), x.flatten(1))
    assert encoder.dim == 192


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tim:resnet50", "Unknown kind of encoder 'tim'. Did you mean 'timm'"),
        ("pixel", "Did you mean 'pixels'"),
        ("vit_nano", "Say random:vit_nano"),
        ("random:vit_nanoo", "Did you mean 'vit_nano'"),
        ("random:pixels", "no weights"),
        ("timm:vit_nano", "without published weights"),
        ("timm:no_such", "Unknown backbone"),
        ("runs/none", "no such folder or file"),
    ],
)
def test_an_unknown_encoder_is_answered_with_what_is_allowed(spec, message):
    with pytest.raises(UsageError) as caught:
        load(spec)
    assert message in str(caught.value)


def test_a_folder_without_an_encoder_and_a_missing_device_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"holds no encoder\.safetensors"):
        load(tmp_path)
    with pytest.raises(UsageError, match="Unknown device 'gpu'"):
        load("pixels", device="gpu")


def test_published_weights_that_cannot_be_fetched_are_explained(monkeypatch):
    def offline(*_, **__):
        raise OSError("Name or service not known\nmore")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(NolabelError, match="network connection") as caught:
        load("timm:vit_small_patch16_224.dino")
    assert "\n" not in str(caught.value)


def test_all_kinds_of_images_are_prepared_alike(tmp_path):
    encoder = Encoder(vit(), mean=MEAN, std=STD)
    pixels = pictures(1)
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    kinds = [pixels, pixels[0], [pixels[0]], Image.fromarray(pixels[0]), tmp_path / "a.png"]
    prepared = [encoder.prepare(k) for k in kinds]
    assert prepared[0].shape == (1, 3, 16, 16)
    assert all(torch.equal(p, prepared[0]) for p in prepared)
    assert torch.equal(encoder.prepare(prepared[0]), prepared[0])
    grey = encoder.prepare(pixels[0, :, :, 0])
    assert grey.shape == (1, 3, 16, 16)


def test_images_are_normalised_by_the_encoders_own_mean_and_deviation():
    encoder = Encoder(vit(), mean=MEAN, std=STD)
    x = encoder.prepare(np.full((20, 30, 3), 255, dtype=np.uint8))
    white = [(1 - m) / s for m, s in zip(MEAN, STD, strict=True)]
    assert torch.allclose(x.mean((0, 2, 3)), torch.tensor(white), atol=1e-5)


@pytest.mark.parametrize(("size", "resize"), [(32, 32), (95, 95), (96, 110), (224, 256)])
def test_the_border_is_cut_off_from_96_pixels_on(size, resize):
    assert Encoder(build("pixels", image_size=size)).resize == resize


def test_embeddings_do_not_depend_on_the_batch_size_or_the_training_mode():
    backbone = build("resnet_nano", image_size=16).train()
    encoder, images = Encoder(backbone), pictures(5)
    z = encoder.embed(images)
    assert z.shape == (5, backbone.dim)
    assert torch.allclose(encoder.embed(images, batch_size=2), z, atol=1e-5)
    assert backbone.training and backbone.net.bn1.training
    assert int(backbone.net.bn1.num_batches_tracked) == 0
    unit = encoder.embed(images, normalize=True)
    assert torch.allclose(unit.norm(dim=1), torch.ones(5))
    assert not z.is_inference()  # or a classifier could not be trained on them
    assert encoder.embed([]).shape == (0, backbone.dim)


def test_tokens_and_attention_have_the_promised_shapes_and_values():
    backbone = vit(reg_tokens=2).eval()
    encoder, images = Encoder(backbone), pictures(3)
    t = encoder.tokens(images, batch_size=2)
    assert t.pooled.shape == (3, 24) and t.patches.shape == (3, 16, 24) and t.grid == (4, 4)
    assert t.prefix is not None and t.prefix.shape == (3, 3, 24)
    assert torch.allclose(encoder.tokens(images, 1).patches, t.patches, atol=1e-6)
    assert not torch.allclose(encoder.tokens(images, 0).patches, t.patches)
    a = encoder.attention(images)
    assert a.shape == (3, 3, 16)
    whole = backbone.attention(encoder.prepare(images)).detach()
    assert torch.allclose(a, whole[:, :, 0, 3:])
    assert (a.sum(-1) < 1).all()


def test_what_an_encoder_cannot_do_is_said():
    encoder = Encoder(vit())
    with pytest.raises(UsageError, match="layers 0 to 1"):
        encoder.tokens(pictures(), 2)
    with pytest.raises(UsageError, match="No images"):
        encoder.tokens([])
    with pytest.raises(UsageError, match="needs a backbone that can"):
        Encoder(build("resnet_nano", image_size=16)).attention(pictures())
    with pytest.raises(UsageError, match="no class token"):
        Encoder(vit(class_token=False, global_pool="avg")).attention(pictures())
    with pytest.raises(UsageError, match="image-size 16 or 20"):
        Encoder(vit(), image_size=18)
    with pytest.raises(UsageError, match=r"\[N, 3, H, W\]"):
        encoder.embed(torch.rand(2, 1, 16, 16))
    with pytest.raises(DataError, match=r"'no\.png': no such file"):
        encoder.embed(["no.png"])


def test_an_encoder_whose_numbers_are_not_finite_is_refused_when_loaded(tmp_path):
    backbone = vit()
    load(write(tmp_path / "encoder.safetensors", backbone))
    with torch.no_grad():
        next(p for n, p in backbone.net.named_parameters() if n == "norm.weight")[3] = float("nan")
    with pytest.raises(FileDamaged, match=r"not finite .* the first net.norm.weight"):
        load(write(tmp_path / "nan.safetensors", backbone))
    with pytest.raises(FileDamaged, match="deviation above 0"):
        load(write(tmp_path / "std.safetensors", std=(0.2, 0.0, 0.2)))
