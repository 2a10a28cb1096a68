"""The stages of data loading are timed, and the advice names the slowest."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

from nolabel.data import stages
from nolabel.data.open import open_source
from nolabel.data.source import Source
from nolabel.data.sources.arrays import Arrays
from nolabel.errors import BadImage, DataError
from nolabel.types import Sample
from nolabel.views import View, ViewPlan

PLAN = ViewPlan(views=(View(name="v", size=32, count=2, jitter=(0.4, 0.4, 0.2, 0.1), blur=(1.0,)),))


class Slow(Source):
    """A source whose reading or decoding sleeps."""

    name, has_files = "slow", True

    def __init__(self, reading: float = 0.0, decoding: float = 0.0):
        self.reading, self.decoding = reading, decoding

    def __len__(self):
        return 8

    def path(self, i):
        return str(i)

    def read_bytes(self, i):
        time.sleep(self.reading)
        return b""

    def read(self, i):
        self.read_bytes(i)
        time.sleep(self.decoding)
        return Sample(image=np.zeros((40, 40, 3), np.uint8))


@pytest.mark.parametrize(
    ("source", "stage"), [(Slow(reading=0.02), "read"), (Slow(decoding=0.02), "decode")]
)
def test_the_slow_stage_is_found(source, stage):
    found = stages.measure_stages(source, PLAN)
    assert set(found) == set(stages.STAGES)
    assert max(found, key=found.get) == stage
    assert 0.019 < found[stage] < 0.04


def test_operations_that_a_plan_does_not_use_cost_nothing():
    source = Arrays("a", np.zeros((64, 32, 32, 3), np.uint8))
    found = stages.measure_stages(source, PLAN)
    assert found["decode"] == found["transfer"] == found["collate"] == 0
    assert found["crop"] > 0 and found["read"] > 0


def test_bad_files_are_skipped_and_only_bad_files_are_an_error(tmp_path):
    for i in range(4):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    assert stages.measure_stages(open_source(tmp_path), PLAN)["decode"] > 0

    class Bad(Slow):
        def read(self, i):
            raise BadImage(str(i), "bad")

    with pytest.raises(DataError, match="none of 8"):
        stages.measure_stages(Bad(), PLAN)


@pytest.mark.parametrize("worst", stages.STAGES)
def test_the_advice_names_the_worst_stage_and_what_to_do(worst):
    times = dict.fromkeys(stages.STAGES, 0.001) | {worst: 0.009}
    advice = stages.advice(times, workers=2, cores=8, cpu=False)
    assert f"60% of it for {worst}." in advice and "--workers 8" in advice
    assert "--workers" not in stages.advice(times, workers=8, cores=8, cpu=False)
