"""The views of a run: measured, asked for, from a file; final, saved and repeated."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import yaml

from nolabel import methods
from nolabel.config import Layer, Request, Run
from nolabel.data.sources.arrays import Arrays
from nolabel.engine import build, run_views
from nolabel.engine.placeholder import Placeholder
from nolabel.engine.resolve import diff_from_recipe, resolve
from nolabel.errors import BadImage, UsageError
from nolabel.views.fields import SHARED, with_fields
from nolabel.views.plan_file import to_yaml
from nolabel.views.suitability import Operations

IMAGES = Placeholder(100, 32)
ASKED = {
    "jitter": (0.1, 0.2, 0.3, 0.4), "channel_jitter": 0.2, "jitter_p": 0.3, "grey": 0.4,
    "blur": 0.6, "blur_sigma": (0.2, 0.9), "solarise": 0.7, "noise": 0.8,
    "noise_sigma": (0.1, 0.2),
}  # fmt: skip


def textures(count=208, channels=3):
    """Grey textures without an up."""
    noise = np.random.default_rng(0).integers(40, 200, (count, 8, 8, 1))
    pixels = np.repeat(noise.repeat(4, 1).repeat(4, 2), channels, 3).astype(np.uint8)
    return Arrays("textures", pixels, None, ())


def resolved(method="dino", source=None, **asked):
    given = {"data": "textures", "steps": 1, "batch_size": 8, **asked}
    return resolve(Request.of(method, **given), source=source or textures(), quiet=True)


def first(found):
    return build.plan_of(found.run).views[0]


def test_grey_textures_get_intensity_and_turns_in_a_run_and_the_run_says_so(capsys):
    usual, found = resolved(fit_views=False), resolved()
    a, b = first(usual), first(found)
    assert b.jitter[0] > a.jitter[0] and b.jitter[2:] == (0, 0) and b.grey == 0
    assert (b.vertical_flip, b.quarter_turns) == (0.5, 0.75)
    assert found.fitted[0] == "grey images, so brightness and contrast in place of hue"
    assert found.fitted[-1] == "no up, so vertical flips and quarter turns"
    assert not usual.fitted and not usual.run.operations
    request = Request.of("mae", data="textures", steps=1, batch_size=8)
    resolve(request, source=textures())
    assert capsys.readouterr().err == "views: no up, so vertical flips and quarter turns\n"


def test_what_is_asked_for_wins_and_papers_are_left_alone():
    asked = resolved(jitter=(0.1, 0.1, 0.1, 0.1), quarter_turns=0.0, grey=0.3)
    view = first(asked)
    assert view.jitter == (0.1, 0.1, 0.1, 0.1) and view.grey == 0.3
    assert (view.vertical_flip, view.quarter_turns) == (0.5, 0.0)
    assert resolved(recipe="paper").run.operations == {}


def test_the_values_are_final_and_resumed_without_the_images():
    run = resolved().run
    again = Run.from_dict(yaml.safe_load(yaml.safe_dump(run.to_dict())))
    assert again == run and build.plan_of(again) == build.plan_of(run)
    assert diff_from_recipe(again) == []
    former = {"told" if k == "detected" else k: v for k, v in run.operations.items()}
    assert diff_from_recipe(dataclasses.replace(again, operations=former)) == []


def test_captions_keep_their_left_and_above():
    found = resolved("mae")
    s = dataclasses.replace(found.settings, flip=None, vertical_flip=None, quarter_turns=None)
    operations = Operations(**found.run.operations)
    for name, turned in (("mae", 0.75), ("clip", 0.0), ("siglip", 0.0)):
        kind = methods.load(name)
        assert run_views.fit_views(kind, kind.Options(), s, operations).quarter_turns == turned


def test_the_sample_is_bounded_and_skips_what_cannot_be_read(monkeypatch):
    class Some(Arrays):
        in_memory = False
        reads = 0

        def read(self, i, /, *, sufficient_pixels=None):
            Some.reads += 1
            if i % 2:
                raise BadImage(str(i), "no image")
            return super().read(i)

    source = Some("textures", textures(600).images(np.arange(600)), None, ())
    whole, centre = run_views.sample(source, 32)
    assert Some.reads == run_views.SAMPLE == 256 and 100 < len(whole) == len(centre) < 156
    assert whole.shape[1:] == centre.shape[1:] == (32, 32, 3)
    monkeypatch.setattr(run_views, "SECONDS", -math.inf)
    assert len(run_views.sample(textures(600), 96)[0]) == 256  # no fewer than 200, in blocks of 64
    monkeypatch.setattr(run_views, "MOST_SECONDS", -math.inf)
    assert len(run_views.sample(textures(600), 96)[0]) == 64
    assert run_views.operations_on(IMAGES, resolved().settings) is None


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_setting_of_the_views_reaches_every_view_of_every_method(method):
    fields = methods.load(method).Options.__dataclass_fields__
    asked = {k: v for k, v in ASKED.items() if k not in fields}
    assert {"noise", "noise_sigma", "channel_jitter", "jitter_p"} <= set(asked)
    assert set(ASKED) | {"flip", "vertical_flip", "quarter_turns"} == set(SHARED)
    usual = resolved(method, IMAGES)
    found = resolved(method, IMAGES, **asked)
    assert build.plan_of(found.run) == with_fields(build.plan_of(usual.run), **asked)
    assert all(view.noise == 0.8 for view in build.plan_of(found.run).views)


def test_an_own_option_is_not_shadowed_by_a_setting_in_a_file():
    file = Layer(settings={"data": "textures", "grey": 0.3})
    with pytest.raises(UsageError, match=r"options\.grey"):
        resolve(Request(method="dino", file=file), source=IMAGES)
    run = resolve(Request(method="mae", file=file), source=IMAGES).run
    assert build.plan_of(run).views[0].grey == 0.3


def written(tmp_path, content) -> str:
    path = tmp_path / "views.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def test_a_file_of_views_changes_what_it_names_and_the_run_needs_it_no_more(tmp_path):
    entry = {"name": "global", "scale": [0.6, 0.9], "blur": [0.0, 0.2], "noise": 0.5}
    path = written(tmp_path, {"views": [entry, {"name": "local"}]})
    usual, found = resolved(source=IMAGES), resolved(source=IMAGES, views=path)
    (a, local), (b, same) = (build.plan_of(r.run).views for r in (usual, found))
    assert (b.scale, b.blur, b.noise, b.jitter) == ((0.6, 0.9), (0.0, 0.2), 0.5, a.jitter)
    assert same == local
    (tmp_path / "views.yaml").unlink()
    again = Run.from_dict(json.loads(json.dumps(found.run.to_dict())))
    assert build.plan_of(again) == build.plan_of(found.run)
    flipped = resolved(source=IMAGES, views=found.settings.views, vertical_flip=0.5)
    assert all(v.vertical_flip == 0.5 for v in build.plan_of(flipped.run).views)


def test_a_plan_that_was_written_gives_the_same_plan(tmp_path):
    for method in ("dino", "mae", "obow"):
        usual = resolved(method, IMAGES)
        path = written(tmp_path, to_yaml(build.plan_of(usual.run)))
        assert build.plan_of(resolved(method, IMAGES, views=path).run) == build.plan_of(usual.run)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"view": []}, "Did you mean 'views'"),
        ({"views": []}, "one key, views"),
        ({"views": [{"name": "globals"}]}, "Did you mean 'global'"),
        ({"views": [{"name": "global"}]}, "no view 'local'"),
        ({"views": [{"name": "global"}, {"name": "global"}]}, "one each of"),
        ({"views": [{"name": "global", "gray": 1}]}, "Did you mean 'grey'"),
        ({"views": [{"name": "global", "count": 3}]}, "the method has 2"),
        ({"views": [{"name": "global", "size": 64}]}, "the method has 32"),
        ({"views": [{"name": "global", "grey": "often"}]}, "wrong type"),
        ({"views": [{"name": "global", "scale": 0.5}]}, "wrong type"),
        ({"views": [{"name": "global", "grey": 2}]}, "probability"),
        ("{", "not valid YAML"),
    ],
)
def test_a_wrong_file_of_views_is_refused_with_what_is_allowed(content, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        resolved(source=IMAGES, views=written(tmp_path, content))
