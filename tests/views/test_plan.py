"""View plans are validated when constructed, and describe themselves."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest

from nolabel.errors import UsageError
from nolabel.views import IMAGENET_MEAN, View, ViewPlan, evaluation_plan
from nolabel.views.fields import orientation, with_fields


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": ""}, "name is ''"),
        ({"size": 0}, "size is 0"),
        ({"count": 0}, "count is 0"),
        ({"scale": (0.5, 0.1)}, "scale is"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"ratio": (2.0, 1.0)}, "ratio is"),
        ({"interpolation": "bicubik"}, "Did you mean 'bicubic'"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"vertical_flip": -1.0}, "vertical_flip is -1.0"),
        ({"quarter_turns": 2.0}, "quarter_turns is 2.0"),
        ({"jitter": (0.1, 0.1, 0.1)}, "four strengths"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "half a turn"),
        ({"jitter_p": -0.1}, "jitter_p is -0.1"),
        ({"grey": 2.0}, "grey is 2.0"),
        ({"channel_jitter": -0.1}, "channel_jitter is -0.1"),
        ({"noise": 1.5}, "noise is 1.5"),
        ({"noise_sigma": (0.2, 0.1)}, "noise_sigma is"),
        ({"blur": (0.1, 0.2, 0.3), "count": 2}, "1 or 2 values"),
        ({"blur": (1.1,)}, "probabilities"),
        ({"blur": ()}, "1 value"),
        ({"blur_sigma": (0.0, 2.0)}, "blur_sigma is"),
        ({"solarise": (0.1, 0.2), "count": 3}, "1 or 3 values"),
        ({"resize": 64}, "scale=None"),
        ({"resize": 16, "scale": None}, "at least size=32"),
    ],
)
def test_a_wrong_view_is_refused_with_its_name_and_what_is_allowed(wrong, message):
    with pytest.raises(UsageError, match=message):
        View(**{"name": "global", "size": 32, **wrong})


def test_a_wrong_plan_is_refused():
    view = View(name="global", size=32)
    with pytest.raises(UsageError, match="share the name 'global'"):
        ViewPlan(views=(view, view))
    with pytest.raises(UsageError, match="at least one view"):
        ViewPlan(views=())
    with pytest.raises(UsageError, match="positive"):
        ViewPlan(views=(view,), std=(1.0, 0.0, 1.0))
    with pytest.raises(UsageError, match="must agree"):
        ViewPlan(views=(view,), mean=(0.5, 0.5))


def test_lists_from_a_configuration_file_become_tuples():
    view = View(name="a", size=8, count=2, blur=[1, 0.1], scale=[0.2, 1])
    assert view.blur == (1.0, 0.1)
    assert view.scale == (0.2, 1.0)
    assert hash(view) == hash(dataclasses.replace(view))


def test_one_probability_serves_all_copies_and_several_serve_their_own():
    view = View(name="a", size=8, count=2, blur=(1.0, 0.1), solarise=(0.3,))
    assert [view.blur_of(0), view.blur_of(1)] == [1.0, 0.1]
    assert [view.solarise_of(0), view.solarise_of(1)] == [0.3, 0.3]


def test_the_description_names_only_what_is_on():
    plan = ViewPlan(
        views=(
            View(
                name="global", count=2, size=224, scale=(0.4, 1), blur=(1, 0.1), solarise=(0, 0.2)
            ),
            View(name="local", count=8, size=96, jitter=(0.4, 0.4, 0, 0.1), grey=0.2, flip=0),
        )
    )
    first, second, last = plan.describe()
    assert "2 x 224 px" in first and "0.4-1 of the area" in first
    assert "p=1/0.1" in first and "solarise p=0/0.2" in first and "flip p=0.5" in first
    assert "grey" not in first and "jitter" not in first
    assert "jitter brightness 0.4 contrast 0.4 hue 0.1 p=0.8" in second and "grey p=0.2" in second
    assert "flip" not in second and "blur" not in second
    assert "0.485" in last
    assert plan.count == 10


def test_every_field_that_matters_shows_in_the_description():
    base = View(
        name="a",
        size=32,
        count=2,
        jitter=(0.1, 0.1, 0.1, 0.1),
        grey=0.1,
        blur=(0.5,),
        solarise=(0.5,),
        noise=0.5,
    )
    centre = dataclasses.replace(base, scale=None)
    changes = {
        "name": "b", "size": 16, "count": 3, "scale": (0.3, 0.9), "ratio": (0.5, 2.0),
        "interpolation": "bilinear", "flip": 0.1, "jitter": (0.2, 0.1, 0.1, 0.1), "jitter_p": 0.3,
        "grey": 0.2, "blur": (0.6,), "blur_sigma": (0.2, 3.0), "solarise": (0.6,),
        "vertical_flip": 0.2, "quarter_turns": 0.3, "channel_jitter": 0.4, "noise": 0.6,
        "noise_sigma": (0.1, 0.3),
    }  # fmt: skip
    assert {f.name for f in dataclasses.fields(View)} == {*changes, "resize"}
    for field, value in changes.items():
        assert dataclasses.replace(base, **{field: value}).describe() != base.describe(), field
    assert dataclasses.replace(centre, resize=40).describe() != centre.describe()


def test_the_evaluation_plan_is_one_deterministic_view():
    plan = evaluation_plan(224, 256)
    (view,) = plan.views
    assert (view.name, view.size, view.resize, view.scale, view.flip) == (
        "image",
        224,
        256,
        None,
        0,
    )
    assert plan.mean == IMAGENET_MEAN


def test_the_orientation_of_a_plan_changes_in_every_view_and_nothing_else_does():
    plan = ViewPlan(views=(View(name="a", size=8), View(name="b", size=4, blur=(0.5,))))
    turned = with_fields(plan, flip=0.0, quarter_turns=0.75)
    assert orientation(turned) == {"flip": 0.0, "vertical_flip": 0.0, "quarter_turns": 0.75}
    assert with_fields(turned, flip=0.5, quarter_turns=0.0) == plan
    assert with_fields(plan) == plan
    mixed = ViewPlan(views=(View(name="a", size=8), View(name="b", size=4, flip=0.0)))
    assert orientation(mixed)["flip"] is None  # no one value holds for both


def test_planning_needs_no_torch():
    code = (
        "import sys, nolabel.views.plan, nolabel.views;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sufficient_pixels_leave_the_smallest_crop_twice_the_view():
    wide = View(name="a", size=96, scale=(0.05, 0.4))
    p = ViewPlan(views=(wide, View(name="b", size=100, scale=(0.4, 1.0))))
    side = math.sqrt(p.sufficient_pixels * 0.05 * 3 / 4)  # the shorter side of its smallest crop
    assert side == pytest.approx(2 * 96, rel=1e-3)


def test_evaluation_needs_every_pixel():
    assert evaluation_plan(64).sufficient_pixels is None
