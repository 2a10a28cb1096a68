"""Protocols agree with the field's own code, and their figures mean what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nolabel.backbones import build
from nolabel.data.open import open_source
from nolabel.data.source import Subset
from nolabel.data.sources.arrays import Arrays
from nolabel.data.sources.items import Items
from nolabel.encoders import Encoder
from nolabel.encoders.features import extract
from nolabel.errors import DataError, UsageError
from nolabel.protocols._scores import match_labels, wilson
from nolabel.protocols.compare import compare
from nolabel.protocols.knn import knn_predict, run_knn
from nolabel.protocols.linear import fit_heads, run_linear, score_heads
from nolabel.protocols.run import PROTOCOLS, evaluate, options_of
from nolabel.protocols.sets import open_sets

ORACLE = Path(__file__).parents[1] / "oracles" / "knn.safetensors"
NAMES = ("ant", "bee", "cat")


def colours(name, per_class=8, seed=0, order=(0, 1, 2), names=NAMES):
    """Noisy red, green and blue images of 8 x 8 pixels; class i of `order` has channel i."""
    chance = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(order)), per_class)
    pixels = chance.integers(0, 120, (len(labels), 8, 8, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        pixels[i, ..., order[label]] += 100
    return Arrays(name, pixels, labels, tuple(names[i] for i in order))


@pytest.fixture(scope="module")
def encoder():
    return Encoder(build("pixels", image_size=8))


@pytest.mark.parametrize("k", [1, 10, 20])
def test_knn_agrees_with_the_original_code(k):
    o = load_file(ORACLE)
    args = {"ks": (k,), "temperature": 0.07, "classes": 10}
    guess = knn_predict(o["train"], o["train_labels"], o["test"], **args)[k]
    hits = guess == o["test_labels"][:, None]
    top1, top5 = o[f"k{k}.top1_top5"].tolist()
    assert hits[:, 0].float().mean().item() == pytest.approx(top1)
    # The original fills its five up with classes that nobody voted for; we do not.
    short = (guess[:, : min(5, k)] < 0).any(1).float().mean().item()
    ours = hits.any(1).float().mean().item()
    assert ours <= top5 + 1e-6 and top5 - ours <= short + 1e-6


def test_knn_gives_the_votes_of_its_formula():
    torch.manual_seed(0)
    train, test = torch.randn(30, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    labels = torch.randint(0, 3, (30,))
    guess = knn_predict(train, labels, test, ks=(5,), temperature=0.1, classes=3)[5]
    for i, x in enumerate(test):
        sims = torch.cosine_similarity(x[None], train)
        votes = torch.zeros(3, dtype=torch.float64)
        for j in sims.argsort(descending=True)[:5]:
            votes[labels[j]] += (sims[j] / 0.1).exp()
        ranked = [int(c) for c in votes.argsort(descending=True) if votes[c] > 0]
        assert [g for g in guess[i].tolist() if g >= 0] == ranked


def test_knn_is_the_same_in_chunks_and_at_an_extreme_temperature(monkeypatch):
    o = load_file(ORACLE)
    args = {"ks": (10,), "classes": 10}
    whole = knn_predict(o["train"], o["train_labels"], o["test"], temperature=0.07, **args)[10]
    monkeypatch.setattr("nolabel.protocols.knn._CHUNK_FLOATS", 300)
    monkeypatch.setattr("nolabel.nn.knn._QUERIES", 7)
    monkeypatch.setattr("nolabel.nn.knn._ROWS", 90)
    parts = knn_predict(o["train"], o["train_labels"], o["test"], temperature=0.07, **args)[10]
    assert torch.equal(whole, parts)
    cold = knn_predict(o["train"], o["train_labels"], o["test"], temperature=1e-4, **args)[10]
    nearest = knn_predict(
        o["train"], o["train_labels"], o["test"], temperature=1, ks=(1,), classes=10
    )
    assert torch.equal(cold[:, 0], nearest[1][:, 0])


def test_k_above_the_training_images_is_capped(encoder):
    report = run_knn(encoder, colours("a", 4), colours("b", 4, 1), k=(5, 100, 200))
    assert [r["setting"] for r in report.rows] == ["k=5", "k=12"]
    assert report.best["setting"] == "k=12"  # the nearest to 20
    assert any("at most the 12 images" in n for n in report.notes)


def test_the_best_k_is_twenty_and_not_the_highest():
    report = evaluate("knn", "pixels", "digits", k=(10, 20, 100))
    values = {r["setting"]: r["value"] for r in report.rows if r["metric"] == "top1"}
    assert report.best["setting"] == "k=20"
    assert values["k=10"] > values["k=20"] > 0.9
    assert "k=10 because it scores highest here would be optimistic" in report.notes[-1]
    assert (report.train, report.test) == ("digits:train", "digits:test")


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilsons_interval_has_the_published_values(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=6e-5)


def test_heads_trained_together_equal_one_trained_by_autograd():
    torch.manual_seed(0)
    x, y = torch.randn(50, 6), torch.randint(0, 4, (50,))
    args = {"classes": 4, "epochs": 3, "batch_size": 16, "batchnorm": False, "seed": 1}
    together = fit_heads(x, y, [0.01, 0.5], **args)
    chance = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(6, 4)
    layer.weight.data = torch.randn(4, 6, generator=chance) * 0.01
    layer.bias.data.zero_()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    # torch multiplies the rate when it applies the momentum, as we do
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 9)
    for _ in range(3):
        order = torch.randperm(50, generator=chance)
        for at in (0, 16, 32):
            rows = order[at : at + 16]
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimiser.step()
            cosine.step()
    assert torch.allclose(together(x)[1], layer(x).detach(), atol=1e-4)
    right, loss = score_heads(together, x, y)
    own = torch.nn.functional.cross_entropy(layer(x), y).item()
    assert loss[1].item() == pytest.approx(own, abs=1e-4)
    assert right[1].item() == pytest.approx((layer(x).argmax(1) == y).float().mean().item())


def test_batchnorm_makes_the_probe_blind_to_scale_and_shift():
    torch.manual_seed(0)
    x, y = torch.randn(60, 5), torch.randint(0, 3, (60,))
    args = {"classes": 3, "epochs": 5, "batch_size": 20, "batchnorm": True, "seed": 0}
    moved = x * torch.tensor([100.0, 1.0, 7.0, 3.0, 50.0]) + 9
    a, b = fit_heads(x, y, [0.1], **args), fit_heads(moved, y, [0.1], **args)
    assert torch.allclose(a(x), b(moved), atol=1e-2)


def test_the_linear_probe_learns_what_is_linear_and_repeats_itself(encoder):
    train, test = colours("a", 20), colours("b", 10, 1)
    reports = [run_linear(encoder, train, test, epochs=20) for _ in range(2)]
    assert reports[0] == reports[1]
    assert reports[0].best["value"] == 1.0
    assert reports[0].best["low"] > 0.85
    notes = " ".join(reports[0].notes)
    assert "6 held-out images of train" in notes and "without augmentation" in notes
    assert [r["metric"] for r in reports[0].rows] == ["top1"]  # top5 of three says nothing


def test_a_single_rate_needs_no_held_out_images(encoder):
    report = run_linear(encoder, colours("a", 1), colours("b", 4, 1), lr=0.01, epochs=20)
    assert report.best["setting"] == "lr=0.01"
    with pytest.raises(DataError, match="one image a class"):
        run_linear(encoder, colours("a", 1), colours("b", 4, 1))


def test_random_labels_score_at_chance(encoder):
    train, test = colours("a", 60), colours("b", 60, 1)
    chance = np.random.default_rng(2)
    for source in (train, test):
        source.labels = chance.permutation(source.labels)
    for report in (run_knn(encoder, train, test), run_linear(encoder, train, test, epochs=10)):
        assert report.best["low"] < 1 / 3 < report.best["high"]


def test_classes_are_matched_by_name_and_not_by_number(encoder):
    train, test = colours("a"), colours("b", 8, 1, order=(2, 0))  # cat, ant
    assert match_labels(train, test).tolist() == [2] * 8 + [0] * 8
    assert run_knn(encoder, train, test, k=5).best["value"] == 1.0


def test_foreign_classes_and_missing_labels_are_refused_by_name(encoder):
    train = colours("a")
    with pytest.raises(DataError, match=r"'b' has 1 class\(es\) .* in 'a': 'dog'"):
        run_knn(encoder, train, colours("b", names=("ant", "bee", "dog")))
    few = Subset(train, np.arange(16), name="few")  # no cat left, though it has the name
    with pytest.raises(DataError, match="'cat'"):
        run_knn(encoder, few, colours("b"))
    bare = Arrays("bare", train.pixels)
    for pair in ((bare, train), (train, bare)):
        with pytest.raises(DataError, match="'bare' has no labels"):
            run_knn(encoder, *pair)
    with pytest.raises(DataError, match="one class only"):
        run_knn(encoder, Subset(train, np.arange(4)), train)


def test_without_a_test_set_a_fifth_is_split_off_and_said():
    train, test, notes = open_sets(colours("a", 10))
    assert (len(train), len(test)) == (24, 6)
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert "6 of the 30 images were split off" in notes[0]
    again = open_sets(colours("a", 10))[1]
    assert np.array_equal(test.indices, again.indices)
    assert {test.path(i) for i in range(6)}.isdisjoint(train.path(i) for i in range(24))


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [
        ("digits", None, ("digits:train", "digits:test")),
        ("digits:train", None, ("digits:train", "digits:test")),
        ("digits:test", None, ("digits:test (80 %)", "digits:test (other 20 %)")),
        ("digits", "digits", ("digits:train", "digits:test")),
    ],
)
def test_named_sets_bring_their_own_test_images(train, test, names):
    a, b, _ = open_sets(train, test)
    assert (a.name, b.name) == names


def test_the_same_images_for_train_and_test_are_refused(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / label / "x.png")
    source = colours("a")
    pairs = [(source, source), (str(tmp_path), tmp_path / "."), ("digits", "digits:train")]
    for train, test in pairs:
        with pytest.raises(UsageError, match="same images"):
            open_sets(train, test)


def test_unknown_protocols_and_options_get_a_suggestion():
    with pytest.raises(UsageError, match="Did you mean 'knn'"):
        evaluate("knm", "pixels", "digits")
    with pytest.raises(UsageError, match="no option 'temprature'. Did you mean 'temperature'"):
        evaluate("knn", "pixels", "digits", temprature=1)
    with pytest.raises(UsageError, match="k must be"):
        evaluate("knn", "pixels", "digits", k=(0,))
    with pytest.raises(UsageError, match="lr must be"):
        evaluate("linear", "pixels", "digits", lr=())


def test_every_protocol_in_the_table_exists_and_has_defaults():
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name and protocol.paper and protocol.description
        options_of(name)()


def test_the_table_can_be_read_without_torch():
    code = (
        "import sys, nolabel.protocols.run as e; "
        "assert e.PROTOCOLS; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_unreadable_images_are_left_out_and_listed(tmp_path, encoder):
    for label, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / label).mkdir()
        for i in range(6):
            Image.new("RGB", (9, 12), colour).save(tmp_path / label / f"{i}.png")
    (tmp_path / "a" / "2.png").write_bytes(b"rubbish")
    source = open_source(tmp_path)
    features = extract(encoder, source, batch_size=4)
    assert features.values.shape == (11, 192) and features.values.dtype == torch.float32
    assert features.keys.tolist() == [0, 1, *range(3, 12)]
    assert features.labels.tolist() == [0] * 5 + [1] * 6
    assert features.skipped[0][0].endswith("2.png") and len(features.skipped) == 1
    report = run_linear(encoder, source, source, epochs=5)
    assert sum("could not be read" in n for n in report.notes) == 2
    assert report.best["value"] == 1.0


def test_features_do_not_depend_on_how_the_images_are_held_or_batched(encoder):
    source = colours("a", 5)
    whole = extract(encoder, source)
    assert torch.allclose(extract(encoder, source, batch_size=4).values, whole.values, atol=1e-6)
    listed = extract(encoder, Items(list(source.pixels)), batch_size=4)
    assert torch.allclose(listed.values, whole.values, atol=1e-6) and listed.labels is None
    with pytest.raises(DataError, match="no image that can be read"):
        extract(encoder, Items(["missing.png"]))


def test_a_comparison_uses_the_same_images_and_one_table():
    vit = Encoder(
        build("vit_nano", image_size=8, kwargs={"embed_dim": 24, "depth": 1, "num_heads": 2})
    )
    vit.name = "mine"
    result = compare(
        ["pixels", vit, "random:resnet_nano"],
        colours("a", 10),
        protocols=("knn", "linear"),
        options={"linear": {"epochs": 5}, "knn": {"k": (3, 20)}},
        device="cpu",
    )
    table = result.to_json()
    assert json.loads(json.dumps(table)) == table
    assert [r["encoder"] for r in table["reports"]] == [
        n for n in ("pixels", "mine", "random:resnet_nano") for _ in range(2)
    ]
    assert len({(r["train"], r["test"]) for r in table["reports"]}) == 1
    assert len(table["rows"]) == 9 and sum(r["best"] for r in table["rows"]) == 6
    text = str(result)
    assert "encoder" in text and "split off" in text
    assert "k=20" in text and "k=3 " not in text  # the setting that represents an encoder
    assert "k=20 *" in result.table(every=True) and "k=3 " in result.table(every=True)
    alone = evaluate("knn", Encoder(build("pixels", image_size=8)), colours("a", 10), k=(3, 20))
    assert table["reports"][0]["rows"] == alone.to_json()["rows"]


def test_a_comparison_of_nothing_is_refused():
    for encoders in ([], "pixels"):
        with pytest.raises(UsageError, match="list of encoders"):
            compare(encoders, "digits")
    with pytest.raises(UsageError, match="Did you mean 'linear'"):
        compare(["pixels"], "digits", protocols=["liner"])
