"""The views of an automatic recipe follow what was measured on the images."""

from __future__ import annotations

import dataclasses

import pytest

from nolabel import methods, recipes
from nolabel.methods.base import Recipe, RecipeContext
from nolabel.recipes.suited import reasons, suited, suited_settings
from nolabel.types import Optim
from nolabel.views import View, ViewPlan
from nolabel.views.suitability import USUAL, Operations

UNDETECTED = {"flip": 0.5, "vertical_flip": 0.5, "quarter_turns": 0.5}
DETECTED = {"flip": 0.5, "vertical_flip": 0.9, "quarter_turns": 0.9}
CONTEXT = RecipeContext(image_size=224, images=10_000, device="cuda", patch_size=16)
WITH_COLOUR = tuple(
    m for m in methods.METHODS
    if "grey" in {f.name for f in dataclasses.fields(methods.load(m).Options)}
)  # fmt: skip


def measured(*, colour=0.2, detected=DETECTED, **strength) -> Operations:
    names = [n for n in USUAL if colour or n not in ("saturation", "hue", "grey")]
    return Operations(
        images=256, colour=colour, colour_spread=0.3, detected=detected,
        moved=dict.fromkeys(names, 0.3), strength={**dict.fromkeys(names, 1.0), **strength},
    )  # fmt: skip


def views(method, operations, **context):
    kind = methods.load(method)
    found = recipes.automatic(kind, dataclasses.replace(CONTEXT, operations=operations, **context))
    return kind.views(found.options, CONTEXT.image_size).views


@pytest.mark.parametrize("method", methods.METHODS)
def test_photographs_keep_the_recipe(method):
    assert views(method, measured()) == views(method, None)


@pytest.mark.parametrize("method", WITH_COLOUR)
@pytest.mark.parametrize("size", [32, 224])
def test_grey_images_get_intensity_in_place_of_hue(method, size):
    usual = views(method, None, image_size=size)
    for a, b in zip(usual, views(method, measured(colour=0.0), image_size=size), strict=True):
        if not any(a.jitter):  # the teacher's view of OBoW
            continue
        assert b.jitter[0] > a.jitter[0] or a.jitter[0] == 0.8
        assert b.jitter[1] > a.jitter[1] or a.jitter[1] == 0.8
        assert max(b.jitter[:2]) <= 0.8 and b.jitter[3] == 0 and b.grey == 0
        assert b.jitter[2] == 0 or method == "simclr"  # one strength; grey has no saturation
        assert (a.blur, a.solarise, a.scale) == (b.blur, b.solarise, b.scale)


@pytest.mark.parametrize("method", WITH_COLOUR)
def test_each_measured_strength_limits_its_operation(method):
    usual = views(method, None)
    for name in USUAL:
        changed = views(method, measured(**{name: 0.0}))
        for a, b in zip(usual, changed, strict=True):
            if name in ("brightness", "contrast", "saturation", "hue"):
                at = ("brightness", "contrast", "saturation", "hue").index(name)
                assert b.jitter[at] == 0
                if method != "simclr":
                    assert dataclasses.replace(b, jitter=a.jitter) == a
            elif name == "grey":
                assert b.grey == 0 and dataclasses.replace(b, grey=a.grey) == a or a.grey == b.grey
            elif name in ("blur", "solarise"):
                assert not any(getattr(b, name))
            else:
                assert a == b  # recipes have no noise
    half = views("dino", measured(hue=0.25, blur=0.5))[0]
    assert half.jitter == (0.4, 0.4, 0.2, 0.1) and half.blur_sigma == (0.1, 1.0)
    assert views("swav", measured(hue=0.25))[0].jitter[3] == pytest.approx(0.1)
    assert views("simclr", measured(hue=0.125))[0].jitter[3] == pytest.approx(0.05)


def test_options_of_a_users_own_method_that_mean_something_else_are_left_alone():
    @dataclasses.dataclass(frozen=True)
    class Own:
        grey: bool = True
        blur: str = "box"
        jitter: tuple[float, ...] = (0.4, 0.4, 0.4)
        solarise: tuple[float, ...] = (0.5, 0.5)

    recipe = Recipe(options=Own(), optim=Optim(), batch_size=8, epochs=1)
    found = suited(recipe, measured(colour=0.0, solarise=0.0, blur=0.0))
    assert found.options == dataclasses.replace(Own(), solarise=(0.0, 0.0))


def test_the_papers_recipe_ignores_what_was_measured():
    kind = methods.load("dino")
    context = dataclasses.replace(CONTEXT, operations=measured(colour=0.0))
    assert recipes.paper(kind, context) == recipes.paper(kind, CONTEXT)


def test_images_are_turned_where_there_is_no_up_and_mirrored_unless_that_is_told():
    plan = ViewPlan(views=(View(name="a", size=32, jitter=(0.4, 0.4, 0, 0)),))
    assert suited_settings(plan, 3, measured()) == {}
    turned = suited_settings(plan, 3, measured(detected=UNDETECTED))
    assert turned == {"vertical_flip": 0.5, "quarter_turns": 0.75}
    layers = {**UNDETECTED, "quarter_turns": 0.9}
    assert suited_settings(plan, 3, measured(detected=layers)) == {"vertical_flip": 0.5}
    text = {**DETECTED, "flip": 0.95}
    assert suited_settings(plan, 3, measured(detected=text)) == {"flip": 0.0}
    assert suited_settings(plan, 5, measured(colour=0.0)) == {"channel_jitter": 0.2}
    assert suited_settings(plan, 1, measured(colour=0.0)) == {}
    crops = ViewPlan(views=(View(name="a", size=32),))
    assert suited_settings(crops, 5, measured(colour=0.0)) == {}


@pytest.mark.parametrize("method", WITH_COLOUR)
def test_small_images_that_share_colours_get_weak_changes_of_colour(method):
    def colours(matches, size=32):
        found = dataclasses.replace(measured(), colour_matches=matches)
        return [(v.jitter[3], v.grey) for v in views(method, found, image_size=size)]

    usual = [(v.jitter[3], v.grey) for v in views(method, None, image_size=32)]
    assert colours(0.95) == usual
    for matches, hues, greys in ((0.3, 0.1, 0.2), (0.75, 0.25, 0.35)):
        for (hue, grey), (most, often) in zip(colours(matches), usual, strict=True):
            strong = most == pytest.approx(0.4) and often == pytest.approx(0.5)
            assert hue == pytest.approx(hues if strong else most)
            assert grey == pytest.approx(greys if strong else often)
    assert colours(0.3, size=224) == colours(0.95, size=224)


def test_the_reasons_name_what_changed_and_nothing_else():
    view = View(name="a", size=32, jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2, blur=(0.5,))
    before = ViewPlan(views=(view,))
    grey = measured(colour=0.0, detected=UNDETECTED, blur=0.0)
    after = dataclasses.replace(
        view, jitter=(0.6, 0.6, 0.0, 0.0), grey=0.0, blur=(0.0,), vertical_flip=0.5,
        quarter_turns=0.75,
    )  # fmt: skip
    assert reasons(before, ViewPlan(views=(after,)), grey) == (
        "grey images, so brightness and contrast in place of hue",
        "blur makes images alike (0.30), so none",
        "no up, so vertical flips and quarter turns",
    )
    assert reasons(before, before, grey) == ()
    weaker = ViewPlan(views=(dataclasses.replace(view, jitter=(0.4, 0.4, 0.4, 0.05)),))
    shared = dataclasses.replace(measured(), colour_matches=0.55)
    assert reasons(before, weaker, shared) == (
        "colour is no shortcut (55% of crops find their image by colour), so weaker changes of it",
    )
