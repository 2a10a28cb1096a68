"""Probes of encoders with a text tower, on oracles with and without the tested ability."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nolabel.data.creatures.scenes import Scenes
from nolabel.data.creatures.world import Creatures
from nolabel.data.source import Source
from nolabel.data.sources.arrays import Arrays
from nolabel.encoders import load
from nolabel.encoders.text import TextEncoder
from nolabel.errors import DataError, UsageError
from nolabel.pictures._bootstrap import difference, interval
from nolabel.pictures.ask import ask, auroc, content_words, occlusion_maps, patch_maps
from nolabel.pictures.bias import bias
from nolabel.pictures.counting import SENTENCES, counting, leave_one_out_nearest_mean
from nolabel.pictures.paint import paint, wrong_sentences
from nolabel.pictures.relations import relations, scene_pairs, winoground_scores
from nolabel.pictures.typographic import typographic, write_word
from nolabel.types import Sample

SIDE = 32
COLOURS = ("red", "green", "blue")


class Oracle(TextEncoder):
    """A text tower and an image projection that are given functions: image or text to vector."""

    def __init__(self, images, texts, scale=10.0):
        self.images, self.texts = images, texts
        self.shared = SimpleNamespace(scale=torch.tensor(scale))
        self.name = "oracle"

    def to(self, device):
        return self

    def embed(self, texts, *, batch_size=256):
        texts = [texts] if isinstance(texts, str) else list(texts)
        return F.normalize(torch.stack([self.texts(t) for t in texts]).float(), dim=-1)

    def project(self, features, *, batch_size=8192):
        x = features.reshape(len(features), 3, SIDE, SIDE).permute(0, 2, 3, 1)
        mean, std = (torch.tensor(v) for v in (PIXELS.mean, PIXELS.std))
        x = ((x * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        return F.normalize(torch.stack([self.images(i) for i in x]).float(), dim=-1)


PIXELS = load("pixels", image_size=SIDE)


def oracle_encoder(images, texts):
    """The encoder of raw pixels with an oracle as its text tower."""
    encoder = load("pixels", image_size=SIDE)
    encoder.meta["text"] = Oracle(images, texts)
    return encoder


def one_hot(i, n):
    return F.one_hot(torch.tensor(i), n).float()


def coloured_noise(n, seed=0):
    """A source of n red, green and blue noise images in turn."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.integers(0, 60, (n, SIDE, SIDE, 3), dtype=np.uint8)
    x[np.arange(n), :, :, y] += 150
    return Arrays("colours", x, y, COLOURS)


def mean_colour(image):
    v = torch.tensor(image.reshape(-1, 3).mean(0) / 255.0)
    return v - v.mean() + 1e-6


def named_colour(text):
    found = [i for i, c in enumerate(COLOURS) if c in text.split()]
    return one_hot(found[0], 3) - 1 / 3 if found else torch.tensor([1.0, -1.0, 0.0])


class Squares(Source):
    """Grey images with a red square, and its mask."""

    name = "squares"

    def __len__(self):
        return 6

    def path(self, i, /):
        return str(i)

    def read(self, i, /):
        image = np.full((SIDE, SIDE, 3), 120, np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        top, left = 2 + 3 * i, 18 - 3 * i
        mask[top : top + 9, left : left + 9] = 1
        image[mask > 0] = (250, 20, 20)
        return Sample(image=image, mask=mask)


def test_ask_ranks_images_of_the_named_class_first():
    encoder = oracle_encoder(mean_colour, named_colour)
    gallery = coloured_noise(30)
    (p,) = ask(encoder, gallery=gallery, words="a green thing", top=5)
    assert p.numbers["precision"] == 1.0 and p.numbers["chance"] == pytest.approx(1 / 3)
    assert (gallery.labels[p.data["keys"][:10]] == 1).all()
    assert (np.diff(p.data["cosines"]) <= 1e-9).all()
    assert p.data["maps"].shape == (5, 3, SIDE, SIDE)  # the sentence, green, thing
    with pytest.raises(UsageError, match="Give a sentence"):
        ask(encoder, gallery=gallery)
    with pytest.raises(UsageError, match="Unknown value of --by 'magic'"):
        ask(encoder, gallery=gallery, words="red", by="magic")
    with pytest.raises(UsageError, match="no text tower"):
        ask(PIXELS, gallery=gallery, words="red")


def test_occlusion_maps_locate_the_named_object_only():
    def how_red(image):  # less of the colour is less similar, not only another colour
        return torch.cat([mean_colour(image), torch.tensor([0.1])])

    encoder = oracle_encoder(how_red, lambda t: torch.cat([named_colour(t), torch.zeros(1)]))
    (p,) = ask(encoder, gallery=Squares(), words="red", top=6)
    assert p.numbers["auroc"] > 0.95
    samples = [Squares().read(i) for i in range(6)]
    x = encoder.prepare([s.image for s in samples])
    red, green = occlusion_maps(encoder, encoder.meta["text"], x, ["red", "green"]).transpose(
        1, 0, 2, 3
    )
    for r, g, s in zip(red, green, samples, strict=True):
        assert auroc(r, s.mask) > 0.9 and auroc(g, s.mask) < 0.5


def test_content_words_leave_out_stop_words():
    assert content_words("A red snail on the dark-green ground") == [
        "red",
        "snail",
        "dark-green",
        "ground",
    ]
    assert content_words("snail") == [] == content_words("the snail")


@pytest.mark.parametrize("name", ["random:vit_pico", "random:resnet_nano"])
def test_patch_maps_project_patches_as_images(name, tiny_run, photos):
    encoder = load(name)
    torch.manual_seed(0)
    image = nn.Linear(encoder.dim, 4, bias=False)

    class Linear(Oracle):
        def project(self, features, *, batch_size=8192):
            with torch.no_grad():
                return F.normalize(image(features), dim=-1)

    text = Linear(None, lambda t: one_hot(len(t) % 4, 4))
    x = encoder.prepare([Creatures("test", size=32, count=3).read(i).image for i in range(2)])
    maps = patch_maps(encoder, text, x, ["a", "bb"])
    with encoder.evaluating():
        local = encoder.backbone.dense_embeddings(x)
    z = text.project(local.patches.flatten(0, 1).clone()).unflatten(0, local.patches.shape[:2])
    assert np.allclose(maps[1, 0].ravel(), z[1, :, 1].numpy(), atol=1e-6)
    if "resnet" in name:  # the embedding is their mean
        with encoder.evaluating():
            assert torch.allclose(local.patches.mean(1), encoder.backbone(x), atol=1e-5)


class MeanColour(nn.Module):
    """The projection of raw pixels to their mean colour, with gradient."""

    def __init__(self):
        super().__init__()
        self.image = nn.Linear(3 * SIDE * SIDE, 3, bias=False)
        weight = torch.zeros(3, 3, SIDE * SIDE)
        weight[range(3), range(3)] = 1
        weight = (weight - weight.mean(1, keepdim=True)) / SIDE**2
        self.image.weight = nn.Parameter(weight.flatten(1), requires_grad=False)
        self.scale = torch.tensor(10.0)


@pytest.mark.parametrize("cutouts", [0, 4])
def test_paint_reaches_the_named_colour_and_is_recognised(cutouts):
    class Painter(Oracle):
        def project(self, features, *, batch_size=8192):
            with torch.no_grad():
                return F.normalize(self.shared.image(features), dim=-1)

    encoder = load("pixels", image_size=SIDE)
    text = Painter(None, named_colour)
    text.shared = MeanColour()
    encoder.meta["text"] = text
    (p,) = paint(
        encoder, gallery=coloured_noise(30), words=("red", "blue"), steps=60, cutouts=cutouts
    )
    red, blue = p.data["images"].astype(float).mean((1, 2))
    assert red[0] > red[1:].max() + 8 and blue[2] > blue[:2].max() + 8
    assert p.numbers["recognised"] == 1.0 and p.numbers["cosine"] > 0.9
    assert p.numbers["chance"] == pytest.approx(1 / 2)  # against green
    with pytest.raises(UsageError, match="one sentence or more"):
        paint(encoder, gallery=coloured_noise(3))


def test_wrong_sentences_are_other_texts_or_class_names():
    assert wrong_sentences(coloured_noise(6), ("red",)) == ["green", "blue"]
    source = Creatures("test", count=50)
    own = source.read_text(0)
    found = wrong_sentences(source, (own,))
    assert own not in found and len(found) == len(set(found)) > 30


def read_tag(image, names=COLOURS):
    """One-hot of the colour name written on the tag, else of the image's colour."""
    tall = round(0.3 * SIDE)
    for i, name in enumerate(names):
        if np.array_equal(
            image[-tall:], write_word(np.zeros((SIDE, SIDE, 3), np.uint8), name)[-tall:]
        ):
            return one_hot(i, 3)
    return ignore_tag(image)


def ignore_tag(image):
    return one_hot(int(image[: SIDE // 2].reshape(-1, 3).mean(0).argmax()), 3)


def colour_in(text):
    return one_hot([c in text for c in COLOURS].index(True), 3)


def test_typographic_detects_readers_only():
    gallery = coloured_noise(60)
    (p,) = typographic(oracle_encoder(read_tag, colour_in), gallery=gallery, number=40)
    n = p.numbers
    assert n["lift"] == 1.0 == n["lift_low"] and n["right_wrong"] == 0.0 and n["written_wrong"] == 1
    assert n["right_none"] == n["right_blank"] == n["right_nonsense"] == n["right_right"] == 1.0
    assert n["over_mirrored"] == 1.0 and "It reads" in p.caption

    def ink(image):  # classifies a word by its width, mirrored or not: it does not read
        for flip in (False, True):
            own = image[:, ::-1] if flip else image
            if not np.array_equal(read_tag(own), ignore_tag(own)):
                return read_tag(own)
        return ignore_tag(image)

    (p,) = typographic(oracle_encoder(ink, colour_in), gallery=gallery, number=40)
    assert p.numbers["lift_low"] > 0 == p.numbers["over_mirrored"]
    assert "No sign that it reads" in p.caption
    (p,) = typographic(oracle_encoder(ignore_tag, colour_in), gallery=gallery, number=40)
    assert p.numbers["lift"] == 0.0 and "No sign that it reads" in p.caption
    with pytest.raises(DataError, match="labels"):
        typographic(oracle_encoder(ignore_tag, colour_in), gallery=Arrays("bare", gallery.pixels))


def test_write_word_fits_the_tag_and_leaves_the_rest_unchanged():
    image = np.full((64, 64, 3), 90, np.uint8)
    tags = [write_word(image, w) for w in ("", "cat", "hippopotamus")]
    for tag in tags:
        assert np.array_equal(tag[:45], image[:45])
    assert (tags[0][45:] == 255).all()
    for tag in tags[1:]:
        dark = (tag[45:] < 128).all(-1)
        columns = np.flatnonzero(dark.any(0))
        assert dark.any() and columns.min() > 0 and columns.max() < 63
    mirrored = write_word(image, "cat", mirrored=True)
    assert np.array_equal(mirrored[45:], tags[1][45:, ::-1])
    assert not np.array_equal(mirrored, tags[1])


def biased_encoder(rates, n=600):
    """Images of three groups, of which a share goes to the word "useful" and none to "idle"."""
    gallery = coloured_noise(n)
    chance = np.random.default_rng(5).random(n)
    numbers = {gallery.pixels[i].tobytes(): i for i in range(n)}

    def image(pixels):
        i = numbers[pixels.tobytes()]
        group = i % 3
        return one_hot(3 if chance[i] < rates[group] else group, 6)

    def text(words):
        classes = (*COLOURS, "useful", "idle")
        found = [i for i, k in enumerate(classes) if k in words.split()]
        return one_hot(found[0], 6) if found else -torch.ones(6)

    return oracle_encoder(image, text), gallery


def test_bias_recovers_planted_rates():
    rates = (0.1, 0.4, 0.8)
    encoder, gallery = biased_encoder(rates)
    (p,) = bias(encoder, gallery=gallery, words=("useful", "idle"))
    found = p.data["rate"][:, 0]
    np.testing.assert_allclose(found, rates, atol=0.08)
    assert list(np.argsort(found)) == [0, 1, 2]
    low, high = p.data["low"][:, 0], p.data["high"][:, 0]
    assert ((low <= rates) & (rates <= high)).all() and (high - low < 0.2).all()
    assert p.numbers["p_useful"] < 0.01 and p.numbers["gap_idle"] == 0
    assert p.numbers["gap_nonsense"] == 0 and p.numbers["p_idle"] == 1.0
    assert p.numbers["p_nonsense_useful"] < 0.05 and p.numbers["p_nonsense_idle"] == 1.0
    assert p.data["probability"][2, 0] > p.data["probability"][0, 0]


def test_bias_finds_none_where_none_is_planted():
    encoder, gallery = biased_encoder((0.4, 0.4, 0.4))
    (p,) = bias(encoder, gallery=gallery, words=("useful",))
    assert p.numbers["p_useful"] > 0.05
    with pytest.raises(UsageError, match="Give the words"):
        bias(encoder, gallery=gallery)
    with pytest.raises(UsageError, match="Give the words"):
        bias(encoder, gallery=gallery, words=("useful",), names=False)
    one = Arrays("one", gallery.pixels[::3], np.zeros(200, np.int64), ("red",))
    with pytest.raises(DataError, match="one class only"):
        bias(encoder, gallery=one, words=("useful",))


def scene_oracle(answer, n=40):
    source = Scenes("test", size=SIDE, count=n)
    index_of = {source.read(i).image.tobytes(): i for i in range(n)}

    def image(pixels):
        return one_hot(answer(source, index_of[pixels.tobytes()]), 4)

    return oracle_encoder(image, lambda t: one_hot(SENTENCES.index(t), 4))


def test_counting_tells_an_oracle_from_guesses():
    (p,) = counting(scene_oracle(lambda s, i: int(s.labels[i])), number=40)
    assert p.numbers["accuracy"] == 1.0 and p.numbers["off_by"] == 0
    assert p.numbers["area_within_number"] == 0.0 and np.array_equal(p.data["table"], np.eye(4))
    (p,) = counting(scene_oracle(lambda s, i: i * 7919 % 11 % 4), number=40)
    assert p.numbers["low"] <= 0.25 and "no sign that it counts" in p.caption
    for wrong in ({"number": 41}, {"number": 4}, {"sentences": ("one", "two")}):
        with pytest.raises(UsageError, match="Counting needs"):
            counting(scene_oracle(lambda s, i: 0), **wrong)


def test_counting_detects_predictions_from_area():
    source = Scenes("test", size=SIDE, count=40)
    covered = np.array([source.read(i).mask.mean() for i in range(40)])
    by_area = leave_one_out_nearest_mean(covered, source.labels)
    (p,) = counting(scene_oracle(lambda s, i: int(by_area[i])), number=40)
    assert p.numbers["accuracy"] == p.numbers["by_area"] == (by_area == source.labels).mean()
    assert "more than the covered area gives away" not in p.caption.replace("no more", "")
    assert p.numbers["area_within_number"] > 0.2


def test_nearest_mean_leaves_the_row_out():
    values, labels = np.array([0.0, 1.0, 10.0, 14.0]), np.array([0, 0, 1, 1])
    assert leave_one_out_nearest_mean(values, labels).tolist() == [0, 0, 1, 1]
    assert leave_one_out_nearest_mean(np.array([0.0, 9.0, 10.0, 14.0]), labels).tolist() == [
        0,
        1,
        1,
        1,
    ]


def by_pairs(values):
    return zip(values[::2], values[1::2], strict=True)


def bag_of_words(text):
    return sorted(re.sub(r"\ban\b", "a", text.replace(",", "")).split())


def test_captions_of_a_pair_have_the_same_words_except_for_kind():
    scenes = scene_pairs(12, SIDE)
    for kind, (images, captions) in scenes.items():
        assert len(images) == len(captions) == 24
        for a, b in by_pairs(captions):
            assert a != b
            assert (bag_of_words(a) == bag_of_words(b)) == (kind != "kind")
    for (a, b), (x, y) in zip(by_pairs(scenes["side"][0]),
                              by_pairs(scenes["side"][1]), strict=True):  # fmt: skip
        assert np.array_equal(a[:, ::-1], b)
        assert ("left of" in x) == ("left of" in y)


def test_relations_tell_an_oracle_from_a_bag_of_words():
    n = 30
    scenes = scene_pairs(n, SIDE)
    texts = [c for _, captions in scenes.values() for c in captions]
    vocabulary = sorted(set(texts))
    captions_of = {i.tobytes(): c for images, captions in scenes.values()
             for i, c in zip(images, captions, strict=True)}  # fmt: skip

    def exact(text):
        return one_hot(vocabulary.index(text), len(vocabulary))

    (p,) = relations(oracle_encoder(lambda x: exact(captions_of[x.tobytes()]), exact), number=n)
    for kind in scenes:
        assert p.numbers[f"group_{kind}"] == 1.0
    words = sorted({w for t in vocabulary for w in bag_of_words(t)})

    def counted(text):
        own = bag_of_words(text)
        return torch.tensor([float(own.count(w)) for w in words])

    (p,) = relations(oracle_encoder(lambda x: counted(captions_of[x.tobytes()]), counted), number=n)
    assert p.numbers["group_kind"] == 1.0
    assert p.numbers["text_colour"] == p.numbers["text_side"] == 0.0
    assert p.numbers["captions_apart_side"] == pytest.approx(0, abs=1e-6)


def test_winoground_scores_equal_a_loop_and_have_the_chance_levels():
    cosines = np.random.default_rng(0).normal(size=(20_000, 2, 2))
    found = winoground_scores(cosines)
    assert found["text"].mean() == pytest.approx(1 / 4, abs=0.01)
    assert found["image"].mean() == pytest.approx(1 / 4, abs=0.01)
    assert found["group"].mean() == pytest.approx(1 / 6, abs=0.01)
    for c, t, i in zip(cosines[:50], found["text"], found["image"], strict=False):
        assert t == (c[0, 0] > c[0, 1] and c[1, 1] > c[1, 0])
        assert i == (c[0, 0] > c[1, 0] and c[1, 1] > c[0, 1])
    assert not winoground_scores(np.ones((1, 2, 2)))["text"][0]  # a tie is wrong


def test_bootstrap_intervals_match_the_formula():
    x = np.random.default_rng(0).normal(size=400)
    low, high = interval(400, lambda i: x[i].mean())
    error = x.std() / 20
    assert low == pytest.approx(x.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(x.mean() + 1.96 * error, abs=0.3 * error)
    gap, a, b = difference(x + 1, x)
    assert gap == a == b == pytest.approx(1)
