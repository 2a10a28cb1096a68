"""What an encoder file says about itself is checked before anything is built, whatever it says."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from nolabel.backbones import build
from nolabel.encoders import load, read_header, save_encoder
from nolabel.encoders.file import checksum
from nolabel.errors import NolabelError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Header and tensors of an intact encoder file."""
    kwargs = {"embed_dim": 24, "depth": 2, "num_heads": 3}
    path = save_encoder(
        tmp_path_factory.mktemp("run") / "encoder.safetensors",
        build("vit_nano", image_size=16, kwargs=kwargs),
        branch="teacher", method="dino", mean=(0.5,) * 3, std=(0.2,) * 3, image_size=16,
        run={"method": "dino", "settings": {"data": "creatures"}},
    )  # fmt: skip
    return read_header(path), load_file(path)


def forge(path, whole, change):
    """Writes an encoder file with a changed content and a checksum that fits it."""
    header, tensors = copy.deepcopy(whole[0]), dict(whole[1])
    header = change(header, tensors) or header
    if isinstance(header, dict):
        header["checksum"] = checksum(header, tensors)
    save_file(tensors, path, {"nolabel": json.dumps(header)})
    return path


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def field(name, value):
    return lambda header, tensors: header.__setitem__(name, value)


def argument(name, value):
    return lambda header, tensors: header["kwargs"].__setitem__(name, value)


def tensor(name, value):
    return lambda header, tensors: tensors.__setitem__(name, value)


FIELDS = {
    "name": ["", 5, None, ["vit"], "x" * 100_000, "pixels", "hf-hub:owner/name", "../../etc/passwd",
             "vit_giant_patch14_224", "resnet50", "object:mine", "mine.py:Net"],
    "kwargs": [None, [], "depth=2", {"depth": {"a": _nested(3)}}, {"depth": _nested(30)},
               {str(i): 1 for i in range(50)}],
    "positions": [5, "cubic", ["dino"], {"a": 1}],
    "branch": [None, 1],
    "method": [None, {}, "x" * 10_000],
    "image_size": [None, 0, -16, 16.5, "16", True, 10**9, [16]],
    "mean": [None, 0.5, [0.5], [0.5] * 4, ["a"] * 3, [None] * 3, [[0.5]] * 3, [10**400] * 3,
             [math.nan] * 3, [True] * 3],
    "std": [[0.0] * 3, [-1.0] * 3, [math.inf] * 3, {"a": 1}],
    "run": ["dino", 5, [1]],
    "code": [5, {"a": 5}, {"a": {"sha256": 5}}],
    "licence": [5],
    "format": [None, "1", -1, 0, 2, 10**30, {}],
}  # fmt: skip
ARGUMENTS = {
    "depth": [0, -1, 2_000_000, 1.5, "2", None, [2], True, 10**18],
    "embed_dim": [0, -24, 10**6, 10**12, "24", 25, math.nan],
    "num_heads": [0, -3, 7, 10**6, "x", math.nan],
    "patch_size": [0, -4, 3, 10**6, [4, 4, 4], "4"],
    "img_size": [0, -16, 17, 10**6, [16], [[16]], "16", math.inf],
    "in_chans": [0, -3, 10**9, 3.5, "3", None],
    "mlp_ratio": [-1, 10**6, "4"],
    "no_such_argument": [1, "x"],
    "pretrained": [True], "checkpoint_path": ["x.pth"], "pretrained_cfg": [{"file": "/etc/passwd"}],
    "act_layer": ["os.system", 5], "norm_layer": ["x"], "features_only": [True],
    "global_pool": ["map", 5], "class_token": [False], "reg_tokens": [10**6, -1],
}  # fmt: skip
TENSORS = {
    "missing": lambda header, tensors: tensors.__delitem__("cls_token"),
    "none": lambda header, tensors: tensors.clear(),
    "unexpected": tensor("more", torch.ones(1)),
    "of whole numbers": tensor("cls_token", torch.ones(1, 1, 24, dtype=torch.int64)),
    "of truth values": tensor("cls_token", torch.ones(1, 1, 24, dtype=torch.bool)),
    "complex": tensor("cls_token", torch.ones(1, 1, 24, dtype=torch.complex64)),
    "without dimensions": tensor("cls_token", torch.tensor(1.0)),
    "empty": tensor("cls_token", torch.ones(0)),
    "not finite": tensor("cls_token", torch.full((1, 1, 24), math.nan)),
    "of another shape": tensor("cls_token", torch.ones(1, 24, 1)),
    "a list as header": lambda header, tensors: [1],
    "a number as header": lambda header, tensors: 5,
}
DAMAGES = {
    **{f"{k}: {v!r:.30}": field(k, v) for k, values in FIELDS.items() for v in values},
    **{f"kwargs {k}: {v!r:.30}": argument(k, v) for k, values in ARGUMENTS.items() for v in values},
    **{f"tensors {k}": change for k, change in TENSORS.items()},
    **{f"no {k}": (lambda h, t, k=k: h.pop(k) and None)
       for k in ("name", "kwargs", "branch", "method", "image_size", "mean", "std", "format")},
}  # fmt: skip


def test_every_damage_of_a_header_is_an_error_of_ours(whole, tmp_path):
    assert len(DAMAGES) > 100
    for what, change in DAMAGES.items():
        path = forge(tmp_path / "encoder.safetensors", whole, change)
        for spec in (path, f"random:{path}"):
            try:
                load(spec, device="cpu")
            except NolabelError as error:
                assert len(str(error)) < 3_000 and "\n" not in str(error), what
            else:  # what a random twin does not need
                assert spec != path and what == "tensors not finite", what


def test_a_header_that_is_no_json_or_nested_without_end_is_damaged(whole, tmp_path):
    path = tmp_path / "encoder.safetensors"
    for text in ("", "{", "[" * 100_000, '{"a":' * 100_000, "\x00", "nan", '"x"'):
        save_file(whole[1], path, {"nolabel": text})
        with pytest.raises(NolabelError):
            load(path)


def test_what_is_not_needed_may_be_anything(whole, tmp_path):
    for change in (field("run", {"settings": [1]}), field("run", None), field("more", [[]])):
        path = forge(tmp_path / "encoder.safetensors", whole, change)
        assert load(path, device="cpu").dim == 24
