"""Oracle features score near the maximum and random features at chance, for protocols whose own
tests do not show it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nolabel as nl
from nolabel.data.sources.arrays import Arrays
from nolabel.encoders import Encoder
from nolabel.encoders.features import Features
from nolabel.protocols import attention, copies, robustness
from nolabel.protocols.attention import FigureSplits, run_attention
from nolabel.protocols.copies import Copies, run_copies
from nolabel.protocols.data.figures import Figures, Pairs
from nolabel.protocols.finetune import run_finetune
from nolabel.protocols.robustness import run_robustness
from nolabel.protocols.zeroshot import retrieval_rows

VIT = nl.load("random:vit_pico")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def sheets(n):
    return [np.zeros((32, 32, 3), np.uint8) for _ in range(n)]


@pytest.mark.parametrize("knows", [True, False])
def test_copies(knows, monkeypatch):
    originals, rest = 40, 160
    own = torch.randn(originals + rest, 24)
    # In the order of run_copies: the images for whitening, the database, the copies of each attack.
    tables = [torch.randn(100, 24), own, *[own[:originals]] * 2]
    if not knows:
        tables[2:] = [torch.randn(originals, 24) for _ in range(2)]
    given = iter(tables)

    def described(encoder, images, *_):
        z = next(given)
        assert len(z) == len(images)
        hashes = np.stack([copies.perceptual_hash(image) for image in images])
        return z + 0.05 * torch.randn(z.shape), hashes

    monkeypatch.setattr(copies, "describe", described)
    attacks = {k: (sheets(originals), np.arange(originals)) for k in ("a", "b")}
    report = run_copies(VIT, None, Copies("set", attacks, (sheets(200),), sheets(100)))
    if knows:
        assert report.best["value"] > 0.99
    else:
        places = [1.0] + [0.5 / r for r in range(2, copies.LIST_LENGTH + 1)]  # AP if found there
        assert report.best["value"] == pytest.approx(sum(places) / 200, abs=0.035)


class WithAttention(Encoder):
    """An encoder whose attention is the next rows of a table [N, heads, P]."""

    def __init__(self, table):
        super().__init__(VIT.backbone, name=VIT.name)
        self.table, self.at = table, 0

    def attention(self, x, layer=-1, **_):
        self.at += len(x)
        return self.table[self.at - len(x) : self.at]


class Masks(Pairs):
    """Black images with the given masks."""

    def __init__(self, masks):
        self.masks = masks

    def __len__(self):
        return len(self.masks)

    def __getitem__(self, i):
        return np.zeros((32, 32, 3), np.uint8), self.masks[i]


@pytest.mark.parametrize("knows", [True, False])
def test_attention(knows):
    g = torch.Generator().manual_seed(0)
    cell = VIT.backbone.patch_size
    side = 32 // cell
    figures = torch.rand(80, side, side, generator=g) < 0.4
    figures[:, 0, 0], figures[:, 0, 1] = True, False
    masks = figures.repeat_interleave(cell, 1).repeat_interleave(cell, 2).numpy().astype(np.uint8)
    if knows:
        table = figures.flatten(1)[:, None].float().expand(-1, 3, -1) + 1e-6
    else:
        table = torch.rand(80, 3, side * side, generator=g)
    table = table / table.sum(-1, keepdim=True)
    report = run_attention(
        WithAttention(table),
        None,
        FigureSplits("set", *(Figures("masks", Masks(m)) for m in (masks[:40], masks[40:]))),
    )
    if knows:
        assert report.best["value"] > attention.Options().mass - 0.1
    else:
        kept = np.mean([  # what share of the patches holds the mass of random attention
            (np.cumsum(np.sort(t)[::-1]) <= attention.Options().mass).mean()
            for t in table[:, 0].numpy()
        ])  # fmt: skip
        share = 0.4
        chance = share * kept / (share + kept - share * kept)
        assert report.best["value"] == pytest.approx(chance, abs=0.06)


@pytest.mark.parametrize("knows", [True, False])
def test_robustness(knows, monkeypatch):
    y, t = np.repeat(np.arange(4), 30), np.repeat(np.arange(4), 100)

    def features(labels):
        z = F.one_hot(torch.from_numpy(labels), 4).float() if knows else torch.zeros(len(labels), 4)
        z = z + (0.05 if knows else 1.0) * torch.randn(z.shape)
        return Features(z, torch.from_numpy(labels), (), torch.arange(len(labels)))

    def source(labels):
        pixels = np.zeros((len(labels), 32, 32, 3), np.uint8)
        return Arrays("set", pixels, labels, ("a", "b", "c", "d"))

    monkeypatch.setattr(robustness, "extract", lambda e, s, **_: features(s.labels))
    report = run_robustness(
        VIT, source(y), source(t), features=(features(y), features(t)), epochs=10,
        corruptions=("noise", "blur"), strengths=(5,),
    )  # fmt: skip
    shares = [r["value"] for r in report.rows if r["metric"] == "top1"]
    assert len(shares) == 3
    if knows:
        assert min(shares) > 0.99
        assert next(r["value"] for r in report.rows if r["metric"] == "kept") > 0.99
    else:
        assert all(abs(v - 0.25) < 0.09 for v in shares)  # four standard errors


def test_finetuning_on_labels_of_chance_stays_at_chance():
    rng = np.random.default_rng(0)

    def source(n):
        pixels = rng.integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)
        return Arrays("set", pixels, rng.integers(0, 3, n), ("a", "b", "c"))

    encoder = nl.load("random:resnet_nano")
    report = run_finetune(encoder, source(60), source(150), epochs=2)
    assert report.best["low"] < 1 / 3 < report.best["high"]


def test_zero_shot_with_equal_vectors_is_right_everywhere():
    images = F.normalize(torch.randn(120, 16), dim=1)
    texts = [f"text {i}" for i in range(120)]
    rows = retrieval_rows(images, images, texts)
    assert rows and all(r["value"] == 1.0 for r in rows)
