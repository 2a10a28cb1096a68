"""Official checkpoints: read in their own layouts, they give the peer's outputs."""

from __future__ import annotations

import argparse
import json
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from timm.layers import SwiGLUPacked
from timm.models import beit as timm_beit
from timm.models import eva as timm_eva
from timm.models import swin_transformer as timm_swin
from timm.models import vision_transformer as timm_vit
from torch import nn

from nolabel.cli import main
from nolabel.encoders import load, load_text
from nolabel.encoders.convert.families import LAYOUTS
from nolabel.encoders.convert.official import import_file, save_imported
from nolabel.errors import DataError, FileDamaged, UsageError
from nolabel.methods.simmim import SimMIM
from nolabel.types import Batch, Clock

ORACLES = Path(__file__).parents[1] / "oracles"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


Z = torch.zeros(2, 2)  # stands for a head


def randomised(net, seed=0):
    """The network in evaluation mode, with every number drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in net.state_dict().items():
            if t.is_floating_point():
                t.normal_(0.0, 0.15, generator=generator)
                if "norm" in name or "bn" in name or "downsample.1" in name or "var" in name:
                    t.abs_().add_(0.5)
    return net.eval()


def vit(**changes):
    given = {**SMALL, "num_classes": 0, **changes}
    return randomised(timm.create_model("vit_tiny_patch16_224", **given))


def image(size=32, seed=1):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def prefixed(state, prefix):
    return {prefix + k: v for k, v in state.items()}


def head(prefix):
    return {
        prefix + "mlp.0.weight": torch.zeros(3, 3),
        prefix + "last_layer.weight_g": torch.ones(3, 1),
    }


def difference(encoder, x, expected):
    """Largest difference of the tokens, class token or pooled feature first."""
    with torch.no_grad():
        t = encoder.backbone.tokens(x)
    got = (
        t.patches
        if t.prefix is None or not t.prefix.shape[1]
        else torch.cat([t.prefix, t.patches], 1)
    )
    return float((got - expected).abs().max())


# ---- the official numbers, through the layout of the official files


def test_dino_training_checkpoint_gives_the_official_numbers_at_four_sizes(tmp_path):
    o = load_file(ORACLES / "dino_vit.safetensors")
    weights = {k[2:]: v for k, v in o.items() if k.startswith("w.")}
    teacher = {**prefixed(weights, "backbone."), **head("head.")}
    student = {k: v + 1.0 for k, v in teacher.items()}
    file = tmp_path / "checkpoint.pth"
    torch.save(
        {"student": prefixed(student, "module."), "teacher": teacher, "epoch": 3,
         "args": argparse.Namespace(arch="vit_small"), "dino_loss": {"center": torch.zeros(1, 3)}},
        file,
    )  # fmt: skip
    found = import_file(file, "dino", heads=3)
    assert found.branch == "teacher"
    assert set(found.left_out) == {"head.mlp.0.weight", "head.last_layer.weight_g"}
    net = found.encoder.backbone
    for size in ("native", "small", "large", "wide"):
        x = o[f"{size}.x"]
        with torch.no_grad():
            layers = net.layers(x, 2)
            torch.testing.assert_close(net.tokens(x).pooled, o[f"{size}.cls"], atol=1e-5, rtol=0)
            torch.testing.assert_close(net.attention(x), o[f"{size}.attention"], atol=1e-5, rtol=0)
        for t, expected in zip(layers, o[f"{size}.last2"], strict=True):
            both = torch.cat([t.prefix, t.patches], 1)
            torch.testing.assert_close(both, expected, atol=1e-5, rtol=0)
    other = import_file(file, "dino", heads=3, branch="student")
    assert other.branch == "student"
    assert torch.equal(other.encoder.backbone.net.cls_token, net.net.cls_token + 1.0)


def test_clip_gives_the_official_numbers_of_both_towers(tmp_path):
    o = load_file(ORACLES / "clip.safetensors")
    weights = {k[2:]: v for k, v in o.items() if k.startswith("w.")}
    weights |= {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16)}
    file = tmp_path / "clip.pt"
    torch.save(weights, file)
    found = import_file(file, "clip", text_heads=4)
    assert found.encoder.image_size == 32 and found.text is not None
    from nolabel.backbones.text import SharedSpace

    shared = SharedSpace(**found.text[0])
    shared.load_state_dict(found.text[1])
    with torch.no_grad():
        features = found.encoder.backbone.tokens(o["images"]).pooled
        images, texts = shared.image(features), shared.tower(o["tokens"])
        logits = shared.scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    torch.testing.assert_close(images, o["image_features"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(texts, o["text_features"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, o["logits_per_image"], atol=1e-4, rtol=1e-5)


def test_simmims_swin_gives_the_official_loss(tmp_path, monkeypatch):
    o = load_file(ORACLES / "simmim_swin.safetensors")
    weights = {k[2:]: v for k, v in o.items() if k.startswith("w.")}
    file = tmp_path / "swin.pth"
    torch.save({"model": weights, "epoch": 1}, file)
    found = import_file(file, "simmim", image_size=32)
    method = SimMIM(found.encoder.backbone, SimMIM.Options(unit=8))
    with torch.no_grad():
        method.mask_token.copy_(weights["encoder.mask_token"].reshape(method.mask_token.shape))
        method.decoder.weight.copy_(
            weights["decoder.0.weight"].reshape(method.decoder.weight.shape)
        )
        method.decoder.bias.copy_(weights["decoder.0.bias"])
        monkeypatch.setattr(method, "draw_masks", lambda x: o["mask"].flatten(1).bool())
        loss = method.step(Batch(views={"image": o["x"][None]}), Clock(0, 10, 1)).loss
    torch.testing.assert_close(loss, o["loss"], atol=1e-5, rtol=1e-5)


# ---- every family against a peer with random weights


def plain(family):
    """ViTs whose official names are timm's, in the wrapping of each family."""
    net = vit()
    own = net.state_dict()
    files = {
        "ibot": {"state_dict": {**own, "masked_embed": torch.zeros(1, 48)}},
        "dinov2": {"teacher": {
            **prefixed(own, "backbone."), **head("dino_head."), **head("ibot_head."),
        }},
        "mae": {"model": {**own, "mask_token": Z, "decoder_embed.weight": Z,
                          "decoder_blocks.0.norm1.bias": torch.zeros(2)},
                "args": argparse.Namespace(model="mae_vit_base")},
        "mocov3": {"state_dict": {**prefixed(own, "module.base_encoder."),
                                  "module.base_encoder.head.0.weight": torch.zeros(2, 2),
                                  "module.base_encoder.head.1.running_mean": torch.zeros(2),
                                  "module.momentum_encoder.cls_token": torch.zeros(1, 1, 48),
                                  "module.predictor.0.weight": torch.zeros(2, 2)}},
    }  # fmt: skip
    return files[family], net


def interpolated(net, size, family):
    """timm's network of another size, its positions resampled by hand as the family does."""
    pos = net.pos_embed.detach()
    old, new = pos[:, 1:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2), size // 8
    if family in ("ibot", "dinov2"):
        scale = ((new + 0.1) / 4, (new + 0.1) / 4)
        out = F.interpolate(old, scale_factor=scale, mode="bicubic")
    else:
        out = F.interpolate(old, size=(new, new), mode="bicubic", antialias=family == "mocov3")
    other = vit(img_size=size)
    state = net.state_dict()
    state["pos_embed"] = torch.cat([pos[:, :1], out.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("family", ["ibot", "dinov2", "mae", "mocov3"])
def test_a_vit_equals_timms_at_its_own_and_other_sizes(family, tmp_path):
    value, peer = plain(family)
    torch.save(value, tmp_path / "file.pth")
    encoder = import_file(tmp_path / "file.pth", family, heads=3).encoder
    assert encoder.backbone.positions == LAYOUTS[family].positions
    for size in (32, 48, 16):
        x = image(size)
        net = peer if size == 32 else interpolated(peer, size, family)
        with torch.no_grad():
            assert difference(encoder, x, net.forward_features(x)) <= 1e-5, size
    chosen = import_file(tmp_path / "file.pth", family, heads=3, positions="timm").encoder
    net = interpolated(peer, 48, "mocov3")  # timm's own convention
    with torch.no_grad():
        assert difference(chosen, image(48), net.forward_features(image(48))) <= 1e-5


def test_mocov3s_small_vit_has_twelve_heads(tmp_path):
    net = timm.create_model(
        "vit_small_patch16_224", img_size=32, depth=1, num_heads=12, num_classes=0
    )
    torch.save(
        {"state_dict": prefixed(net.state_dict(), "module.base_encoder.")}, tmp_path / "f.pth"
    )
    encoder = import_file(tmp_path / "f.pth", "mocov3").encoder
    assert encoder.backbone.net.blocks[0].attn.num_heads == 12
    torch.save({"state_dict": net.state_dict()}, tmp_path / "g.pth")
    assert (
        import_file(tmp_path / "g.pth", "ibot").encoder.backbone.net.blocks[0].attn.num_heads == 6
    )


@pytest.mark.parametrize(("registers", "gated"), [(0, False), (4, False), (0, True)])
def test_dinov2_in_chunks_with_layer_scale_registers_and_gated_mlps_equals_timm(
    registers, gated, tmp_path
):
    changes = {"init_values": 1e-5}
    if registers:
        changes |= {"reg_tokens": registers, "no_embed_class": True}
    if gated:
        changes |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 2 * 128 / 48}
    peer = vit(**changes)
    official = {k: v.clone() for k, v in peer.state_dict().items()}
    official["mask_token"] = torch.zeros(1, 48)
    if registers:
        official["register_tokens"] = official.pop("reg_token")
        place = torch.randn(1, 1, 48, generator=torch.Generator().manual_seed(2))
        official["pos_embed"] = torch.cat([place, official["pos_embed"]], 1)
    if gated:
        swaps = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
        for old, new in swaps.items():
            official = {k.replace(old, new): v for k, v in official.items()}
    # timm's own reading of the official file is the peer.
    peer.load_state_dict(timm_vit.checkpoint_filter_fn(dict(official), peer))
    chunked = {re.sub(r"^blocks\.(\d)\.", r"blocks.\1.\1.", k): v for k, v in official.items()}
    torch.save({"teacher": prefixed(chunked, "backbone.")}, tmp_path / "file.pth")
    encoder = import_file(tmp_path / "file.pth", "dinov2", heads=3).encoder
    assert encoder.backbone.positions == ("timm" if registers else "dino")
    with torch.no_grad():
        assert difference(encoder, image(), peer.forward_features(image())) <= 1e-5
        if registers:  # where timm's convention is the official one
            other = vit(**changes, img_size=48)
            other.load_state_dict(timm_vit.checkpoint_filter_fn(dict(official), other))
            assert difference(encoder, image(48), other.forward_features(image(48))) <= 1e-5


@pytest.mark.parametrize("shared", [True, False])
def test_beit_equals_timms_at_its_own_and_another_size(shared, tmp_path):
    given = {**SMALL, "init_values": 0.1, "use_abs_pos_emb": False, "global_pool": "token",
             "use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared,
             "num_classes": 0}  # fmt: skip
    make = partial(timm.create_model, "beit_base_patch16_224")
    peer = randomised(make(**given))
    official = {**peer.state_dict(), "mask_token": Z, "lm_head.weight": Z,
                "lm_head.bias": torch.zeros(2)}  # fmt: skip
    index = "rel_pos_bias.relative_position_index"
    official[index if shared else "blocks.0.attn.relative_position_index"] = torch.zeros(
        17, 17
    ).long()
    torch.save({"model": official}, tmp_path / "file.pth")
    found = import_file(tmp_path / "file.pth", "beit", heads=3)
    encoder = found.encoder
    assert (encoder.mean, encoder.std) == ((0.5,) * 3, (0.5,) * 3)
    x = image()
    with torch.no_grad():
        expected = peer.forward_features(x)
        assert difference(encoder, x, expected) <= 1e-5
        pooled = encoder.backbone.tokens(x).pooled
        torch.testing.assert_close(pooled, expected[:, 1:].mean(1), atol=1e-5, rtol=0)
        last = encoder.backbone.layers(x, 2)[-1]
        torch.testing.assert_close(last.patches, expected[:, 1:], atol=1e-5, rtol=0)
        a = encoder.backbone.attention(x)
        values = encoder.backbone.facets(x, -1, "value")
    torch.testing.assert_close(a.sum(-1), torch.ones(2, 3, 17))
    # The last block by hand: attention times values, through the projection.
    block = peer.blocks[-1]
    with torch.no_grad():
        before = encoder.backbone.facets(x, 0, "token")
        before = torch.cat([before.prefix, before.patches], 1)
        v = torch.cat([values.prefix, values.patches], 1).unflatten(-1, (3, 16)).transpose(1, 2)
        mixed = block.attn.proj((a @ v).transpose(1, 2).flatten(2))
        y = before + block.gamma_1 * mixed
        y = peer.norm(y + block.gamma_2 * block.mlp(block.norm2(y)))
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
    classes = import_file(tmp_path / "file.pth", "beit", heads=3, pool="class").encoder
    with torch.no_grad():
        torch.testing.assert_close(
            classes.backbone.tokens(x).pooled, expected[:, 0], atol=1e-5, rtol=0
        )

    larger = import_file(tmp_path / "file.pth", "beit", heads=3, image_size=48).encoder
    other = make(**{**given, "img_size": 48}).eval()
    state = {k: v for k, v in official.items() if k != "mask_token" and not k.startswith("lm_head")}
    other.load_state_dict(timm_beit.checkpoint_filter_fn(state, other))
    with torch.no_grad():
        assert difference(larger, image(48), other.forward_features(image(48))) <= 1e-5
    with pytest.raises(UsageError, match="--image-size 48"):
        encoder.backbone.tokens(image(48))
    save_imported(found, tmp_path / "saved", family="beit")
    saved = load(tmp_path / "saved", image_size=48)
    with torch.no_grad():
        assert difference(saved, image(48), other.forward_features(image(48))) <= 1e-5


def test_eva_equals_timms_own_network_for_it(tmp_path):
    peer = randomised(
        timm_eva.Eva(**SMALL, num_classes=0, global_pool="token", use_rot_pos_emb=False,
                     mlp_ratio=4.5, qkv_fused=True)
    )  # fmt: skip
    for block in peer.blocks:
        block.attn.k_bias.zero_()  # the key has no bias
    official = {
        **peer.state_dict(),
        "mask_token": torch.zeros(1, 1, 48),
        "lm_head.weight": torch.zeros(2, 48),
    }
    torch.save({"module": official}, tmp_path / "file.pt")
    encoder = import_file(tmp_path / "file.pt", "eva", heads=3).encoder
    with torch.no_grad():
        assert difference(encoder, image(), peer.forward_features(image())) <= 1e-5


def test_swin_of_simmim_and_ibot_equals_timms(tmp_path):
    given = {"img_size": 32, "patch_size": 2, "embed_dim": 24, "depths": [2, 2],
             "num_heads": [2, 4],
             "window_size": 4, "num_classes": 0}  # fmt: skip
    peer = randomised(timm.create_model("swin_tiny_patch4_window7_224", **given))
    official = {
        k.replace("layers.1.downsample", "layers.0.downsample"): v
        for k, v in peer.state_dict().items()
    }
    official["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    peer.load_state_dict(timm_swin.checkpoint_filter_fn(dict(official), peer))
    torch.save({"model": prefixed(official, "encoder.")}, tmp_path / "simmim.pth")
    torch.save({"teacher": prefixed(official, "backbone.")}, tmp_path / "ibot.pth")
    for family in ("simmim", "ibot"):
        encoder = import_file(tmp_path / f"{family}.pth", family, image_size=32).encoder
        for size in (32, 64):
            x = image(size)
            other = (
                peer
                if size == 32
                else timm.create_model(
                    "swin_tiny_patch4_window7_224", **{**given, "img_size": size}
                ).eval()
            )
            other.load_state_dict(peer.state_dict())
            with torch.no_grad():
                expected = other.forward_features(x).flatten(1, 2)
            assert difference(encoder, x, expected) <= 1e-5, (family, size)


RESNETS = {
    "dino": lambda s: {"teacher": {**prefixed(s, "backbone."), **head("head.")}},
    "mocov2": lambda s: {"state_dict": {
        **prefixed(s, "module.encoder_q."), "module.encoder_q.fc.0.weight": Z,
        **prefixed(s, "module.encoder_k."), "module.queue": Z, "module.queue_ptr": Z,
    }},
    "mocov3": lambda s: {"state_dict": {
        **prefixed(s, "module.base_encoder."), "module.base_encoder.fc.0.weight": Z,
        "module.predictor.0.weight": Z,
    }},
    "byol": lambda s: {"state_dict": {**prefixed(s, "online_encoder."), "predictor.0.weight": Z}},
    "swav": lambda s: {
        **prefixed(s, "module."), "module.projection_head.0.weight": Z,
        "module.prototypes.weight": Z,
    },
    "barlow": lambda s: {"model": {
        **prefixed(s, "module.backbone."), "module.projector.0.weight": Z,
        "module.bn.running_mean": Z,
    }},
    "simclr": lambda s: {"state_dict": {**s, "fc.weight": Z, "fc.bias": Z}},
}  # fmt: skip


@pytest.mark.parametrize("family", list(RESNETS))
def test_a_resnet_equals_torchvisions_at_its_own_and_another_size(family, tmp_path):
    import torchvision

    peer = torchvision.models.resnet18() if family != "swav" else torchvision.models.resnet50()
    peer.fc = nn.Identity()
    randomised(peer)
    torch.save(RESNETS[family](peer.state_dict()), tmp_path / "file.pth")
    encoder = import_file(tmp_path / "file.pth", family).encoder
    for size in (64, 96):
        with torch.no_grad():
            got, expected = encoder.backbone.tokens(image(size)).pooled, peer(image(size))
        scale = float(expected.abs().max())
        assert float((got - expected).abs().max()) <= 1e-5 * max(scale, 1.0)


def test_clip_with_the_exact_gelu_equals_open_clips_network(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    peer = open_clip.CLIP(
        64,
        {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8},
        {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
        output_dict=True,
    ).eval()
    save_file(
        {k: v.contiguous() for k, v in peer.state_dict().items()}, tmp_path / "clip.safetensors"
    )
    found = import_file(tmp_path / "clip.safetensors", "clip", text_heads=2, quick_gelu=False)
    paths = save_imported(found, tmp_path / "saved", family="clip")
    assert [p.name for p in paths] == ["encoder.safetensors", "tokenizer.json", "text.safetensors"]
    encoder, text = load(tmp_path / "saved"), load_text(tmp_path / "saved")
    words = ["a photo of a dog", "Two red birds, flying!"]
    with torch.no_grad():
        ids = open_clip.get_tokenizer("ViT-B-32")(words)
        torch.testing.assert_close(
            text.embed(words), peer.encode_text(ids, normalize=True), atol=1e-5, rtol=0
        )
        for size in (32,):
            features = encoder.forward(image(size))
            expected = peer.encode_image(image(size), normalize=True)
            torch.testing.assert_close(text.project(features), expected, atol=1e-5, rtol=0)


# ---- the verb, and what cannot be read


def test_the_verb_writes_an_encoder_that_everything_takes(tmp_path, capsys):
    value, peer = plain("mae")
    torch.save(value, tmp_path / "mae.pth")
    out, result = tmp_path / "mae", tmp_path / "result.json"
    given = ["import", str(tmp_path / "mae.pth"), "--as", "mae", "--heads", "3", "--out", str(out)]
    assert main([*given, "--json", str(result)]) == 0
    printed = capsys.readouterr().out
    assert "left out" in printed and "mask_token" in printed and f"--encoder {out}" in printed
    numbers = json.loads(result.read_text())
    assert numbers["positions"] == "mae" and numbers["dim"] == 48
    encoder = load(out)
    with torch.no_grad():
        assert difference(encoder, image(), peer.forward_features(image())) <= 1e-5
    assert main(given) == 2  # it is there already
    assert "--overwrite" in capsys.readouterr().err
    assert main([*given, "--overwrite"]) == 0


def test_missing_left_over_and_misshapen_tensors_are_named(tmp_path):
    value, _ = plain("mae")
    cases = {
        "missing: blocks.1.mlp.fc2.bias": lambda s: s.pop("blocks.1.mlp.fc2.bias"),
        "left over: blocks.0.attn.extra": lambda s: s.update(
            {"blocks.0.attn.extra": torch.zeros(2)}
        ),
        "of another shape: norm.weight": lambda s: s.update({"norm.weight": torch.zeros(47)}),
    }
    for message, spoil in cases.items():
        state = dict(value["model"])
        spoil(state)
        torch.save({"model": state}, tmp_path / "file.pth")
        with pytest.raises(DataError, match=message):
            import_file(tmp_path / "file.pth", "mae", heads=3)


def test_a_file_of_another_family_is_refused_with_the_names_it_has(tmp_path):
    value, _ = plain("mae")
    torch.save(value, tmp_path / "mae.pth")
    with pytest.raises(DataError, match="Is --as right"):
        import_file(tmp_path / "mae.pth", "mocov2")
    torch.save({"weights": {"a": torch.zeros(1)}}, tmp_path / "odd.pth")
    with pytest.raises(DataError, match="top level holds: weights"):
        import_file(tmp_path / "odd.pth", "dino")
    with pytest.raises(UsageError, match="Did you mean 'dinov2'"):
        import_file(tmp_path / "mae.pth", "dinov")
    with pytest.raises(UsageError, match="Give --heads"):
        import_file(tmp_path / "mae.pth", "mae")
    with pytest.raises(UsageError, match="has no branch 'student'"):
        import_file(tmp_path / "mae.pth", "mae", heads=3, branch="student")


class Payload:
    """What a foreign pickle may hold."""

    def __reduce__(self):
        import os

        return os.system, ("true",)


def test_pickles_with_objects_torchscript_and_damaged_files_are_refused(tmp_path):
    file = tmp_path / "file.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "evil": Payload()}, file)
    with pytest.raises(FileDamaged, match="could run code"):
        import_file(file, "mae")
    whole = tmp_path / "whole.pth"
    torch.save(plain("mae")[0], whole)
    data = whole.read_bytes()
    for part in (data[: len(data) // 2], b"", b"not a checkpoint at all, only words"):
        file.write_bytes(part)
        with pytest.raises(FileDamaged):
            import_file(file, "mae", heads=3)
    save_file({"a": torch.zeros(8)}, tmp_path / "a.safetensors")
    file.write_bytes((tmp_path / "a.safetensors").read_bytes()[:-9])
    with pytest.raises(FileDamaged, match="truncated"):
        import_file(file, "mae")
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(file))
    with pytest.raises(FileDamaged, match="TorchScript"):
        import_file(file, "clip")
    with pytest.raises(UsageError, match="does not exist"):
        import_file(tmp_path / "none.pth", "mae")


@pytest.mark.parametrize("prefix", [
    "_orig_mod.module.", "backbone._orig_mod.", "module.backbone._orig_mod.",
    "_fsdp_wrapped_module.",
])  # fmt: skip
def test_names_of_wrappers_are_removed_wherever_they_stand(tmp_path, prefix):
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1)
    wrapped = {
        prefix + name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): tensor
        for name, tensor in net.state_dict().items()
    }
    torch.save({"teacher": wrapped}, tmp_path / "c.pth")
    read = import_file(tmp_path / "c.pth", "dino").encoder.backbone.state_dict()
    for name, tensor in net.state_dict().items():
        assert any(k.endswith(name) and torch.equal(v, tensor) for k, v in read.items())


def test_plain_values_of_numpy_and_paths_are_skipped_and_objects_still_refused(tmp_path):
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1)
    values = {
        "best": np.float64(71.2), "history": np.arange(5.0), "out": Path("runs"),
        "count": np.int32(3),
    }  # fmt: skip
    torch.save({"teacher": net.state_dict(), **values}, tmp_path / "c.pth")
    assert import_file(tmp_path / "c.pth", "dino").branch == "teacher"
    torch.save({"teacher": net.state_dict(), "f": os.path.join}, tmp_path / "f.pth")
    with pytest.raises(FileDamaged, match="could run code"):
        import_file(tmp_path / "f.pth", "dino")


def test_averaged_weights_beside_the_plain_ones_are_told_and_can_be_chosen(tmp_path):
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1)
    plain = net.state_dict()
    average = {f"module.{name}": tensor + 1 for name, tensor in plain.items()}
    file = tmp_path / "c.pth"
    torch.save({"model": plain, "model_ema": average, "optimizer": {"step": 3}}, file)
    found = import_file(file, "mae")
    assert (found.branch, found.others) == ("model", ("model_ema",))
    chosen = import_file(file, "mae", branch="model_ema")
    assert chosen.others == ("model",)
    a, b = (f.encoder.backbone.state_dict() for f in (found, chosen))
    name = next(k for k in a if k.endswith("patch_embed.proj.bias"))
    assert torch.allclose(a[name] + 1, b[name])
    with pytest.raises(UsageError, match="no branch 'ema'. It has: model, model_ema"):
        import_file(file, "mae", branch="ema")
