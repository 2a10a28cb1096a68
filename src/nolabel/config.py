"""The one definition of a run: what the user may set, and how "auto" is resolved.

`Settings` is what every method shares, `Method.Options` and `Optim` come beside it.  The command
line and Python both fill the same classes; `resolve` turns them into a `Run` in which nothing is
"auto" any more, and which `config.yaml` holds.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from nolabel import methods, recipes
from nolabel.backbones import stride_of
from nolabel.data.open import open_source, record_source
from nolabel.data.order import steps_per_epoch
from nolabel.data.source import Source
from nolabel.data.statistics import measure_statistics
from nolabel.errors import BadImage, DataError, UsageError, did_you_mean, unknown
from nolabel.methods.base import Method, RecipeContext
from nolabel.types import Optim


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every run shares.  None means "auto": resolved once, printed and saved."""

    data: str = ""  # SRC: a folder, list, table, shards, or a named set (nolabel list datasets)
    out: str = ""  # the run's folder; default runs/METHOD-DATA
    backbone: str | None = None  # a preset or timm's ViT, Swin, ResNet (nolabel list backbones)
    image_size: int | None = None  # side of the network's input in pixels
    patch_size: int | None = None  # side of a ViT's patch in pixels, or of those Swin embeds
    channels: int = 3  # of the images; with other than 3: grey, RGBA, .npy arrays, 16 bits kept
    mean: tuple[float, ...] | None = None  # of each channel in 0..1; auto: ImageNet's, or measured
    std: tuple[float, ...] | None = None  # deviation of each channel
    epochs: int | None = None  # length: one of epochs, steps, minutes
    steps: int | None = None  # length in optimiser steps
    minutes: float | None = None  # length in minutes on this machine, measured at the start
    batch_size: int | Literal["auto"] | None = None  # images of a step, globally; auto: as many fit
    accumulate: int | None = None  # micro-batches of a step; auto: as few as memory allows
    workers: int | None = None  # processes that read data; 0 = none but the main one
    views_on: str = "auto"  # where views are made: cpu, or device (workers then only decode)
    seed: int = 0  # fixes weights, order and augmentation
    device: str = "auto"  # auto, cpu or cuda
    checkpoint_activations: bool = False  # transformers: less memory for a third more time
    shard: bool = False  # several processes share weights, gradients and moments (FSDP2)
    shard_layers: bool = False  # of --shard: weights come together a layer at a time, not a step
    compile: bool = False  # the networks' layers, by torch.compile; for long runs on GPUs
    precision: str = "auto"  # auto (measured), fp32 or bf16
    init: str | None = None  # ENC: continue from these weights
    warm_heads: int | None = None  # of --init: steps in which new heads alone learn; auto: 5 %
    init_guard: str = "warn"  # of --init, when features are being destroyed: off, warn, rollback
    on_collapse: str = "warn"  # or stop, with exit code 3, when the signals show a collapse
    probe: str | None = None  # SRC with labels for a k-NN curve while training
    probe_every: int | None = None  # steps between probes
    recipe: str = "auto"  # auto (small data), paper, or a config.yaml to take settings from
    log_every: int | None = None  # steps between lines of metrics.jsonl
    checkpoint_every: int | None = None  # steps between checkpoints; auto: five minutes
    max_bad: float = 0.01  # share of unreadable files at which the run stops
    overwrite: bool = False  # replace a run that is already in the folder
    download: bool = False  # allow a named set to be downloaded


@dataclass(frozen=True, kw_only=True)
class Run:
    """A resolved run: every value is final."""

    method: str
    settings: Settings
    options: Any
    optim: Optim
    backbone_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    images: int = 0
    steps_per_epoch: int = 0

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.settings.out)

    @property
    def encoder(self) -> Any:
        """The trained encoder of this run's folder (`nolabel.load`)."""
        from nolabel.encoders import load

        return load(str(self.folder))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in config.yaml."""
        return plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Run:
        """Reads what `to_dict` wrote; unknown keys are refused."""
        raw = dict(raw)
        kind = methods.load(str(raw.get("method", "")))
        run = from_plain(cls, {**raw, "options": None, "settings": {}, "optim": {}})
        return dataclasses.replace(
            run,
            settings=from_plain(Settings, raw.get("settings") or {}, "settings."),
            options=from_plain(kind.Options, raw.get("options") or {}, "options."),
            optim=from_plain(Optim, raw.get("optim") or {}, "optim."),
        )


def plain(value: Any) -> Any:
    """Tuples to lists, all the way down."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def from_plain(cls: type, raw: Mapping[str, Any], where: str = "") -> Any:
    """Builds a dataclass from plain values, checking names and types.

    Raises:
        UsageError: unknown key (with the nearest one) or a value of the wrong type.
    """
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where or cls.__name__} must hold 'key: value' lines, got {raw!r}.")
    names = {f.name for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    out: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in names:
            near = did_you_mean(str(key), names)
            raise UsageError(f"Unknown key {where}{key!r} in the configuration.{near}")
        out[key] = _coerce(hints[key], value, where + key)
    return cls(**out)


def _coerce(kind: Any, value: Any, where: str) -> Any:
    if kind is Any or (typing.get_origin(kind) or kind) in (Mapping, Optim, Settings):
        return Optim() if kind is Optim else Settings() if kind is Settings else value
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        inner = [k for k in typing.get_args(kind) if k is not type(None)]
        if value is None or any(value in typing.get_args(k) for k in inner[1:]):  # a Literal's
            return value
        return _coerce(inner[0], value, where)
    if typing.get_origin(kind) is Mapping or getattr(kind, "__name__", "") == "Mapping":
        return dict(value)
    if typing.get_origin(kind) is tuple:
        args = typing.get_args(kind)
        if isinstance(value, (list, tuple)) and (args[-1] is ... or len(value) == len(args)):
            return tuple(_coerce(args[0], v, where) for v in value)
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    name = getattr(kind, "__name__", str(kind))
    raise UsageError(f"{where} is {value!r}; it must be of type {name}.")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of 'key: value' lines."""
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}. Give an existing file.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path} holds no 'key: value' lines. Give a run's config.yaml.")
    return raw


Parse = Callable[[Settings, Any, Optim], tuple[Settings, Any, Optim]]


def resolve(
    method: str, parse: Parse, *, config: str | None = None, source: Source | None = None
) -> tuple[Run, Source]:
    """Turns what the user gave into a run without "auto".

    Args:
        method: built-in name or path/to/file.py:Class.
        parse: overrides defaults by what the user set explicitly; called twice, because the
            recipe's defaults depend on the data.
        config: a YAML file whose values lie between the recipe's and the explicit ones.
    """
    kind = methods.load(method)
    raw, base, s = asked(kind, parse, config)
    _check(s)
    s = dataclasses.replace(
        s, data=record_source(s.data), probe=None if s.probe is None else record_source(s.probe)
    )
    source = source or open_source(
        s.data, image_size=s.image_size, download=s.download, channels=s.channels
    )
    if s.channels != 3 and s.mean is None:
        mean, std = measure_statistics(source)
        s = dataclasses.replace(s, mean=mean, std=std)
    if s.image_size is None:
        s = dataclasses.replace(s, image_size=_image_size(source, s))
    assert s.image_size is not None  # noqa: S101
    s = _backbone(s, kind)
    context = recipe_context(s, len(source))
    saved = read_yaml(s.recipe) if s.recipe not in ("auto", "paper") else {}
    recipe = recipes.recipe(kind, "paper" if s.recipe == "paper" else "auto", context)
    options, optim = recipe.options, recipe.optim
    for layer in (saved, raw):  # later ones win
        options = _over(options, layer.get("options"), "options.")
        optim = _over(optim, layer.get("optim"), "optim.")
    shared = saved.get("settings") or {}
    _, options, optim = parse(base, options, optim)

    batch = int(s.batch_size or shared.get("batch_size") or recipe.batch_size)
    if batch > len(source):
        raise UsageError(
            f"Batch size {batch} is larger than the data: {len(source)} images. "
            f"Use --batch-size {len(source)} or less."
        )
    per_epoch = steps_per_epoch(batch, len(source))
    if s.minutes is None and s.steps is None and s.epochs is None:
        s = dataclasses.replace(s, epochs=shared.get("epochs") or recipe.epochs)
    steps = s.steps if s.steps is not None else per_epoch * s.epochs if s.epochs else None
    name = Path(method.partition(":")[0]).stem if ".py" in method else method
    s = dataclasses.replace(
        s,
        batch_size=batch,
        steps=steps,
        workers=s.workers if s.workers is not None else _workers(source),
        out=s.out or f"runs/{name}-{Path(source.name.replace(':', '-')).name}",
    )
    run = Run(
        method=method, settings=s, options=options, optim=optim, images=len(source),
        steps_per_epoch=per_epoch,
    )  # fmt: skip
    return with_length(run, steps) if steps else run, source


def asked(
    kind: type[Method], parse: Parse, config: str | None
) -> tuple[dict[str, Any], Settings, Settings]:
    """The configuration file's content, its settings, and those with what was given over them."""
    raw = read_yaml(config) if config else {}
    base = from_plain(Settings, raw.get("settings") or {}, "settings.")
    return raw, base, parse(base, kind.Options(), Optim())[0]


def recipe_context(s: Settings, images: int) -> RecipeContext:
    """What a recipe depends on."""
    return RecipeContext(
        image_size=int(s.image_size or 0),
        images=images,
        batch_size=None if s.batch_size is None else int(s.batch_size),
        conv="resnet" in str(s.backbone),
        patch_size=stride_of(str(s.backbone), s.patch_size),
        device=s.device,
    )


def departures(run: Run) -> list[tuple[str, Any, Any]]:
    """Where a resolved run is not what its recipe says: name, value, the recipe's value."""
    recipe = recipes.recipe(
        methods.load(run.method),
        "paper" if run.settings.recipe == "paper" else "auto",
        recipe_context(run.settings, run.images),
    )
    told = dataclasses.replace(run, options=recipe.options, optim=recipe.optim)
    told = with_length(told, int(run.settings.steps or 1))
    out = []
    for where, own, other in (("", run.options, told.options), ("optim.", run.optim, told.optim)):
        for f in dataclasses.fields(own):
            a, b = getattr(own, f.name), getattr(other, f.name)
            if a != b:
                out.append((where + f.name, a, b))
    return out


def with_length(run: Run, steps: int) -> Run:
    """The run with its number of steps known; an automatic warm-up takes a tenth at most."""
    optim = run.optim
    if run.settings.recipe == "auto":
        optim = recipes.limited_warmup(optim, steps, run.steps_per_epoch)
    settings = dataclasses.replace(run.settings, steps=max(int(steps), 1))
    return dataclasses.replace(run, optim=optim, settings=settings)


def _over(default: Any, raw: Mapping[str, Any] | None, where: str) -> Any:
    """The dataclass with some values replaced by plain ones."""
    if not raw:
        return default
    new = from_plain(type(default), raw, where)
    return dataclasses.replace(default, **{k: getattr(new, k) for k in raw})


def _check(s: Settings) -> None:
    """Refuses impossible shared settings before anything is opened."""
    if not s.data:
        raise UsageError("No data given. Use --data with a folder of images, or --data creatures.")
    lengths = {k: getattr(s, k) for k in ("epochs", "steps", "minutes")}
    given = [k for k, v in lengths.items() if v is not None]
    if len(given) > 1:
        raise UsageError(f"Give one of --epochs, --steps, --minutes; got {' and '.join(given)}.")
    if s.batch_size == "auto":
        raise UsageError("--batch-size auto is for `nolabel pretrain` alone. Give a number.")
    for key in (*lengths, "batch_size", "accumulate", "image_size", "patch_size", "log_every",
                "checkpoint_every", "probe_every"):  # fmt: skip
        value = getattr(s, key)
        if value is not None and value <= 0:
            raise UsageError(f"--{key.replace('_', '-')} is {value}; it must be above 0.")
    if s.device not in ("auto", "cpu", "cuda"):
        raise unknown("device", s.device, ("auto", "cpu", "cuda"))
    if s.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but torch finds no CUDA device. Use --device cpu.")
    if s.precision not in ("auto", "fp32", "bf16"):
        raise unknown("precision", s.precision, ("auto", "fp32", "bf16"))
    if s.channels < 1:
        raise UsageError(f"--channels is {s.channels}; it must be above 0.")
    if (s.mean is None) != (s.std is None):
        raise UsageError("--mean and --std belong together: give both or neither.")
    if s.mean is not None and not len(s.mean) == len(s.std or ()) == s.channels:
        raise UsageError(f"--mean and --std need one number for each of {s.channels} channels.")
    if s.init_guard not in ("off", "warn", "rollback"):
        raise unknown("init-guard", s.init_guard, ("off", "warn", "rollback"))
    if s.shard and s.init_guard == "rollback":
        raise UsageError("--shard and --init-guard rollback exclude each other. Use one of them.")
    if s.shard_layers and not s.shard:
        raise UsageError("--shard-layers is for runs with --shard. Use both, or none.")
    if s.on_collapse not in ("warn", "stop"):
        raise unknown("on-collapse", s.on_collapse, ("warn", "stop"))
    if s.warm_heads is not None and (s.warm_heads < 0 or not s.init):
        what = "without --init" if not s.init else "below 0"
        raise UsageError(f"--warm-heads is {s.warm_heads} {what}; it is for runs with --init.")
    if s.views_on not in ("auto", "cpu", "device"):
        raise unknown("views-on", s.views_on, ("auto", "cpu", "device"))
    if not 0 <= s.max_bad <= 1:
        raise UsageError(f"--max-bad is {s.max_bad}; it is a share between 0 and 1.")
    if s.recipe not in ("auto", "paper") and not Path(s.recipe).is_file():
        raise unknown("recipe", s.recipe, ("auto", "paper"), "Or the path of a config.yaml.")


def _image_size(source: Source, s: Settings) -> int:
    """Input size from the first readable image: 32 for tiny pictures up to 224."""
    if s.backbone and "_224" in s.backbone:
        return 224
    for i in range(min(len(source), 20)):
        try:
            side = min(source.read(i).image.shape[:2])
        except BadImage:
            continue
        return recipes.default_image_size(side)
    raise DataError(f"None of the first images of {source.name} can be read. Check the files.")


def _backbone(s: Settings, kind: type[Method]) -> Settings:
    """A ViT fit for the image size, the machine and the method."""
    assert s.image_size is not None  # noqa: S101
    if s.backbone is None:
        on_gpu = s.device != "cpu" and torch.cuda.is_available()
        name, patch = recipes.default_network(kind.needs, s.image_size, on_gpu=on_gpu)
    else:
        name, patch = s.backbone, recipes.default_patch(s.backbone, s.image_size)
    return dataclasses.replace(s, backbone=name, patch_size=s.patch_size or patch)


def _workers(source: Source) -> int | None:
    """0 for a set in memory; otherwise auto, measured at the start."""
    return 0 if source.in_memory else None


def merge(explicit: Mapping[str, Any]) -> Parse:
    """A `Parse` for Python: keyword arguments by name, wherever they belong."""

    def parse(s: Settings, o: Any, optim: Optim) -> tuple[Settings, Any, Optim]:
        parts: list[Any] = [s, o, optim]
        fields = [{f.name for f in dataclasses.fields(p)} for p in parts]
        fields[2] -= {"name"}  # `optimiser` names it
        for key, value in explicit.items():
            key = "name" if key == "optimiser" else key
            where = 2 if key == "name" else next((i for i, f in enumerate(fields) if key in f), -1)
            if where < 0:
                names = set().union(*fields)
                raise UsageError(
                    f"Unknown option {key!r}.{did_you_mean(key, names)} Options are: "
                    f"{', '.join(sorted(names))}."
                )
            hint = typing.get_type_hints(type(parts[where]))[key]
            value = os.fspath(value) if isinstance(value, Path) else value
            parts[where] = dataclasses.replace(parts[where], **{key: _coerce(hint, value, key)})
        return parts[0], parts[1], parts[2]

    return parse
