"""Every backbone keeps the contract; so does a user's own, and a broken one is caught."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from nolabel import backbones
from nolabel.backbones.own import register
from nolabel.errors import UsageError
from nolabel.testing import check_backbone

SMALL = [n for n in backbones.PRESETS if n.endswith(("pico", "nano", "micro", "mini"))]


@pytest.mark.parametrize("name", SMALL)  # pixels is a baseline: its patches have another width
def test_small_backbones_keep_the_contract(name):
    check_backbone(name)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "beitv2_base_patch16_224"])
def test_a_beit_keeps_the_contract(name):
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    check_backbone(backbones.build(name, image_size=32, patch_size=8, kwargs=small))


@pytest.mark.parametrize("channels", [1, 5])
def test_backbones_of_other_channels_keep_the_contract(channels):
    for name in ("vit_pico", "convnext_mini"):
        check_backbone(name, channels=channels)


class Convolutions(nn.Module):
    """A map [B, 24, H / 4, W / 4]."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 24, 3, 2, 1),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


class Pooled(Convolutions):
    """[B, 24]."""

    def forward(self, x):
        return self.body(x).mean((2, 3))


class Flat(nn.Module):
    """[B, 7], of images of one size."""

    def __init__(self, image_size=32):
        super().__init__()
        self.layer = nn.Linear(3 * image_size**2, 7)

    def forward(self, x):
        return self.layer(x.flatten(1))


@pytest.mark.parametrize(
    ("kind", "can", "dim", "patch"),
    [
        (Convolutions, {"any_size", "patches"}, 24, 4),
        (Pooled, {"any_size"}, 24, 32),
        (Flat, set(), 7, 32),
    ],
)
def test_networks_of_ones_own_keep_the_contract_and_can_what_they_show(kind, can, dim, patch):
    check_backbone(kind)
    net = backbones.build(register(kind), image_size=32)
    assert (net.can, net.dim, net.patch_size) == (frozenset(can), dim, patch)
    check_backbone(kind())  # a network that exists


def test_a_network_that_is_given_keeps_its_weights_and_is_copied():
    own = Convolutions()
    net = backbones.build(register(own), image_size=32)
    x = torch.randn(2, 3, 32, 32)
    own.eval(), net.eval()
    assert torch.equal(net.tokens(x).patches, own(x).flatten(2).transpose(1, 2))
    torch.nn.init.zeros_(net.net.body[0].weight)
    assert own.body[0].weight.abs().sum() > 0


def test_trying_a_network_moves_neither_statistics_nor_the_random_state():
    torch.manual_seed(3)
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    state = torch.get_rng_state()
    net = backbones.build(register(own), image_size=32)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training and all(m.training for m in net.modules())
    assert net.net[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x: x.mean((1, 2, 3)), r"gives shape \[2\]"),
        (lambda x: [x], "gives list"),
        (lambda x: x[:, :4] @ torch.ones(2, 2), "does not take images"),
    ],
)
def test_what_gives_no_features_is_refused_with_what_it_gave(broken, message):
    class Broken(nn.Module):
        def forward(self, x):
            return broken(x)

    with pytest.raises(UsageError, match=message):
        check_backbone(Broken)


def test_arguments_that_nobody_gives_are_named():
    class Needs(nn.Module):
        def __init__(self, width):
            super().__init__()

    with pytest.raises(UsageError, match="needs the arguments width"):
        check_backbone(Needs)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"forward": lambda self, x: self.body(x) + torch.randn(())}, "other features while"),
        ({"forward": lambda self, x: self.body(x) - self.body(x).mean(0)}, "depend on the others"),
        ({"forward": lambda self, x: self.body[:1](x)}, "does not reach"),
    ],
)
def test_the_contract_catches_a_broken_network(broken, message):
    kind = type("Broken", (Convolutions,), broken)
    with pytest.raises(AssertionError, match=message):
        check_backbone(kind)


@pytest.mark.parametrize("name", ["convnext_mini", "convnextv2_atto", "convnext_tiny_hnf"])
def test_a_convnext_embeds_as_timms_does_under_timms_names(name):
    small = {} if name == "convnext_mini" else {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    net = backbones.build(name, image_size=64, kwargs=small).eval()
    args = {k: v for k, v in net.kwargs.items() if k != "image_size"}
    other = timm.create_model(net.name, num_classes=0, **args).eval()
    other.load_state_dict(net.net.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), other(x))
        maps = net.layers(x, 4)
        features = other.forward_intermediates(x, intermediates_only=True)
    for own, timms in zip(maps[:3], features, strict=False):
        torch.testing.assert_close(own.patches, timms.flatten(2).transpose(1, 2))


def test_stochastic_depth_of_a_convnext_grows_over_its_blocks():
    net = backbones.build("convnext_mini", image_size=32).train()
    net.set_drop_path(0.4)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for b in net.compile_units]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    net.set_drop_path(0.0)
    assert not any(getattr(b.drop_path, "drop_prob", 0.0) for b in net.compile_units)


def normed(net, t):
    """The patches of the last layer through the network's final norm."""
    if net.name.startswith("resnet"):
        return t.patches
    if not net.name.startswith("convnext"):
        return net.net.norm(t.patches)
    first = net.net.norm_pre
    norm = net.net.head.norm if isinstance(first, nn.Identity) else first
    return norm(t.patches.transpose(1, 2).unflatten(2, t.grid)).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("name", [
    "vit_pico", "beit_base_patch16_224", "swin_nano", "convnext_mini", "convnext_tiny_hnf",
    "resnet_nano",
])  # fmt: skip
def test_the_token_facet_is_the_layer_before_the_final_norm_in_every_family(name):
    small = {
        "beit_base_patch16_224": {"embed_dim": 32, "depth": 2, "num_heads": 2},
        "convnext_tiny_hnf": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    }
    net = backbones.build(name, image_size=64, kwargs=small.get(name)).eval()
    x = torch.randn(2, net.channels, 64, 64)
    with torch.no_grad():
        before, after = net.facets(x, -1, "token"), net.layers(x, 1)[-1].patches
        torch.testing.assert_close(normed(net, before), after)
    # A ResNet has no final norm, and this BEiT norms the mean of the patches alone.
    assert torch.equal(before.patches, after) == name.startswith(("resnet", "beit"))
