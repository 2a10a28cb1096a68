"""The capabilities of a method are its base classes; names of members have no meaning."""

from __future__ import annotations

import pytest
import torch

import nolabel as nl
from nolabel import methods
from nolabel.encoders.file import read_header
from nolabel.methods.base import Contrastive, HasPrototypes, Method
from nolabel.methods.capabilities import Inpaints, Reconstructs
from nolabel.testing import check_method
from own_code import MEAN_COLOUR, changed

QUICK = {"steps": 2, "batch_size": 8, "precision": "fp32", "workers": 0, "image_size": 32,
         "backbone": "vit_pico", "device": "cpu", "quiet": True}  # fmt: skip

# Helpers with common names.
HELPERS = changed(
    MEAN_COLOUR,
    "        self.head =",
    """\
        self.teacher, self.prototypes, self.centre = nn.Identity(), 7, 0.0
        self.teacher.module = backbone
        self.head =""",
)
HELPERS = changed(
    HELPERS,
    "    @property",
    """\
    def embed(self, batch):
        raise AssertionError("embed is a helper of its own")

    features = compare = tokens = reconstruct = swapped = inpaint = embed

    @property""",
)

OWN = '''
from dataclasses import dataclass
import torch.nn.functional as F
from nolabel.methods.base import Contrastive
from nolabel.nn.contrastive import nt_xent
from nolabel.types import Step
from nolabel.views.plan import View, ViewPlan
from torch import nn


class Own(Contrastive):
    """Two views of an image agree."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        temperature: float = 0.2  # of the similarities

    def __init__(self, backbone, options):
        super().__init__(backbone, options)
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, 8)

    @classmethod
    def views(cls, options, image_size):
        return ViewPlan(views=(View(name="view", count=2, size=image_size, scale=(0.3, 1.0)),))

    def features(self, batch):
        x = batch.views["view"]
        return (self.backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2]),)

    def compare(self, features, clock):
        (h,) = features
        a, b = F.normalize(self.head(h), dim=-1)
        return Step(nt_xent(a, b, self.options.temperature), {}, features=h[0].detach())

    @property
    def encoder(self):
        return self.backbone
'''


@pytest.fixture
def file(tmp_path):
    """Writes a method's file and returns its name."""

    def write(text, name):
        (tmp_path / f"{name.lower()}.py").write_text(text)
        return f"{tmp_path / name.lower()}.py:{name}"

    return write


def weights(folder):
    return nl.load(folder).backbone.state_dict()


def test_helpers_with_common_names_change_nothing_under_accumulation(file, photos, tmp_path):
    name = file(HELPERS, "Mine")
    whole, parts = (
        nl.pretrain(name, data=str(photos), out=tmp_path / f"run{n}", accumulate=n, lr=0.1,
                    optimiser="sgd", **QUICK)
        for n in (1, 2)
    )  # fmt: skip
    ours, theirs = weights(parts.folder), weights(whole.folder)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=2e-6)
    assert read_header(whole.folder / "encoder.safetensors")["branch"] == "encoder"


def test_a_users_contrastive_method_compares_all_micro_batches(file, photos, tmp_path):
    name = file(OWN, "Own")
    check_method(name)
    whole, parts = (
        nl.pretrain(name, data=str(photos), out=tmp_path / f"run{n}", accumulate=n, lr=0.1,
                    optimiser="sgd", **QUICK)
        for n in (1, 4)
    )  # fmt: skip
    ours, theirs = weights(parts.folder), weights(whole.folder)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("return (self.backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2]),)",
         "h = self.backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2])\n"
         "        return (h - h.mean(1, keepdim=True),)",
         "depend on the rest of its batch"),
        ("    def features(self, batch):",
         "    def step(self, batch, clock):\n"
         "        return self.compare(self.features(batch), clock)\n\n"
         "    def features(self, batch):",
         "no `step` of its own"),
        ("    @dataclass", '    inputs = frozenset({"tokens"})\n\n    @dataclass', "inputs are"),
        ("    @dataclass", '    inputs = frozenset({"teacher"})\n\n    @dataclass', "names it"),
        ("    @dataclass", '    inputs = frozenset({"text"})\n\n    @dataclass', "LearnsFromText"),
    ],
)  # fmt: skip
def test_the_contract_catches_a_broken_contrastive_method(file, good, bad, message):
    with pytest.raises(AssertionError, match=message):
        check_method(file(changed(OWN, good, bad), "Own"))


def test_capabilities_of_the_built_in_methods():
    def of(capability):
        kinds = {name: methods.load(name) for name in methods.METHODS}
        assert all(issubclass(kind, Method) for kind in kinds.values())
        return {name for name, kind in kinds.items() if issubclass(kind, capability)}

    assert of(Contrastive) == {"simclr", "triplet", "mocov3", "clip", "siglip", "barlow"}
    assert of(HasPrototypes) == {"swav", "deepclusterv2", "dino", "ibot", "dinov2"}
    assert of(Inpaints) == {"mae", "simmim"}
    assert of(Reconstructs) == {"autoencoder", "vqvae", "dvae"}


def test_a_stored_dino_run_keeps_its_meaning():
    switches = {"teacher": "momentum", "centring": "centre", "loss": "cross-entropy",
                "predictor": False}  # fmt: skip
    plain = methods.upgrade_config({"method": "dino", "options": {"prototypes": 8, **switches}})
    assert plain == {"method": "dino", "options": {"prototypes": 8}}
    other = {"prototypes": 8, **switches, "centring": "none"}
    ablated = methods.upgrade_config({"method": "dino", "options": other})
    assert ablated == {"method": "dino-ablated", "options": other}
    assert methods.load("dino-ablated").Options(**other).centring == "none"
    mae = {"method": "mae", "options": {"mask_ratio": 0.5}}
    assert methods.upgrade_config(mae) == mae
