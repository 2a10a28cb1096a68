"""`nolabel scan` finds the defects that were put into a data set."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nolabel import cli
from nolabel.data.open import open_source
from nolabel.data.sources.items import Items
from nolabel.tools.scan import describe, scan
from nolabel.tools.survey import survey


def noise(seed, height=48, width=64):
    """A smooth picture unlike any of another seed."""
    chance = np.random.default_rng(seed)
    small = Image.fromarray(chance.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(20):
        Image.fromarray(noise(i)).save(root / f"{i:02}.png")
    Image.fromarray(noise(3)).save(root / "equal.png")
    Image.fromarray(noise(5)).save(root / "nearly.jpg", quality=80)
    Image.fromarray(noise(7)).resize((32, 24)).save(root / "smaller.png")
    Image.fromarray(noise(30)[..., 0]).save(root / "grey.png")
    (root / "web.jpg").write_text("<html>")
    return root


def names(groups):
    return {frozenset(path.rpartition("/")[2] for path in group) for group in groups}


def test_duplicates_are_found_and_nothing_else_is(folder):
    found = survey(open_source(str(folder)))
    assert names(found.same) == {frozenset({"03.png", "equal.png"})}
    assert names(found.near) == {
        frozenset({"05.png", "nearly.jpg"}), frozenset({"07.png", "smaller.png"}),
    }  # fmt: skip


def test_sizes_colours_and_bad_files_are_counted(folder):
    found = survey(open_source(str(folder)))
    assert (found.images, found.good, len(found.bad)) == (25, 24, 1)
    assert found.bad[0][0].endswith("web.jpg") and "web page" in found.bad[0][1]
    assert found.modes == {"colour": 23, "grey": 1}
    assert sorted({tuple(s) for s in found.sizes.tolist()}) == [(24, 32), (48, 64)]


def test_mean_and_deviation_are_those_of_all_pixels():
    pictures = [noise(i, 10 + i, 12) for i in range(5)]
    found = survey(Items(pictures))
    flat = np.concatenate([p.reshape(-1, 3) for p in pictures]) / 255
    np.testing.assert_allclose(found.mean, flat.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.std, flat.std(0), rtol=1e-9)


def test_a_limit_looks_at_so_many_spread_over_all():
    found = survey(open_source("digits:train"), limit=100)
    assert (found.seen, found.good) == (100, 100)
    assert found.images > 1000


def test_plain_images_that_differ_in_brightness_are_no_duplicates():
    flat = [np.full((8, 8, 3), 20 * i, np.uint8) for i in range(10)]
    found = survey(Items(flat))
    assert not found.same and not found.near


def test_the_verb_suggests_a_run_with_its_cost(folder, tmp_path, capsys):
    out = tmp_path / "scan"
    args = ["scan", "--data", str(folder), "--out", str(out), "--json", str(tmp_path / "s.json")]
    assert cli.main(args) == 0
    printed = capsys.readouterr().out
    for words in (
        "25 images",
        "unreadable  1",
        "nolabel pretrain",
        "60 min",
        "8 hours",
        "MB of memory",
    ):
        assert words in printed
    found = json.loads((tmp_path / "s.json").read_text())
    recipe = found["recipe"]
    assert recipe["batch_size"] <= found["images"]
    assert recipe["memory_bytes"] > 0 and recipe["seconds"] > 0
    assert Image.open(out / "contact-sheet.png").size[0] > 300
    (line,) = (out / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["path"].endswith("web.jpg")


def test_reading_ends_after_some_seconds_with_a_fair_sample(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("nolabel.tools.survey.time", SimpleNamespace(monotonic=clock.__next__))
    found = survey(Items([noise(i, 8, 8) for i in range(40)]), seconds=12)
    assert (found.images, found.seen, found.good) == (40, 13, 13)
    again = survey(Items([noise(i, 8, 8) for i in range(40)]), seconds=1e9)
    assert (again.seen, again.good) == (40, 40)
    assert again.sizes.tolist() == survey(Items([noise(i, 8, 8) for i in range(40)])).sizes.tolist()


def test_offers_for_more_time_are_larger_runs(folder, monkeypatch):
    """With a faked stopwatch: two seconds a step at 32 px."""

    def step(self, resolved):
        return 2.0 * (resolved.run.settings.image_size / 32) ** 2

    monkeypatch.setattr("nolabel.tools.scan.Trial.__call__", step)
    offers = scan(open_source(str(folder)))["recipe"]["offers"]
    assert [o["minutes"] for o in offers] == [10, 60, 480]
    assert offers[0]["steps"] == int(592 / 2.0) and offers[0]["epochs"] > 10
    assert all(o["command"].endswith(f"--minutes {o['minutes']:g}") for o in offers)


def test_images_that_are_all_bad_are_said_to_be(tmp_path, capsys):
    (tmp_path / "a.png").write_text("no")
    assert cli.main(["scan", "--data", str(tmp_path), "--out", str(tmp_path / "s")]) == 0
    printed = capsys.readouterr().out
    assert "unreadable  1" in printed and "suggested" not in printed


def test_pages_and_dark_values_and_one_image_are_told(tmp_path):
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)) for _ in range(3)]
    (tmp_path / "pages").mkdir()
    for i in range(2):
        pages[0].save(tmp_path / f"pages/{i}.tif", save_all=True, append_images=pages[1:])
    found = scan(open_source(tmp_path / "pages"), predict=False)
    assert any("2 file(s) have several pages" in n for n in found["notes"])
    (tmp_path / "dark").mkdir()
    values = rng.integers(0, 4096, (16, 16)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "dark/0.png")
    found = scan(open_source(tmp_path / "dark"))  # one image: described, without a suggestion
    assert "recipe" not in found and "one image can be read" in found["notes"][-1]
    assert any("--channels 1" in n for n in found["notes"])
    assert "--channels 1" in describe(found)
