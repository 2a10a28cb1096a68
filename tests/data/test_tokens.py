"""The tokenizer: official ids of the published one, and properties of trained ones."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nolabel.data.text.tokenizer import PUBLISHED, Tokenizer, clean
from nolabel.errors import FileDamaged, UsageError

ORACLE = Path(__file__).parents[1] / "oracles" / "clip_tokens.json"
TEXTS = ["a red owl", "a red crab", "an orange owl", "two red owls", "naïve 猫 owl"]
has_clip = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="the extra clip is not installed"
)


@has_clip
def test_published_vocabulary_gives_the_official_ids():
    oracle = json.loads(ORACLE.read_text(encoding="utf-8"))
    tokenizer = Tokenizer.published(77)
    assert tokenizer.vocabulary == PUBLISHED
    assert tokenizer(oracle["texts"]).tolist() == oracle["ids"]


@has_clip
def test_the_published_tokenizer_is_saved_and_still_repairs_texts(tmp_path):
    tokenizer = Tokenizer.published(77)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    texts = ["The owl’s nest", "cafÃ© owl"]  # a curled quote, and letters decoded wrongly
    assert torch.equal(again(texts), tokenizer(texts))
    assert torch.equal(again(texts), tokenizer(["The owl's nest", "café owl"]))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"nolabel\[clip\].*--vocabulary"):
        Tokenizer.published(77)


def test_ids_are_start_pieces_end_and_zeros():
    t = Tokenizer.learn(TEXTS, 600, 8)
    start, end = t.vocabulary - 2, t.vocabulary - 1
    for row in t(TEXTS):
        place = int((row == end).nonzero()[0])
        assert row[0] == start
        assert (row[place + 1 :] == 0).all()
        assert int(row.argmax()) == place  # the end has the largest id
    assert t([""])[0].tolist() == [start, end] + [0] * 6
    assert t([]).shape == (0, 8)


def test_a_text_that_is_too_long_is_cut_but_keeps_its_end():
    t = Tokenizer.learn(TEXTS, 600, 6)
    row = t(["a red owl a red owl a red owl"])[0]
    assert row[-1] == t.vocabulary - 1
    assert torch.equal(row[:5], Tokenizer.learn(TEXTS, 600, 77)(["a red owl a red owl"])[0][:5])


def test_words_that_occur_often_become_one_token():
    t = Tokenizer.learn(TEXTS * 2, 1000, 16)
    assert (t(["red owl"])[0] != 0).sum() == 4  # start, red, owl, end
    assert (t(["unseen"])[0] != 0).sum() > 4


def test_any_text_has_ids_even_with_unseen_characters():
    t = Tokenizer.learn(["a"], 515, 64)
    rows = t(["猫が好き", "\x00\x7f", "🦉"])
    assert ((rows >= 0) & (rows < t.vocabulary)).all()
    assert len({tuple(r.tolist()) for r in rows}) == 3


def test_the_vocabulary_is_at_most_the_requested_size():
    for size in (515, 520, 530):
        assert Tokenizer.learn(TEXTS * 50, size, 16).vocabulary <= size
    assert Tokenizer.learn(TEXTS * 50, 520, 16).vocabulary == 520


def test_training_is_deterministic_across_processes():
    code = (
        "from nolabel.data.creatures.world import Creatures;"
        "from nolabel.data.text.tokenizer import Tokenizer;"
        "import hashlib, numpy as np; t = Creatures().read_texts(np.arange(500));"
        "print(hashlib.sha256(Tokenizer.learn(t, 560, 16).text().encode()).hexdigest())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
        ).stdout
        for _ in range(3)
    }
    assert len(found) == 1


def test_a_trained_tokenizer_is_saved_and_readable_by_the_library(tmp_path):
    from tokenizers import Tokenizer as Core

    t = Tokenizer.learn(TEXTS, 600, 12)
    t.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.vocabulary, again.context) == (t.vocabulary, 12)
    assert torch.equal(again(TEXTS), t(TEXTS))
    core = Core.from_file(str(tmp_path / "tokenizer.json"))
    assert core.encode("a red owl").ids == t(["a red owl"])[0].tolist()


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        Tokenizer.load(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text('{"version": ')
    with pytest.raises(FileDamaged, match=r"bad\.json"):
        Tokenizer.load(tmp_path / "bad.json")


@pytest.mark.parametrize(("size", "context"), [(514, 16), (600, 2)])
def test_impossible_sizes_are_refused(size, context):
    with pytest.raises(UsageError, match="must be"):
        Tokenizer.learn(TEXTS, size, context)


def test_cleaning_normalises_entities_space_and_case():
    assert clean("  A &amp;amp; B\n\tc ") == "a & b c"
    assert clean("Owl’s") == "owl’s"


def test_texts_that_differ_in_space_case_and_entities_have_the_same_ids():
    t = Tokenizer.learn(TEXTS, 600, 12)
    assert torch.equal(t(["a  Red\nOWL &amp; x"]), t(["a red owl & x"]))
