"""The signals detect the collapse of runs that were made to fail. Every test of a run that learns
asserts that healthy runs raise no alarm (`conftest.gain_of_a_short_run`)."""

from __future__ import annotations

import json

import pytest

from nolabel.engine.monitor.signals import collapse

EQUAL = {"teacher_temperature": 0.1, "warmup_teacher_temperature": 0.1}  # as the student's
ZERO = {"teacher_temperature": 1e-4, "warmup_teacher_temperature": 1e-4}
UNSTOPPED = {"stop_gradient": False, "projection_norm": False}  # the norm alone keeps a spread
CASES = {
    "dino without centring and sharpening": (
        "dino-ablated",
        {"centring": "none", **EQUAL},
        "the targets",
    ),
    "dino with a temperature of zero": ("dino", {**ZERO, "steps": 60, "image_size": 32}, "share"),
    "byol without the stop of the gradient": ("byol", UNSTOPPED, "embeddings"),
}


@pytest.mark.long
@pytest.mark.parametrize("case", list(CASES))
def test_a_forced_failure_is_recognised(case, tmp_path):
    import nolabel as nl

    method, options, sign = CASES[case]
    run = nl.pretrain(
        method, data="creatures", out=tmp_path / "run", batch_size=64, quiet=True,
        backbone="resnet_nano", precision="fp32", log_every=20,
        **{"steps": 50, "image_size": 24, **options},
    )  # fmt: skip
    last = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    why = collapse(last)
    assert why is not None and sign in why.why, (why, last)


def test_every_sign_of_collapse_has_a_limit_and_absent_signals_say_nothing():
    healthy = {"feature_std": 0.8, "target_entropy": 3.0, "target_information": 0.8,
               "agreement": 0.8, "agreement_others": 0.1}  # fmt: skip
    assert collapse(healthy) is None
    assert collapse({}) is None
    assert collapse({"feature_std": None, "target_information": None}) is None
    for change in (
        {"feature_std": 0.02},
        {"target_information": 0.01},
        {"target_entropy": 0.0},
        {"agreement": 1.0, "agreement_others": 0.99},
    ):
        assert collapse(healthy | change), change
