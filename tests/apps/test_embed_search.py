"""Features of whole sets: the encoder's own, continued where they stopped, searched exactly."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import nolabel as nl
from nolabel.apps import _features_file
from nolabel.apps.embed import Options, embed, open_index, shard_range
from nolabel.apps.search import draw, search
from nolabel.cli import main
from nolabel.data.creatures.world import Creatures
from nolabel.data.open import open_source
from nolabel.data.source import Source, Subset
from nolabel.data.sources.folder import Folder
from nolabel.encoders.features import extract
from nolabel.errors import BadImage, DataError, FileDamaged, UsageError

SOURCE = Creatures("test", count=70)


@pytest.fixture(scope="module")
def encoder():
    return nl.load("random:vit_pico")


@pytest.mark.parametrize("ending", ["npy", "safetensors", "parquet"])
def test_rows_are_the_encoders_own_embeddings_in_every_format(ending, encoder, tmp_path):
    path = tmp_path / f"f.{ending}"
    index = embed(encoder, SOURCE, path, options=Options(batch_size=32))
    expected = extract(encoder, SOURCE).values.numpy()
    np.testing.assert_allclose(index.values, expected, atol=1e-6)
    assert index.names()[3] == SOURCE.path(3)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"f.{ending}{e}" for e in ("", ".json", ".paths")
    }
    if ending == "npy":
        np.testing.assert_array_equal(np.load(path), index.values)
    elif ending == "safetensors":
        np.testing.assert_array_equal(load_file(path)["features"].numpy(), index.values)
    else:
        from pyarrow import parquet

        table = parquet.read_table(path)
        assert table.column("path").to_pylist()[3] == SOURCE.path(3)
        np.testing.assert_array_equal(np.array(table.column("features").to_pylist()), index.values)


def test_pools_unit_length_and_half_precision(encoder, tmp_path):
    t = encoder.tokens(list(SOURCE.images()))
    for pool, expected in {
        "class": t.prefix[:, 0], "mean": t.patches.mean(1),
        "both": torch.cat([t.prefix[:, 0], t.patches.mean(1)], 1),
    }.items():  # fmt: skip
        index = embed(encoder, SOURCE, tmp_path / f"{pool}.npy", options=Options(pool=pool))
        np.testing.assert_allclose(index.values, expected.numpy(), atol=1e-5)
    index = embed(encoder, SOURCE, tmp_path / "n.npy", options=Options(normalize=True, half=True))
    assert index.values.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(index.values.astype("f4"), axis=1), 1.0, atol=2e-3)
    coarse = embed(nl.load("random:vit_pico"), SOURCE, tmp_path / "b.npy",
                   options=Options(precision="bf16"))  # fmt: skip
    exact = extract(encoder, SOURCE).values.numpy()
    error = np.abs(coarse.values - exact).max()
    assert 0 < error < 0.1 and coarse.values.dtype == np.float32
    mean = embed(nl.load("random:resnet_nano"), SOURCE, tmp_path / "m.npy",
                 options=Options(precision="bf16", pool="mean"))  # fmt: skip
    rounded = torch.tensor(mean.values).bfloat16().float().numpy()
    assert (rounded != mean.values).mean() > 0.9  # the mean itself is not rounded to bf16
    with pytest.raises(UsageError, match="no class token"):
        embed(
            nl.load("random:resnet_nano"), SOURCE, tmp_path / "r.npy", options=Options(pool="class")
        )


class Stops(Source):
    """A source that is interrupted after some images, and cannot read one of them."""

    name = "stops"

    def __init__(self, after):
        self.after, self.seen = after, []

    def __len__(self):
        return 40

    def path(self, i, /):
        return f"stops/{i}"

    def read(self, i, /):
        if self.after is not None and i >= self.after:
            raise KeyboardInterrupt
        if i == 5:
            raise BadImage(self.path(i), "broken")
        self.seen.append(i)
        return SOURCE.read(i)


def test_an_interrupted_embedding_goes_on_and_ends_the_same(encoder, tmp_path):
    o = Options(batch_size=8)
    whole = embed(encoder, Stops(None), tmp_path / "whole.npy", options=o)
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, Stops(24), tmp_path / "f.npy", options=o)
    assert json.loads((tmp_path / "f.npy.partial.json").read_text())["done"] in (8, 16, 24)
    with pytest.raises(UsageError, match="not finished"):
        open_index(tmp_path / "f.npy")
    with pytest.raises(UsageError, match="begun with another pool"):
        embed(encoder, Stops(None), tmp_path / "f.npy", options=Options(pool="mean", batch_size=8))
    rest = Stops(None)
    index = embed(encoder, rest, tmp_path / "f.npy", options=o)
    assert min(rest.seen) >= 8  # what was done is not done again
    np.testing.assert_array_equal(index.values, whole.values)
    assert index.about["skipped"] == [["stops/5", "broken"]]
    assert np.isnan(index.values[5]).all() and not np.isnan(index.values[4]).any()
    with pytest.raises(UsageError, match="--overwrite"):
        embed(encoder, Stops(None), tmp_path / "f.npy", options=o)


def grey(folder, values):
    """A folder of small grey images, one of each brightness."""
    folder.mkdir()
    for i, value in enumerate(values):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(folder / f"{i:02}.png")
    return folder


def stopped_halfway(encoder, folder, out):
    class Halfway(Folder):
        def read(self, i, **how):
            if i >= 8:
                raise KeyboardInterrupt
            return super().read(i, **how)

    with pytest.raises(KeyboardInterrupt):
        embed(encoder, Halfway(str(folder)), out, options=Options(batch_size=4))


@pytest.mark.parametrize("change", ["renamed", "another content", "another encoder"])
def test_an_embedding_goes_on_only_over_the_same_images_with_the_same_weights(tmp_path, change):
    encoder, out = nl.load("random:vit_pico", image_size=32), tmp_path / "f.npy"
    folder = grey(tmp_path / "d", range(0, 160, 10))
    stopped_halfway(encoder, folder, out)
    if change == "renamed":
        (folder / "00.png").rename(folder / "99.png")
    elif change == "another content":
        (folder / "00.png").write_bytes((folder / "01.png").read_bytes())
    else:
        with torch.no_grad():
            next(encoder.backbone.parameters()).add_(1.0)
    what = "weights of the encoder" if change == "another encoder" else "images"
    with pytest.raises(UsageError, match=f"begun with other {what}"):
        embed(encoder, open_source(str(folder)), out)
    index = embed(encoder, open_source(str(folder)), out, overwrite=True)
    np.testing.assert_allclose(index.values, encoder.embed(index.names()).numpy(), atol=1e-5)


@pytest.mark.parametrize("after", ["features_digest", "_write_final", "the last file"])
def test_an_embedding_that_is_killed_while_it_finishes_is_finished_by_the_same_command(
    encoder, tmp_path, monkeypatch, after
):
    write_final = _features_file._write_final

    def dies(*args):
        if after == "the last file":
            write_final(*args)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(_features_file, "_write_final" if "last" in after else after, dies)
        with pytest.raises(MemoryError):
            embed(encoder, SOURCE, tmp_path / "f.npy")
    index = embed(encoder, SOURCE, tmp_path / "f.npy")
    assert len(index.names()) == len(SOURCE) and not list(tmp_path.glob("*partial*"))


def test_what_was_begun_with_overwrite_is_not_finished_without_it(encoder, tmp_path):
    embed(encoder, SOURCE, tmp_path / "f.npy")
    before = (tmp_path / "f.npy").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, Stops(24), tmp_path / "f.npy", options=Options(batch_size=8), overwrite=True)
    with pytest.raises(UsageError, match="exists already"):
        embed(encoder, Stops(None), tmp_path / "f.npy", options=Options(batch_size=8))
    assert (tmp_path / "f.npy").read_bytes() == before


def test_names_of_other_features_are_noticed(encoder, tmp_path):
    index = embed(encoder, SOURCE, tmp_path / "f.npy")
    lines = (tmp_path / "f.npy.paths").read_text().splitlines()
    (tmp_path / "f.npy.paths").write_text("\n".join([*lines[1:], lines[0]]) + "\n")
    with pytest.raises(FileDamaged, match="of other features"):
        index.names()


def test_a_full_disk_is_an_error_before_anything_is_computed(encoder, tmp_path, monkeypatch):
    """A mapped file whose space is missing would end the process by a signal."""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        embed(encoder, SOURCE, tmp_path / "f.npy")
    assert not list(tmp_path.iterdir())


def test_features_are_searched_by_the_weights_that_made_them_alone(tmp_path):
    """Names and widths do not tell encoders apart, and a copy of the weights is the same one."""
    made_by = nl.load("random:vit_pico", image_size=32)
    index = embed(made_by, SOURCE, tmp_path / "f.npy")
    same, other = (nl.load("random:vit_pico", image_size=32) for _ in range(2))
    same.name = "a copy"
    with torch.no_grad():
        next(other.backbone.parameters()).mul_(2.0)
    image = SOURCE.read(3).image
    assert search(index, same, image, k=1).rows == (3,)
    with pytest.raises(UsageError, match="different encoders"):
        search(index, other, image)


def test_a_kept_index_of_older_features_is_not_searched(encoder, tmp_path):
    """Whatever the clock says: files are copied, and clocks go back."""
    pytest.importorskip("faiss")
    index = embed(encoder, SOURCE, tmp_path / "f.npy")
    search(index, encoder, SOURCE.read(0).image, approximate=True)
    kept = {e: (tmp_path / f"f.npy.{e}").read_bytes() for e in ("faiss", "faiss.json")}
    backwards = Subset(SOURCE, np.arange(len(SOURCE))[::-1])
    index = embed(encoder, backwards, tmp_path / "f.npy", overwrite=True)
    for ending, content in kept.items():
        (tmp_path / f"f.npy.{ending}").write_bytes(content)
    hits = search(index, encoder, SOURCE.read(0).image, k=1, approximate=True)
    assert hits.rows == (len(SOURCE) - 1,)


def test_parts_together_are_the_whole(encoder, tmp_path):
    assert [list(shard_range(f"{i}/3", 10)) for i in (1, 2, 3)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8, 9],
    ]
    parts = [
        embed(encoder, SOURCE, tmp_path / f"{i}.npy", options=Options(shard=f"{i}/3")).values
        for i in (1, 2, 3)
    ]
    np.testing.assert_allclose(np.concatenate(parts), extract(encoder, SOURCE).values, atol=1e-6)
    for wrong in ("0/3", "4/3", "a/b", "3"):
        with pytest.raises(UsageError, match="I/N"):
            Options(shard=wrong)


def test_search_finds_what_a_sort_finds_and_passes_over_missing_rows(encoder, tmp_path):
    source = Stops(None)
    index = embed(encoder, source, tmp_path / "f.npy")
    image = SOURCE.read(60).image
    hits = search(index, encoder, image, k=39)
    z = extract(encoder, SOURCE).values[:40]
    z = torch.nn.functional.normalize(z, dim=1)
    q = torch.nn.functional.normalize(encoder.embed([image]), dim=1)[0]
    expected = [i for i in (z @ q).argsort(descending=True).tolist() if i != 5]
    assert list(hits.rows) == expected
    assert search(index, encoder, SOURCE.read(7).image, k=1).rows == (7,)
    assert len(search(index, encoder, image, k=1000).rows) == 39
    picture = draw(hits, source, image)[0]
    assert picture.image.ndim == 3 and picture.numbers["nearest"] == hits.similarity[0]


def test_an_approximate_search_finds_the_same_and_keeps_its_cells(encoder, tmp_path):
    pytest.importorskip("faiss")
    source = Stops(None)
    index = embed(encoder, source, tmp_path / "f.npy")
    image = SOURCE.read(60).image
    exact = search(index, encoder, image, k=39)
    found = search(index, encoder, image, k=39, approximate=True)
    assert set(found.rows) == set(exact.rows)  # few rows are one cell; row 5 has no image
    np.testing.assert_allclose(found.similarity, exact.similarity, atol=1e-5)
    assert (tmp_path / "f.npy.faiss").is_file()
    assert search(index, encoder, image, k=3, approximate=True).rows == exact.rows[:3]
    with pytest.raises(UsageError, match="k must be"):
        search(index, encoder, image, k=0, approximate=True)


def test_features_of_another_encoder_and_words_without_a_text_tower_are_refused(encoder, tmp_path):
    index = embed(encoder, SOURCE, tmp_path / "f.npy")
    with pytest.raises(UsageError, match="different encoders"):
        search(index, nl.load("random:resnet_nano"), SOURCE.read(0).image)
    with pytest.raises(UsageError, match="no text tower"):
        search(index, encoder, "a red bird")
    with pytest.raises(UsageError, match="k must be"):
        search(index, encoder, SOURCE.read(0).image, k=0)
    (tmp_path / "f.npy.json").write_text("{")
    with pytest.raises(FileDamaged, match="description"):
        open_index(tmp_path / "f.npy")
    with pytest.raises(UsageError, match="ending"):
        embed(encoder, SOURCE, tmp_path / "f.csv")


def test_a_set_without_a_readable_image_is_an_error(encoder, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="No image"):
        embed(encoder, open_source(str(tmp_path)), tmp_path / "f.npy")


def test_the_verbs_embed_search_and_draw_with_an_image_and_with_words(tmp_path, capsys):
    run = nl.pretrain(
        "clip", data=Creatures(count=64), backbone="vit_pico", steps=2, batch_size=32, quiet=True,
        precision="fp32", out=tmp_path / "clip",
    )  # fmt: skip
    given = ["--encoder", str(run.folder)]
    out = str(tmp_path / "f.npy")
    assert main(["embed", *given, "--data", "creatures:test", "--out", out]) == 0
    assert "2,000 x 64 float32" in capsys.readouterr().out
    Image.fromarray(Creatures("test").read(11).image).save(tmp_path / "query.png")
    query = ["--index", out, *given, "--query", str(tmp_path / "query.png"), "--k", "3"]
    output = ["--out", str(tmp_path / "drawn"), "--json", str(tmp_path / "found.json")]
    assert main(["search", *query, *output]) == 0
    assert (tmp_path / "drawn" / "search.png").is_file()
    found = json.loads((tmp_path / "found.json").read_text())["found"]
    assert found[0]["row"] == 11 and found[0]["name"] == "creatures:test/00011"
    words = ["search", "--index", out, *given, "--query", "a red bird on a dark ground"]
    assert main(words) == 0
    assert "nearest to 'a red bird" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [{"count": "many"}, {"count": -1}, {"dim": 10**30}, {"dim": None}, {"dtype": "object"},
     {"dtype": [1]}, {"count": 10**9, "dim": 10**9}],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
def test_a_description_that_does_not_fit_its_features_is_refused(ending, change, tmp_path):
    path = tmp_path / f"f{ending}"
    np.save(tmp_path / "f.npy", np.zeros((2, 3), np.float32))
    path.write_bytes((tmp_path / "f.npy").read_bytes())
    about = {"count": 2, "dim": 3, "dtype": "float32", **change}
    (tmp_path / f"f{ending}.json").write_text(json.dumps(about))
    with pytest.raises(FileDamaged):
        open_index(path)
    for damaged in (b"", b"[]", b"\xff", b"[" * 100_000):
        (tmp_path / f"f{ending}.json").write_bytes(damaged)
        with pytest.raises(FileDamaged):
            open_index(path)
