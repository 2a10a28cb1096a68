"""No value of a recipe changes unnoticed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import values

FROZEN = json.loads(values.FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("what", ["recipes", "networks", "warm-up"])
def test_values_are_those_of_the_table(what):
    found = values.table()[what]
    assert found == FROZEN[what]
