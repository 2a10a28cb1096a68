"""Zero-shot: the meaning of the numbers, and the path from a run's folder to the table."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

import nolabel as nl
from nolabel import cli
from nolabel.backbones.text import SharedSpace
from nolabel.data.creatures.world import Creatures
from nolabel.data.source import Subset
from nolabel.encoders import load, load_encoder_file, load_text
from nolabel.encoders.text import save_text
from nolabel.errors import DataError, FileDamaged, UsageError
from nolabel.nn.knn import nearest
from nolabel.protocols._scores import wilson
from nolabel.protocols._several import average_precisions
from nolabel.protocols.zeroshot import (
    Options,
    chance_of_hit,
    class_probabilities,
    class_rows,
    class_vectors,
    multi_label_rows,
    retrieval_rows,
)

ORACLES = Path(__file__).parents[1] / "oracles"
QUICK = {"steps": 3, "batch_size": 16, "precision": "fp32", "backbone": "vit_pico",
         "vocabulary": 600, "context": 12, "projection": 8, "text_dim": 16, "text_depth": 1,
         "text_heads": 2, "quiet": True}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A CLIP run of a few steps on 64 creatures."""
    out = tmp_path_factory.mktemp("clip") / "run"
    return nl.pretrain("clip", data=Creatures(count=64), out=out, **QUICK).folder


@pytest.mark.parametrize("stage", ["start", "trained"])
def test_probabilities_of_classes_match_the_official_numbers(stage):
    o = load_file(ORACLES / "clip_zero_shot.safetensors")
    image, text = (F.normalize(o[k], dim=1) for k in ("image", "text"))
    shared = SharedSpace(16, vocabulary=9, context=4, dim=8, depth=1, heads=1, out=16).double()
    shared.log_scale.data = o[f"{stage}.logit_scale"]
    scale = float(shared.scale.detach())
    torch.testing.assert_close(image @ text.T * scale, o[f"{stage}.logits"])
    found = class_probabilities(image, text, scale)
    torch.testing.assert_close(found, o[f"{stage}.probabilities"], atol=1e-12, rtol=1e-6)


def by_metric(rows, setting=None):
    return {r["metric"]: r for r in rows if setting in (None, r["setting"])}


# --- Figures ------------------------------------------------------------------------------------


def test_a_class_is_the_unit_mean_of_its_unit_prompts(run):
    text = load_text(run)
    templates = ("a {}", "the {} of a friend", "{}")
    found = class_vectors(text, ["owl", "sea_star"], templates)
    for name, vector in zip(("owl", "sea star"), found, strict=True):
        total = torch.zeros(8)
        for t in templates:
            ids = text.tokenizer([t.replace("{}", name)])
            with torch.no_grad():
                z = text.shared.tower(ids)[0]
            total += z / z.norm() / len(templates)
        torch.testing.assert_close(vector, total / total.norm(), rtol=1e-4, atol=1e-5)


def test_top1_top5_and_mean_recall_of_a_case_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 2])  # no image of classes 3 to 9
    guesses = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [5, 0, 1, 2, 3],
                            [0, 1, 2, 3, 4], [9, 8, 7, 6, 5]])  # fmt: skip
    rows = by_metric(class_rows("x", guesses, labels, 10))
    assert rows["top1"]["value"] == 3 / 6
    assert rows["top5"]["value"] == 5 / 6
    assert rows["mean_recall"]["value"] == pytest.approx((3 / 4 + 0 + 0) / 3)
    assert [rows[m]["chance"] for m in ("top1", "top5", "mean_recall")] == [0.1, 0.5, 0.1]
    assert (rows["top1"]["low"], rows["top1"]["high"]) == wilson(3, 6)


def test_with_classes_of_one_size_mean_recall_is_accuracy_with_its_interval():
    labels = torch.arange(8).repeat_interleave(5)
    guesses = labels.clone()
    guesses[::3] = 0
    rows = by_metric(class_rows("x", guesses[:, None], labels, 8))
    for key in ("value", "low", "high"):
        assert rows["mean_recall"][key] == pytest.approx(rows["top1"][key])


def test_equal_captions_count_as_the_same_in_both_directions():
    captions = ["a", "a", "b", "c"]
    images = F.normalize(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [-1, 0]]), dim=1)
    texts = F.normalize(torch.tensor([[1.0, 0.1], [1, 0.1], [1, 0], [-1, 0]]), dim=1)
    rows = retrieval_rows(images, texts, captions)
    forth = by_metric(rows, "image to text")["recall@1"]
    back = by_metric(rows, "text to image")["recall@1"]
    # Image 0 finds "b" first, image 1 an "a", image 2 an "a" (wrong), image 3 its own.
    assert forth["value"] == 2 / 4
    # Both "a" find image 1, which is an "a"; "b" finds image 0; "c" its own.
    assert back["value"] == 3 / 4
    assert by_metric(rows, "image to text")["recall@5"]["value"] == 1.0


def test_recall_with_several_texts_an_image_equals_a_naive_loop():
    g = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(n, 8, generator=g), dim=1) for n in (40, 200))
    owner = torch.arange(200) // 5
    captions = [f"text {i if i % 7 else 0}" for i in range(200)]  # some texts are equal
    rows = retrieval_rows(images, texts, captions, owner)
    cosines = images @ texts.T
    own = [{captions[t] for t in range(200) if owner[t] == i} for i in range(40)]
    for k in (1, 5, 10):
        forth = [
            any(captions[t] in own[i] for t in cosines[i].argsort(descending=True)[:k])
            for i in range(40)
        ]
        back = [
            any(captions[t] in own[i] for i in cosines[:, t].argsort(descending=True)[:k])
            for t in range(200)
        ]
        found = [by_metric(rows, s)[f"recall@{k}"] for s in ("image to text", "text to image")]
        assert found[0]["value"] == np.mean(forth) and found[1]["value"] == np.mean(back)
        plain = retrieval_rows(images, texts, [str(i) for i in range(200)], owner)
        by_chance = by_metric(plain, "image to text")[f"recall@{k}"]["chance"]
        right = [math.comb(195, k) / math.comb(200, k)]  # all k texts are of other images
        assert by_chance == pytest.approx(1 - right[0])


def test_mean_average_precision_equals_a_naive_loop_and_scikit_learn():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(60, 7)).round(1)  # with equal scores
    truth = rng.random((60, 7)) < 0.3
    truth[:, 3] = False  # a class without an image
    found = average_precisions(scores, truth)
    expected = [average_precision_score(truth[:, c], scores[:, c]) for c in range(7) if c != 3]
    np.testing.assert_allclose(np.delete(found, 3), expected)
    assert np.isnan(found[3])
    distinct = rng.permutation(60)[:, None] * 1.0
    order = np.argsort(-distinct[:, 0])
    precisions = [truth[order[: i + 1], 0].mean() for i in range(60) if truth[order[i], 0]]
    assert average_precisions(distinct, truth[:, :1])[0] == pytest.approx(np.mean(precisions))
    row = multi_label_rows("x", torch.from_numpy(scores), truth)[0]
    assert row["value"] == pytest.approx(np.mean(expected)) and row["metric"] == "mAP"


def test_rows_with_one_path_are_one_image_with_several_texts_and_labels(run, tmp_path):
    lines = ["path,text,label"]
    for i in range(8):
        sample = Creatures("test", size=32).read(i)
        Image.fromarray(sample.image).save(tmp_path / f"{i}.png")
        lines += [f"{i}.png,text {i} {j},{'ab'[i % 2] if j else 'c'}" for j in range(3)]
    (tmp_path / "list.csv").write_text("\n".join(lines), "utf-8")
    report = nl.evaluate("zeroshot", str(run), test=str(tmp_path / "list.csv"))
    rows = {(r["setting"], r["metric"]): r for r in report.rows}
    assert report.best["metric"] == "mAP" and 0 < report.best["value"] <= 1
    assert "retrieval among 8 images and 24 texts" in " ".join(report.notes)
    assert rows["image to text", "recall@10"]["chance"] == pytest.approx(
        1 - math.comb(21, 10) / math.comb(24, 10)
    )
    assert rows["text to image", "recall@1"]["chance"] == pytest.approx(1 / 8)
    (tmp_path / "plain.csv").write_text(
        "\n".join(line.rpartition(",")[0] for line in lines), "utf-8"
    )
    plain = nl.evaluate("zeroshot", str(run), test=str(tmp_path / "plain.csv"))
    assert plain.best == {**rows["image to text", "recall@1"]}


@pytest.mark.parametrize("k", [1, 2, 5])
def test_chance_is_what_a_random_order_gives(k):
    equal, pool = np.array([1, 1, 3, 3, 3]), 5
    chance = np.random.default_rng(0)
    hits = [
        (chance.permutation(pool)[:k] < n).any() for _ in range(20_000) for n in equal
    ]  # a query's own stand first
    assert chance_of_hit(equal, pool, k) == pytest.approx(np.mean(hits), abs=0.01)


def test_random_vectors_score_at_chance():
    g = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(1500, 16, generator=g), dim=1) for _ in range(2))
    captions = [f"text {i % 300}" for i in range(1500)]
    labels = torch.arange(1500) % 12
    rows = retrieval_rows(images, texts, captions)
    rows += class_rows("classes", nearest(images, texts[:12], 5)[1], labels, 12)
    for row in rows:
        slack = 4 * math.sqrt(row["chance"] / 1500)
        assert abs(row["value"] - row["chance"]) < slack, row


@pytest.mark.parametrize("templates", [(), ("a photo",), ("{} and {}",)])
def test_templates_without_one_place_for_the_name_are_refused(templates):
    with pytest.raises(UsageError, match="template"):
        Options(templates=templates)


# --- The run's files ----------------------------------------------------------------------------


def test_a_run_leaves_its_text_tower_and_tokenizer_beside_a_plain_encoder(run):
    from nolabel.engine.build import load_method

    method, _ = load_method(run)
    text, encoder = load_text(run, device="cpu"), load_encoder_file(run / "encoder.safetensors")
    captions = ["a red owl", "a blue crab on a dark ground"]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            text.embed(captions), method.shared.texts(method.tokenizer(captions))
        )
        torch.testing.assert_close(
            text.project(encoder.forward(x)), method.shared.images(method.encoder(x))
        )
    assert text.shared.log_scale == method.shared.log_scale
    assert not any("image" in n or "projection" in n for n in encoder.backbone.net.state_dict())
    assert text.embed("one").shape == (1, 8)
    torch.testing.assert_close(text.embed(captions).norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("method", ["clip", "siglip"])
def test_the_text_side_survives_its_file_exactly(tmp_path, method):
    out = tmp_path / "run"
    settings = {k: v for k, v in QUICK.items() if k != "steps"}
    nl.pretrain(method, data=Creatures(count=32), out=out, steps=1, **settings)
    text = load_text(out, device="cpu")
    save_text(tmp_path / "again.safetensors", text.shared, text.tokenizer, method=method)
    assert (tmp_path / "again.safetensors").read_bytes() == (out / "text.safetensors").read_bytes()
    assert (text.shared.bias is not None) == (method == "siglip")


def test_files_that_do_not_belong_together_are_noticed(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "tokenizer.json").write_text(
        (other / "tokenizer.json").read_text().replace('"max_length":12', '"max_length":11')
        .replace('"max_length": 12', '"max_length": 11')
    )  # fmt: skip
    with pytest.raises(FileDamaged, match="do not belong together"):
        load_text(other)


def test_an_altered_text_tower_is_noticed(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    raw = bytearray((other / "text.safetensors").read_bytes())
    raw[-3] ^= 1
    (other / "text.safetensors").write_bytes(bytes(raw))
    with pytest.raises(FileDamaged, match="checksum"):
        load_text(other)


def test_the_text_tower_is_not_taken_for_an_encoder(run):
    with pytest.raises(UsageError, match=r"encoder\.safetensors beside it"):
        load(run / "text.safetensors")


def test_loading_a_text_tower_draws_no_random_numbers(run):
    torch.manual_seed(5)
    load_text(run)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_a_stopped_run_goes_on_with_the_same_words(run, tmp_path):
    """The tokenizer comes from the folder; the losses are those of a run in one go."""
    given = {**QUICK, "data": "creatures", "checkpoint_every": 2, "log_every": 1}
    whole = nl.pretrain("clip", out=tmp_path / "whole", **{**given, "steps": 4}).folder
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    (newest,) = (cut / "checkpoints").glob("step-*4.ckpt")
    newest.unlink()
    (cut / "text.safetensors").unlink()
    nl.resume(cut, quiet=True)

    def losses(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert losses(cut) == losses(whole)
    assert (cut / "text.safetensors").read_bytes() == (whole / "text.safetensors").read_bytes()


# --- From a run to the table --------------------------------------------------------------------


def test_the_command_prints_chance_beside_every_figure(run, tmp_path, capsys):
    file = tmp_path / "z.json"
    code = cli.main(["evaluate", "zeroshot", "--encoder", str(run), "--test", "creatures:test",
                     "--templates", "a {}", "{}", "--json", str(file)])  # fmt: skip
    assert code == 0
    table = capsys.readouterr().out
    assert table.count("chance") == 9
    raw = json.loads(file.read_text())
    assert raw["best"] == raw["rows"][0]
    assert [r["metric"] for r in raw["rows"]] == [
        "top1", "top5", "mean_recall", *(f"recall@{k}" for k in (1, 5, 10, 1, 5, 10)),
    ]  # fmt: skip
    assert all(0 <= r["low"] <= r["value"] <= r["high"] <= 1 for r in raw["rows"])
    assert raw["rows"][0]["chance"] == 0.1
    assert "2 templates" in raw["rows"][0]["setting"]
    assert any("repeat another" in note for note in raw["notes"])


def test_without_labels_every_distinct_text_is_a_class(run):
    source = Creatures("test", count=200)
    distinct = len(set(source.read_texts(np.arange(200))))
    report = nl.evaluate("zeroshot", str(run), test=_WithoutLabels(source))
    assert report.best["setting"] == f"{distinct} distinct texts"
    assert report.best["chance"] == pytest.approx(1 / distinct)


class _WithoutLabels(Subset):
    """The same images and texts, without labels."""

    def __init__(self, source):
        super().__init__(source, np.arange(len(source)))
        self.labels, self.classes = None, ()


def test_images_without_texts_are_classified_by_the_names_of_their_folders(run, photos):
    report = nl.evaluate("zeroshot", str(run), test=str(photos))
    assert {r["metric"] for r in report.rows} == {"top1", "mean_recall"}
    assert report.best["chance"] == pytest.approx(1 / 3)


def test_what_zero_shot_cannot_judge_is_refused_with_a_reason(run, photos, tmp_path):
    with pytest.raises(UsageError, match="no text tower"):
        nl.evaluate("zeroshot", "pixels", test="creatures:test")
    plain = tmp_path / "plain"
    shutil.copytree(run, plain)
    (plain / "text.safetensors").unlink()
    with pytest.raises(UsageError, match="no text tower.*clip or siglip"):
        nl.evaluate("zeroshot", str(plain), test="creatures:test")
    with pytest.raises(DataError, match="neither labels nor texts"):
        nl.evaluate("zeroshot", str(run), test=[str(next(photos.rglob("*.png")))])
    with pytest.raises(UsageError, match="give --test and no --train"):
        nl.evaluate("zeroshot", str(run), train="creatures", test="creatures:test")
    with pytest.raises(UsageError, match="needs --train"):
        nl.evaluate("knn", str(run))
