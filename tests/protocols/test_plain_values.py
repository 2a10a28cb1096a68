"""Plain values are read from pickles unchanged; anything else is refused, and never executed."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import nolabel
from nolabel.errors import FileDamaged
from nolabel.protocols.data._pickle import plain_values

VALUE = {
    "imlist": ["a", "b", "Zürich"], "numbers": (1, -7, 300, 70_000, 2**40, 0.5, True, None),
    "gnd": [{"easy": np.array([1, 5, 9]), "bbx": np.array([[1.5, 2.0], [3.0, 4.0]])},
            {"easy": np.array([], dtype=np.int32), "scalar": np.float64(2.5), "raw": b"\x00\xff"}],
    "shared": None,
}  # fmt: skip
VALUE["shared"] = VALUE["gnd"]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_values_come_out_as_they_went_in(protocol):
    if protocol == 0:  # its strings of bytes are written out in another way by arrays
        value = {k: v for k, v in VALUE.items() if k in ("imlist", "numbers")}
        assert plain_values(pickle.dumps(value, 0)) == value
        return
    found = plain_values(pickle.dumps(VALUE, protocol))
    assert found["imlist"] == VALUE["imlist"] and found["numbers"] == VALUE["numbers"]
    for got, wanted in zip(found["gnd"], VALUE["gnd"], strict=True):
        assert got.keys() == wanted.keys()
        for key in wanted:
            np.testing.assert_array_equal(got[key], wanted[key])
    big = np.asfortranarray(np.arange(12, dtype=">i4").reshape(3, 4))
    np.testing.assert_array_equal(plain_values(pickle.dumps(big, protocol)), big)


class Payload:
    ran = False

    def __reduce__(self):
        return os.putenv, ("NOLABEL_TEST_RAN", "1")


@pytest.mark.parametrize("value", [Payload(), {"a": [Payload()]}, collections.OrderedDict(a=1),
                                   np.array([Payload()], dtype=object), print, {1, 2}])  # fmt: skip
def test_objects_are_refused(value):
    for protocol in (2, 4):
        with pytest.raises(FileDamaged):
            plain_values(pickle.dumps(value, protocol))


def test_broken_files_are_refused():
    whole = pickle.dumps(VALUE, 4)
    for part in (whole[:-40], b"", b"words", whole[20:]):
        with pytest.raises(FileDamaged):
            plain_values(part)


def test_one_file_alone_reads_pickles():
    """The interpreter of pickle operations is used by one module only."""
    package = Path(nolabel.__file__).parent
    users = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "_pickle import" in (text := path.read_text()) or "import pickletools" in text
    }
    assert users == {"protocols/data/_pickle.py", "protocols/data/revisited.py"}
