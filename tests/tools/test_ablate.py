"""Tables of ablations: equal budgets, seeds, intervals, and continuing a stopped table."""

from __future__ import annotations

import json
import math

import pytest
from scipy import stats

from nolabel._files import LOCK, Lock
from nolabel.errors import UsageError
from nolabel.methods import load, with_ablations
from nolabel.testing import TINY
from nolabel.tools.ablate import _finished, ablate, interval, parse_rows, render

SMALL = {"steps": 2, "backbone": "vit_pico", "image_size": 32, "batch_size": 8, "workers": 0,
         "precision": "fp32"}  # fmt: skip


@pytest.mark.parametrize("values", [[0.5, 0.7], [0.2, 0.3, 0.7], [0.1 * i for i in range(8)]])
def test_interval_is_students(values):
    mean, low, high = interval(values)
    expected = stats.t.interval(0.95, len(values) - 1, mean, stats.sem(values))
    assert (low, high) == (
        pytest.approx(expected[0], abs=1e-3),
        pytest.approx(expected[1], abs=1e-3),
    )


def test_one_seed_has_no_interval():
    mean, low, high = interval([0.4])
    assert mean == 0.4 and math.isnan(low) and math.isnan(high)


def test_every_row_of_a_methods_table_is_legal():
    for name in ("dino-ablated", "dinov2"):
        kind = load(name)
        for row in kind.ablations.values():
            kind.Options(**row)  # unknown names would raise


def test_a_table_is_trained_measured_and_printed(photos, tmp_path):
    rows = {"no centring": {"centring": "none"}}
    table = ablate(
        "dino", data=str(photos), rows=rows, seeds=2, out=tmp_path, **SMALL, **TINY["dino"]
    )
    assert [r["row"] for r in table] == ["as it is", "no centring"]
    assert all(len(r["values"]) == 2 and r["low"] <= r["mean"] <= r["high"] for r in table)
    saved = json.loads((tmp_path / "ablation.json").read_text())
    assert [r["values"] for r in saved["rows"]] == [r["values"] for r in table]
    text = render(table)
    assert "no centring" in text and "as it is" in text


def test_a_stopped_table_goes_on_and_another_one_starts_anew(photos, tmp_path):
    rows = {"a": {"centring": "none"}}
    given = {"data": str(photos), "rows": rows, "out": tmp_path, **SMALL, **TINY["dino"]}
    ablate("dino", seeds=1, **given)
    file = tmp_path / "ablation.json"
    saved = json.loads(file.read_text())
    saved["rows"][0]["values"] = [0.123]  # finished runs are not trained again
    file.write_text(json.dumps(saved))
    assert ablate("dino", seeds=1, **given)[0]["values"] == [0.123]
    changed = ablate("dino", seeds=1, **{**given, "steps": 1})
    assert changed[0]["values"] != [0.123]


def test_a_table_over_other_images_starts_anew_and_one_process_writes_it(tmp_path):
    asked = {"method": "dino", "data": "photos", "digests": ["a"]}
    file = tmp_path / "ablation.json"
    row = {"row": "as it is", "change": {}, "values": [0.5]}
    file.write_text(json.dumps({"asked": asked, "rows": [row, 5, {**row, "values": "x"}]}))
    assert _finished(file, asked) == {json.dumps(["as it is", {}]): [0.5]}
    assert not _finished(file, {**asked, "digests": ["b"]})  # the same name, other images
    for damaged in ("", "[]", '{"asked": 5}', json.dumps({"asked": asked, "rows": 5})):
        file.write_text(damaged)
        assert not _finished(file, asked)
    with Lock(tmp_path / LOCK, "it"), pytest.raises(UsageError, match="using the ablation in"):
        ablate("dino", data="digits", rows={"a": {"centring": "none"}}, out=tmp_path)


def test_rows_are_read_from_text_and_wrong_ones_are_refused():
    kind = load(with_ablations("dino"))
    assert parse_rows(["local-crops=0 loss=mse"], kind) == {
        "local-crops=0 loss=mse": {"local_crops": 0, "loss": "mse"}
    }
    with pytest.raises(UsageError, match="option=value"):
        parse_rows(["crops=0"], kind)


def test_a_method_without_a_table_asks_for_rows(photos):
    with pytest.raises(UsageError, match="--rows"):
        ablate("byol", data=str(photos))
