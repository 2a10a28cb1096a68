"""From a request to a resolved run: layers, types, and one build per process."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import yaml

import nolabel as nl
from nolabel import backbones, methods
from nolabel.config import Layer, Request, Run, RunSettings
from nolabel.data.creatures.world import Creatures
from nolabel.engine import build, calibrate
from nolabel.engine.placeholder import Placeholder
from nolabel.engine.resolve import resolve
from nolabel.errors import UsageError
from nolabel.methods.clip import CLIP
from nolabel.methods.dino import DINO
from nolabel.views.fields import SHARED, with_fields

IMAGES = Placeholder(100, 32)
OPTIONAL = {"epochs", "minutes", "patch_size", "init", "probe", "checkpoint_every"}
OPTIONAL |= {*SHARED, "views"}  # None: each view's own


@pytest.fixture
def counted(monkeypatch):
    """Counts how often a function is called."""

    def count(owner, name):
        calls, real = [], getattr(owner, name)

        def called(*args, **kwargs):
            calls.append(args)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, called)
        return calls

    return count


def test_a_run_is_built_once_and_measured_on_one_copy(tiny_run, monkeypatch, counted):
    networks = counted(backbones, "build")
    copies = counted(calibrate.copy, "deepcopy")
    made = counted(DINO, "__init__")
    run = tiny_run("dino", precision="auto", workers=None, steps=None, minutes=0.001)
    assert len(networks) == len(made) == 1
    methods = [a for a in copies if isinstance(a[0], DINO)]
    assert len(methods) == 1, "two precisions are measured on one copy"
    assert run.settings.steps >= 1


def test_a_teacher_is_loaded_once(tiny_run, counted):
    teacher = tiny_run(out="teacher").folder
    loaded = counted(build, "load")
    tiny_run("distill", out="student", teacher=str(teacher), precision="auto", workers=None)
    assert len(loaded) == 1


def test_a_tokenizer_of_captions_is_learnt_once(tmp_path, counted):
    small = {"vocabulary": 600, "context": 12, "projection": 8, "text_dim": 16, "text_depth": 1,
             "text_heads": 2, "backbone": "vit_pico", "image_size": 32}  # fmt: skip
    learnt = counted(CLIP, "make_tokenizer")
    nl.pretrain("clip", data="creatures", out=tmp_path / "run", quiet=True, steps=1, batch_size=8,
                workers=0, precision="auto", **small)  # fmt: skip
    assert len(learnt) == 1


def test_a_network_to_continue_from_is_loaded_once_and_known_to_the_recipe(tiny_run, counted):
    first = tiny_run("simclr", out="first", backbone="resnet_nano")
    from nolabel.engine import init_network

    loaded, networks = counted(init_network, "load"), counted(backbones, "build")
    run = tiny_run("simclr", out="second", init=str(first.folder), backbone=None)
    assert len(loaded) == 1
    assert len(networks) == 2  # the outline of the one in the file, without memory, and itself
    assert run.settings.backbone == "resnet18" and run.backbone_kwargs
    assert run.optim.lr == first.optim.lr  # the one for convolutional networks


def test_resolved_settings_hold_no_open_value(tiny_run):
    hints = typing.get_type_hints(RunSettings)
    open_types = {k for k, t in hints.items() if type(None) in typing.get_args(t)}
    assert open_types == OPTIONAL
    run = tiny_run(precision="auto", workers=None)
    for f in dataclasses.fields(run.settings):
        value = getattr(run.settings, f.name)
        assert f.name in OPTIONAL or value is not None, f.name
        assert value != "auto" or f.name in ("device", "recipe"), f.name
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert Run.from_dict(saved) == run


def test_what_an_older_file_left_open_is_filled_in_as_it_ran(tiny_run):
    run = tiny_run()
    saved = run.to_dict()
    for key in ("accumulate", "workers", "warm_heads", "probe_every", "log_every", "mean", "std"):
        saved["settings"][key] = None
    saved["settings"] |= {"precision": "auto", "views_on": "auto", "steps": 250}
    s = Run.from_dict(saved).settings
    assert (s.accumulate, s.workers, s.warm_heads) == (1, 0, 0)
    assert (s.probe_every, s.log_every) == (25, 2)
    assert (s.precision, s.views_on) == ("fp32", "cpu")
    assert (s.mean, s.std) == (run.settings.mean, run.settings.std)


def small(tmp_path, explicit, file=None, recipe=None):
    """Options of a run by layers: explicit ones, a --config file and a --recipe file."""
    parts = {}
    for name, content in (("config", file), ("recipe", recipe)):
        if content is not None:
            parts[name] = tmp_path / f"{name}.yaml"
            parts[name].write_text(yaml.safe_dump(content))
    explicit = {"data": "creatures", "steps": 1, **explicit}
    if "recipe" in parts:
        explicit["recipe"] = str(parts["recipe"])
    request = Request.of("simclr", **explicit)
    if "config" in parts:
        request = dataclasses.replace(request, file=Layer.from_file(parts["config"]))
    return resolve(request, source=Creatures("train", size=32, count=400)).run


def test_explicit_options_win_over_the_file_and_the_file_over_the_recipe(tmp_path):
    plain = small(tmp_path, {})
    recipe = {"options": {"temperature": 0.3, "hidden": 64, "grey": 0.1},
              "optim": {"lr": 0.5}, "settings": {"batch_size": 40}}  # fmt: skip
    file = {"options": {"temperature": 0.4, "hidden": 32}, "settings": {"seed": 7}}
    run = small(tmp_path, {"temperature": 0.5}, file, recipe)
    assert (run.options.temperature, run.options.hidden, run.options.grey) == (0.5, 32, 0.1)
    assert run.optim.lr == 0.5 and run.settings.seed == 7 and run.settings.batch_size == 40
    assert run.options.scale == plain.options.scale  # the recipe's own
    assert small(tmp_path, {"seed": 8}, file).settings.seed == 8


def test_the_file_of_a_run_repeats_it(tiny_run, tmp_path):
    run = tiny_run(steps=None, epochs=2)
    file = Layer.from_file(run.folder / "config.yaml")
    again = resolve(Request(method="simclr", file=file)).run
    # Where it is written is not taken from a file, and the data are compared when they are used.
    own = {"out": again.settings.out, "overwrite": again.settings.overwrite}
    assert again == dataclasses.replace(run.with_settings(**own), data_digest="")
    # Another batch: the same epochs. Another length: that one alone.
    layer = Layer(settings={"batch_size": 16})
    other = resolve(Request(method="simclr", explicit=layer, file=file)).run
    assert other.settings.epochs == 2 and other.settings.steps == run.settings.steps / 2
    layer = Layer(settings={"steps": 3})
    shorter = resolve(Request(method="simclr", explicit=layer, file=file)).run
    assert (shorter.settings.epochs, shorter.settings.steps) == (None, 3)


def test_two_lengths_from_one_place_are_refused(tmp_path):
    with pytest.raises(UsageError, match="one of --epochs, --steps, --minutes"):
        small(tmp_path, {"epochs": 2})
    with pytest.raises(UsageError, match="one of --epochs, --steps, --minutes"):
        file = Layer(settings={"data": "creatures", "epochs": 2, "steps": 3})
        resolve(Request(method="simclr", file=file))


def test_the_weights_are_those_of_the_seed_whatever_was_measured(tiny_run):
    """The method that was measured is the one that trains: nothing of the trial is left in it."""
    from safetensors.torch import load_file

    for method in ("dino", "mocov2", "simclr"):
        measured = tiny_run(method, out=f"{method}-a", workers=None, accumulate=None)
        known = tiny_run(method, out=f"{method}-b", workers=0, accumulate=1)
        a, b = (load_file(r.folder / "encoder.safetensors") for r in (measured, known))
        assert all(bool((a[k] == b[k]).all()) for k in a)


@pytest.mark.parametrize("method", methods.METHODS)
def test_flips_and_turns_are_those_that_were_asked_in_every_view(method):
    asked = {"flip": 0.0, "vertical_flip": 0.5, "quarter_turns": 0.75}
    data = {"data": IMAGES.name, "steps": 1}
    usual = resolve(Request.of(method, **data), source=IMAGES).run
    turned = resolve(Request.of(method, **data, **asked), source=IMAGES).run
    plan = build.plan_of(usual)
    assert build.plan_of(turned) == with_fields(plan, **asked)
    assert all(getattr(v, k) == p for v in build.plan_of(turned).views for k, p in asked.items())
    own = 0.0 if method in ("clip", "siglip") else 0.5  # words may say left or right
    assert (usual.settings.flip, usual.settings.vertical_flip) == (own, 0.0)


def test_a_flip_that_is_no_probability_is_refused():
    with pytest.raises(UsageError, match=r"flip is 1.5.*probability"):
        resolve(Request.of("dino", data=IMAGES.name, flip=1.5), source=IMAGES)


CHANGES_COLOUR = tuple(  # the others crop and mirror only
    m for m in methods.METHODS if "grey" in methods.load(m).Options.__dataclass_fields__
)


@pytest.mark.parametrize("method", CHANGES_COLOUR)
def test_blur_and_solarising_can_be_switched_off_and_on(method):
    kind = methods.load(method)
    fields = kind.Options.__dataclass_fields__
    names = [n for n in ("blur", "local_blur", "solarise") if n in fields]
    assert "blur" in names and "solarise" in names
    for p in (0.0, 1.0):
        values = {n: (p, p) if isinstance(fields[n].default, tuple) else p for n in names}
        views = kind.views(kind.Options(**values), 32).views
        first = [v for v in views if v.name in ("global", "view", "large")]
        assert all(set(v.blur) == {p} and set(v.solarise) == {p} for v in first) and first
        assert all(set(v.blur) == {p} for v in views if v.name == "local")
