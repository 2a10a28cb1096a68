"""Retrieval: official numbers, a naive count, perfect and random features, the landmarks."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import nolabel as nl
from nolabel.cli import main
from nolabel.data.sources.arrays import Arrays
from nolabel.data.sources.items import Items
from nolabel.encoders.features import Features
from nolabel.errors import DataError, FileDamaged, UsageError
from nolabel.protocols._ranking import average_precision, bootstrap, precision_at, relevant_ranks
from nolabel.protocols.data.revisited import Revisited, open_revisited
from nolabel.protocols.retrieval import run_retrieval, score_landmarks

ORACLES = Path(__file__).parents[1] / "oracles"


def test_average_precision_matches_the_official_numbers():
    o = {k: v.numpy() for k, v in load_file(ORACLES / "retrieval_map.safetensors").items()}
    aps, precisions = [], []
    for q in range(8):
        ranked = o["ranks"][:, q]
        junk = np.isin(ranked, o[f"q{q}.junk"])
        if len(o[f"q{q}.ok"]):
            found = relevant_ranks(np.isin(ranked, o[f"q{q}.ok"]) & ~junk, junk)
            aps.append(average_precision(found))
            precisions.append(precision_at(found, (1, 5, 10)))
            np.testing.assert_allclose(aps[-1], o["aps"][q], rtol=1e-6)
    np.testing.assert_allclose(np.mean(aps), o["map"], rtol=1e-6)
    np.testing.assert_allclose(np.mean(precisions, 0), o["mean_precision"], rtol=1e-6)


def naive(z, own, k):
    """AP and P@k of every image by walking down its list."""
    aps, precisions = [], []
    for q in range(len(z)):
        others = [i for i in range(len(z)) if i != q]
        others.sort(key=lambda i: -float(z[q] @ z[i] / np.linalg.norm(z[q]) / np.linalg.norm(z[i])))
        right = [own[i] == own[q] for i in others]
        if not any(right):
            continue
        area = hits = 0.0
        for r, hit in enumerate(right):
            if hit:
                before = 1.0 if r == 0 else hits / r
                hits += 1
                area += (before + hits / (r + 1)) / 2
        aps.append(area / hits)
        last = max(r for r, hit in enumerate(right) if hit) + 1
        precisions.append(sum(right[: min(k, last)]) / min(k, last))
    return np.mean(aps), np.mean(precisions)


def grouped(values, own):
    """A source whose images do not matter, and features for it."""
    source = Arrays("set", np.zeros((len(own), 16, 16, 3), np.uint8), np.asarray(own), ())
    source.groups = np.asarray(own)
    z = torch.as_tensor(values, dtype=torch.float32)
    f = Features(z, None, (), torch.arange(len(own)))
    return source, (f, f)


def judged(values, own, **options):
    source, features = grouped(values, own)
    encoder = nl.load("random:vit_pico")
    return run_retrieval(encoder, None, source, features=features, **options)


def test_groups_are_scored_as_by_a_naive_walk():
    rng = np.random.default_rng(0)
    own = np.array([0] * 7 + [1] * 5 + [2] * 4 + [3])  # the last is alone and does not ask
    z = rng.normal(size=(len(own), 6))
    report = judged(z, own, k=(1, 5, 10))
    by = {r["metric"]: r["value"] for r in report.rows}
    for k in (1, 5, 10):
        ap, p = naive(z, own, k)
        assert by["mAP"] == pytest.approx(ap, abs=1e-6)
        assert by[f"P@{k}"] == pytest.approx(p, abs=1e-6)
    assert any("1 image(s) are alone" in n for n in report.notes)


def test_perfect_features_find_everything_and_random_ones_are_at_chance():
    own = np.repeat(np.arange(10), 30)
    perfect = judged(np.eye(10)[own] + 1e-3 * np.random.default_rng(0).normal(size=(300, 10)), own)
    assert perfect.best["value"] == 1.0
    random = judged(np.random.default_rng(1).normal(size=(300, 16)), own)
    first = next(r for r in random.rows if r["metric"] == "P@1")
    assert first["chance"] == pytest.approx(29 / 299)
    assert abs(first["value"] - first["chance"]) < 0.05


def test_an_interval_holds_the_mean_and_shrinks_with_more_queries():
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap(values)
    assert low < values.mean() < high
    few_low, few_high = bootstrap(values[:40])
    assert high - low < few_high - few_low
    assert bootstrap(np.array([0.3])) == (0.3, 0.3)


# ---- the landmarks' layout


def truth(easy, hard, junk, n=6):
    images = Items([np.zeros((16, 16, 3), np.uint8)] * n, "database")
    queries = Items([np.zeros((16, 16, 3), np.uint8)] * len(easy), "queries")
    parts = [tuple(np.array(x, dtype=np.int64) for x in kind) for kind in (easy, hard, junk)]
    return Revisited("set", queries, images, np.zeros((len(easy), 4)), *parts)


def test_easy_ignores_hard_images_hard_ignores_easy_ones_and_medium_takes_both():
    test = truth(easy=[[1]], hard=[[3]], junk=[[0]])
    scores = score_landmarks(np.array([[0, 3, 1, 2, 4, 5]]), test, (1,))
    assert scores["easy"][0].tolist() == [1.0]  # junk 0 and hard 3 are taken out
    assert scores["hard"][0].tolist() == [1.0]
    assert scores["medium"][0].tolist() == [1.0]
    late = score_landmarks(np.array([[2, 0, 3, 1, 4, 5]]), test, (1,))
    # Without junk: 2, 3, 1. The relevant ones are at relevant_ranks 1 and 2.
    assert late["medium"][0][0] == pytest.approx(((0 / 1 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert late["easy"][0][0] == pytest.approx((0 / 1 + 1 / 2) / 2)


def test_a_query_without_a_relevant_image_is_left_out():
    test = truth(easy=[[1], []], hard=[[], []], junk=[[], []])
    scores = score_landmarks(np.array([[1, 0, 2, 3, 4, 5]] * 2), test, (1,))
    assert len(scores["easy"][0]) == len(scores["medium"][0]) == 1 and not len(scores["hard"][0])


@pytest.fixture
def landmarks(tmp_path):
    """Two queries and six images in the benchmark's layout; wide and tall ones."""
    (tmp_path / "jpg").mkdir()
    rng = np.random.default_rng(0)
    shapes = [(40, 64), (64, 40), (48, 48), (36, 70)]
    pictures = [rng.integers(0, 255, (*shapes[i % 4], 3), dtype=np.uint8) for i in range(4)]
    names = {"q0": 0, "q1": 1, "a": 0, "b": 1, "c": 2, "d": 3}
    for name, i in names.items():
        Image.fromarray(pictures[i]).save(tmp_path / "jpg" / f"{name}.jpg", quality=95)
    gnd = [{"bbx": [0.0, 0.0, 30.0, 30.0], "easy": [0], "hard": [], "junk": [2]},
           {"bbx": [2.0, 2.0, 30.0, 50.0], "easy": [], "hard": [1], "junk": []}]  # fmt: skip
    value = {"imlist": ["a", "b", "c", "d"], "qimlist": ["q0", "q1"], "gnd": gnd}
    return tmp_path, value


def test_landmarks_are_read_as_json_and_as_a_pickle_of_plain_values(landmarks, capsys):
    root, value = landmarks
    (root / "gnd_toy.json").write_text(json.dumps(value))
    given = ["evaluate", "retrieval", "--encoder", "random:vit_pico", "--test", str(root)]
    assert main([*given, "--longest", "32"]) == 0
    printed = capsys.readouterr().out
    assert "medium" in printed and "mAP" in printed and "queries whole" in printed
    (root / "gnd_toy.json").unlink()
    arrays = {**value, "gnd": [{**g, "easy": np.array(g["easy"])} for g in value["gnd"]]}
    (root / "gnd_toy.pkl").write_bytes(pickle.dumps(arrays))
    assert main([*given, "--longest", "32", "--box", "--scales", "1.0", "0.7071", "0.5"]) == 0
    assert "cropped to their box" in capsys.readouterr().out
    found = open_revisited(root)
    assert found.easy[0].tolist() == [0] and found.hard[1].tolist() == [1]


def test_a_query_finds_its_own_picture_with_any_encoder(landmarks):
    root, value = landmarks
    (root / "gnd_toy.json").write_text(json.dumps(value))
    report = nl.evaluate("retrieval", "random:resnet_nano", test=str(root), longest=64)
    assert report.best["setting"] == "medium" and report.best["value"] == 1.0


class Payload:
    def __reduce__(self):
        return os.system, ("true",)


def test_a_pickle_with_objects_and_missing_images_are_refused(landmarks):
    root, value = landmarks
    (root / "gnd_toy.pkl").write_bytes(pickle.dumps({**value, "evil": Payload()}))
    with pytest.raises(FileDamaged, match="could run code"):
        open_revisited(root)
    (root / "gnd_toy.pkl").write_bytes(pickle.dumps({**value, "imlist": ["a", "none"]}))
    with pytest.raises(DataError, match="'none'"):
        open_revisited(root)
    (root / "gnd_toy.pkl").write_bytes(b"\x80\x04 broken")
    with pytest.raises(FileDamaged, match="no pickle of plain values"):
        open_revisited(root)


def test_wrong_use_is_said_clearly():
    with pytest.raises(UsageError, match="need --longest"):
        nl.evaluate("retrieval", "random:vit_pico", test="creatures:test", scales=(1.0, 0.5))
    with pytest.raises(UsageError, match="no --train"):
        nl.evaluate("retrieval", "random:vit_pico", train="creatures", test="creatures:test")
    with pytest.raises(DataError, match="no two images of one group"):
        judged(np.eye(4), [0, 1, 2, 3])
