"""Every method keeps the contract; so does a user's own, and a broken one is caught."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nolabel import methods
from nolabel.testing import TINY, check_method
from own_code import CONV_NET, MEAN_COLOUR, changed

HEADS = {"drop_path": 0.1, "warmup_teacher_temperature_epochs": 2}
BLOCKS = {**HEADS, "patch_prototypes": 24, "head_batch_norm": False, "freeze_last_layer": 1,
           "mask_ratio": (0.3, 0.5), "masked": 1.0}  # fmt: skip
# With these every option changes something in the few steps that the contract takes.
LIVE = {
    "vqvae": {"codes": 64},
    "dvae": {"warm": 0.5},
    "clip": {"chunk": 2},
    "siglip": {"chunk": 2},
    "beit": {"drop_path": 0.1},
    "eva": {"drop_path": 0.1},
    "distill": {"blur": 0.5},
    "simclr": {"blur": 0.5},
    "triplet": {"blur": 0.5},
    "mocov2": {"blur": 0.5},
    "mocov3": {"blur": (1.0, 0.1)},
    "barlow": {"blur": (1.0, 0.1)},
    "byol": {"blur": (1.0, 0.1)},
    "swav": {"blur": 0.5, "queue": 12},
    "deepclusterv2": {"images": 6, "blur": 0.5, "iterations": 1},
    "obow": {"blur": 0.5},
    "dino": {**HEADS, "teacher_temperature": 0.07, "norm_last_layer": False},
    "ibot": {**BLOCKS, "shared_head": False, "teacher_temperature": 0.07},
    "dinov2": {**BLOCKS, "drop_path": 0.3, "teacher_temperature": 0.07},
}  # fmt: skip
SMALL = {name: {**TINY[name], **LIVE.get(name, {})} for name in methods.METHODS}
OTHER = {
    "vqvae": {"revive": 0.0},
    "dvae": {"likelihood": "logit-laplace"},
    "ibot": {"local_size": 8, "mask_shape": "random", "chunk": 7},
    "dinov2": {"local_size": 8, "centring": "sinkhorn", "chunk": 7},
    "triplet": {"mining": "hard"},
    "swav": {"local_size": 8, "queue_from_epoch": 9},
    "deepclusterv2": {"local_size": 8, "images": 9, "clusters": 2, "iterations": 0},
    "obow": {"local_size": 8, "global_size": 16, "levels": 1},
    "dino": {"local_size": 8},
    "dino-ablated": {"local_size": 8, "teacher": "copy", "centring": "sinkhorn", "loss": "mse"},
    "clip": {"chunk": 4},
    "siglip": {"chunk": 4},
}

SMALL["dino-ablated"] = SMALL["dino"]


@pytest.mark.parametrize("name", [*methods.METHODS, "dino-ablated"])
def test_every_method_keeps_the_contract(name):
    check_method(name, options=SMALL[name], alternatives=OTHER.get(name))


def all_options(name):
    """Names of a method's options: that each one matters is shown on the ViT."""
    return {f.name for f in dataclasses.fields(methods.load(name).Options)}


ANY_BACKBONE = [
    "autoencoder", "vqvae", "dvae", "triplet", "simclr", "mocov2", "mocov3", "clip", "swav",
    "deepclusterv2", "obow", "barlow", "distill", "byol", "dino",
]  # fmt: skip


@pytest.mark.parametrize("name", ANY_BACKBONE)
def test_methods_for_any_backbone_keep_the_contract_on_a_resnet(name):
    options = {k: v for k, v in SMALL[name].items() if k != "drop_path"}
    check_method(name, options=options, backbone="resnet_nano", without=all_options(name))


@pytest.mark.parametrize("name", ["dino", "simclr", "simmim", "ibot"])
def test_methods_for_a_swin_keep_the_contract_on_one(name):
    without = all_options(name) - {"drop_path"}
    check_method(name, options=SMALL[name], backbone="swin_nano", without=without)


def test_a_users_own_method_keeps_the_contract(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MEAN_COLOUR)
    check_method(f"{file}:Mine")


@pytest.mark.parametrize("name", ["simclr", "dino"])
def test_methods_for_any_backbone_keep_the_contract_on_a_network_of_ones_own(name, tmp_path):
    (tmp_path / "net.py").write_text(CONV_NET)
    options = {**SMALL[name], **({"drop_path": 0.0} if name == "dino" else {})}
    backbone = f"{tmp_path / 'net.py'}:Net"
    check_method(name, options=options, backbone=backbone, without=all_options(name))


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("self.options.weight * loss", "loss", "option weight"),
        ("self.head = nn.Linear", "self.unused = nn.Linear(2, 2)\n        self.head = nn.Linear",
         "does not reach"),
        ("h = self.backbone(x)", "h = self.backbone(x).detach()", "does not reach"),
        ("loss = (", "self.calls = getattr(self, 'calls', 0) + 1\n        loss = self.calls * (",
         "became"),
    ],
)  # fmt: skip
def test_the_contract_catches_a_broken_method(tmp_path, good, bad, message):
    file = tmp_path / "broken.py"
    file.write_text(changed(MEAN_COLOUR, good, bad))
    with pytest.raises(AssertionError, match=message):
        check_method(f"{file}:Mine")


def test_a_bare_ten_line_loop_trains_a_method():
    from nolabel.backbones import build
    from nolabel.methods.simclr import SimCLR
    from nolabel.types import Batch, Clock

    torch.manual_seed(0)
    method = SimCLR(build("resnet_nano", image_size=32), SimCLR.Options(hidden=16, projection=8))
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-3)
    batch = Batch(views={"view": torch.randn(2, 8, 3, 32, 32)})
    losses = []
    for step in range(12):
        clock = Clock(step, 12, 4)
        loss = method.step(batch, clock).loss
        loss.backward()
        method.before_update(clock)
        optimiser.step()
        optimiser.zero_grad()
        method.after_update(clock)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
