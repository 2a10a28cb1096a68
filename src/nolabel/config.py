"""The options of a run: what the user requested, and the resolved run.

`Settings` are the options that all methods share, beside `Method.Options` and `Optim`. Command
line, Python keywords and configuration files set values in these classes, each as a `Layer`.
`engine.resolve` turns them into a `Run`, in which every value is final and which is saved as
`config.yaml`.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from nolabel import _usercode, methods
from nolabel._files.yaml import read_yaml
from nolabel.errors import UsageError, did_you_mean
from nolabel.limits import Count, NotNegative, Positive, Side, Whole
from nolabel.methods.base import Method
from nolabel.types import Optim
from nolabel.views.plan import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from nolabel.encoders import Encoder

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options that all methods share. None means "auto": resolved once, printed and saved."""

    data: str = ""  # SRC: a folder, list, table, shards, or a named set (nolabel list datasets)
    out: str = ""  # the run's folder; default runs/METHOD-DATA
    backbone: str | None = None  # timm's ViT, Swin, ConvNeXt, ResNet, a preset, or file.py:Class
    image_size: Side | None = None  # side of the network's input in pixels
    patch_size: Count | None = None  # side of a ViT's patch in pixels, or of those Swin embeds
    channels: Count = 3  # of the images; with other than 3: grey, RGBA, .npy arrays, 16 bits kept
    mean: tuple[float, ...] | None = None  # of each channel in 0..1; auto: ImageNet's, or measured
    std: tuple[Positive, ...] | None = None  # deviation of each channel
    flip: float | None = None  # probability that a view is mirrored; 0 where left and right matter
    vertical_flip: float | None = None  # probability that a view is upside down
    quarter_turns: float | None = None  # probability of a turn by 90, 180 or 270 degrees
    jitter: tuple[float, float, float, float] | None = None  # brightness, contrast, sat., hue
    channel_jitter: NotNegative | None = None  # strength of the jitter of each channel by itself
    jitter_p: float | None = None  # probability of both jitters
    grey: float | None = None  # probability that a view loses its colour
    blur: float | None = None  # probability of a Gaussian blur
    blur_sigma: tuple[float, float] | None = None  # its least and largest deviation, pixels
    solarise: float | None = None  # probability that the bright half is inverted
    noise: float | None = None  # probability of Gaussian noise
    noise_sigma: tuple[float, float] | None = None  # its deviation, as shares of the range
    views: str | None = None  # FILE: a plan of the views as YAML (show views writes one)
    fit_views: bool = True  # recipe auto: flips, turns and colours that suit a sample of the data
    epochs: Count | None = None  # length: one of epochs, steps, minutes
    steps: Count | None = None  # length in optimiser steps
    minutes: Positive | None = None  # length in minutes on this machine, measured at the start
    batch_size: Count | Literal["auto"] | None = None  # images of a step in total; auto: what fits
    accumulate: Count | None = None  # micro-batches of a step; auto: as few as memory allows
    workers: Whole | None = None  # processes that load data; 0: the main process loads
    # pixels (height x width) at which decoded images stay in memory; auto: if they fit; or off
    cache: Count | Literal["auto", "off"] = "auto"
    views_on: str = "auto"  # where views are made: cpu, or device (workers only decode)
    seed: int = 0  # fixes weights, order and augmentation
    device: str = "auto"  # auto, cpu or cuda
    checkpoint_activations: bool = False  # transformers: less memory for a third more time
    shard: bool = False  # shard weights, gradients and moments over processes (FSDP2)
    shard_layers: bool = False  # with --shard: all-gather weights a layer at a time
    compile: bool = False  # torch.compile for the layers; for long runs on GPUs
    precision: str = "auto"  # auto (measured), fp32 or bf16
    init: str | None = None  # ENC: continue from these weights
    warm_heads: int | None = None  # with --init: steps that train only new heads; auto: 5 %
    init_guard: str = "warn"  # with --init: what to do when its features are destroyed
    on_collapse: str = "warn"  # what to do when features collapse; stop: exit code 3
    probe: str | None = None  # SRC with labels for a k-NN curve while training
    probe_every: Count | None = None  # steps between probes
    keep: str = "last"  # the encoder that is kept: the last, or the best by probe or self-retrieval
    recipe: str = "auto"  # auto (small data), paper, paper-NAME, or a config.yaml to copy
    log_every: Count | None = None  # steps between lines of metrics.jsonl
    checkpoint_every: Count | None = None  # steps between checkpoints; auto: five minutes
    max_bad: float = 0.01  # largest share of files that may be unreadable
    overwrite: bool = False  # replace a run that is already in the folder
    download: bool = False  # allow a named set to be downloaded
    private: bool = False  # keep paths and images of the data out of encoder, snapshots, report


LENGTHS = ("epochs", "steps", "minutes")  # the settings of which one gives the run's length
TYPED = ("out", "overwrite", "download")  # settings that no file can set: who wrote it would decide
WARM_HEADS = 0.05  # share of the run in which only new heads are trained
CHOICES = {  # settings that take one of a few words
    "device": ("auto", "cpu", "cuda"),
    "precision": ("auto", "fp32", "bf16"),
    "views_on": ("auto", "cpu", "device"),
    "keep": ("last", "best"),
    "init_guard": ("off", "warn", "rollback"),
    "on_collapse": ("warn", "stop"),
}


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """The settings of a resolved run: every value is final.

    `steps` is the length; `epochs` and `minutes` record how it was requested. None is a final value
    too: no `init` or `probe`, the network's own `patch_size`, checkpoints by time, a view's own.
    """

    backbone: str = field()
    image_size: int = field()
    mean: tuple[float, ...] = field()
    std: tuple[float, ...] = field()
    steps: int = field()
    batch_size: int = field()
    accumulate: int = field()
    workers: int = field()
    warm_heads: int = field()
    probe_every: int = field()
    log_every: int = field()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A resolved run: every value is final."""

    method: str
    settings: RunSettings
    options: Any
    optim: Optim
    backbone_kwargs: Mapping[str, Any] = field(default_factory=dict)
    images: int = 0
    data_digest: str = ""  # of the images (`nolabel.data.identity`); "" in older versions' files
    steps_per_epoch: int = 0
    operations: Mapping[str, Any] = field(default_factory=dict)  # measured: views.suitability

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.settings.out)

    @property
    def encoder(self) -> Encoder:
        """The trained encoder of this run's folder (`nolabel.load`)."""
        from nolabel.encoders import load

        return load(str(self.folder))

    def with_settings(self, **changes: Any) -> Run:
        """The run with other values of some settings."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **changes))

    def to_dict(self) -> dict[str, Any]:
        """Built-in types, as in config.yaml; `code` lists the user's code files that are named."""
        values = to_builtin(dataclasses.asdict(self))
        code = _usercode.records(values)
        return {**values, "code": code} if code else values

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Run:
        """A run from `to_dict`, of older versions too. `engine.saved_run` reads a folder.

        Raises:
            UsageError: unknown keys, values of a wrong type, or user code that is not loaded.
        """
        raw = {k: v for k, v in methods.upgrade_config(raw).items() if k != "code"}
        _usercode.refuse_paths(raw, "The configuration")
        method_class = methods.load(str(raw.get("method", "")))
        parts = {"options": None, "settings": None, "optim": None}
        run = from_dict(cls, {**raw, **parts})
        settings = from_dict(Settings, raw.get("settings") or {}, "settings.")
        return dataclasses.replace(
            run,
            settings=complete(settings, continued=False),
            options=from_dict(method_class.Options, raw.get("options") or {}, "options."),
            optim=from_dict(Optim, raw.get("optim") or {}, "optim."),
        )


def complete(s: Settings, *, continued: bool) -> RunSettings:
    """Fills in the settings that are still None, by fixed rules.

    Files of older versions hold such values as null; they ran by the same rules.

    Args:
        s: settings with a known length.
        continued: whether `init` loaded the heads too, so that there are no new ones to train.
    """
    total = s.steps or 0
    new_heads = bool(s.init) and s.warm_heads is None and not continued
    defaults: dict[str, Any] = {
        "backbone": "",
        "image_size": 0,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "steps": 0,
        "batch_size": 0,
        "accumulate": 1,
        "workers": 0,
        "warm_heads": max(round(WARM_HEADS * total), 1) if new_heads else 0,
        "probe_every": max(total // 10, 1),
        "log_every": max(min(total // 100, 100), 1),  # about a hundred lines a run
    }
    values = field_values(s)
    values |= {k: v for k, v in defaults.items() if values[k] is None}
    unmeasured = (("precision", "fp32"), ("views_on", "cpu"), ("cache", "off"))
    values |= {k: v for k, v in unmeasured if values[k] == "auto"}
    return RunSettings(**values)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Options from one origin: the command line, Python keywords, or a file."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # of `Settings`
    options: Mapping[str, Any] = field(default_factory=dict)  # of the method's `Options`
    optim: Mapping[str, Any] = field(default_factory=dict)  # of `Optim`

    @classmethod
    def from_file(cls, path: str | Path) -> Layer:
        """The options in a YAML file, such as a run's config.yaml; `TYPED` ones are left out.

        A run's file holds its steps beside the epochs or minutes that were requested: then epochs
        are used, which suit any batch size, else steps.

        Raises:
            UsageError: no such file, or it is not of this form.
            UntrustedCode: it names code that was never run on this machine and is not allowed.
        """
        raw = methods.upgrade_config(_usercode.admitted(read_yaml(path), path))
        parts = {f.name: raw.get(f.name) or {} for f in dataclasses.fields(cls)}
        for name, values in parts.items():
            if not isinstance(values, Mapping):
                raise UsageError(f"{name} in {path} must hold 'key: value' lines, got {values!r}.")
        given = parts["settings"].items()
        parts["settings"] = {k: v for k, v in given if v is not None and k not in TYPED}
        if "steps_per_epoch" in raw:
            lengths = [k for k in LENGTHS if k in parts["settings"]]
            for derived in lengths[1:]:
                del parts["settings"][derived]
        return cls(**parts)

    @classmethod
    def from_keywords(cls, method: type[Method], options: Mapping[str, Any]) -> Layer:
        """Keyword arguments, sorted into settings, options and optimiser by name.

        Raises:
            UsageError: an unknown name (with the nearest one), or a value of a wrong type.
        """
        # Some options have the names of settings (`views.fields.SHARED`), and come first.
        classes = {"options": method.Options, "settings": Settings, "optim": Optim}
        fields = {k: {f.name for f in dataclasses.fields(c)} for k, c in classes.items()}
        fields["optim"] -= {"name"}  # `optimiser` names it
        parts: dict[str, dict[str, Any]] = {k: {} for k in classes}
        for key, value in options.items():
            part, name = "optim", "name"
            if key != "optimiser":
                part, name = next((k for k, names in fields.items() if key in names), ""), key
            if not part:
                names = set().union(*fields.values())
                raise UsageError(
                    f"Unknown option {key!r}.{did_you_mean(key, names)} Options are: "
                    f"{', '.join(sorted(names))}."
                )
            hint = typing.get_type_hints(classes[part])[name]
            value = os.fspath(value) if isinstance(value, Path) else value
            parts[part][name] = _coerce(hint, value, name)
        return cls(**parts)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A user's request: a method, and options in layers. Explicit options win."""

    method: str  # a built-in name or path/to/file.py:Class
    explicit: Layer = Layer()  # flags, or Python's keyword arguments
    file: Layer = Layer()  # of --config
    chosen: Layer = Layer()  # chosen automatically, where nothing is said (`nolabel.engine.fit`)
    tournament: str = "off"  # auto, on: the method may be chosen by trial (`engine.tournament`)

    @classmethod
    def of(cls, method: str, **options: object) -> Request:
        """A request from keyword arguments, as `nolabel.pretrain` takes them."""
        layer = Layer.from_keywords(methods.load(method), options)
        return cls(method=method, explicit=layer)

    def choose(self, **settings: Any) -> Request:
        """The request with more settings chosen automatically."""
        chosen = {**self.chosen.settings, **settings}
        return dataclasses.replace(self, chosen=dataclasses.replace(self.chosen, settings=chosen))

    @property
    def settings(self) -> Settings:
        """The shared settings, None where nothing was requested.

        An explicit length replaces the length of the file.
        """
        in_file, explicit = self.file.settings, self.explicit.settings
        if any(explicit.get(k) is not None for k in LENGTHS):
            in_file = {k: v for k, v in in_file.items() if k not in LENGTHS}
        chosen = {k: v for k, v in self.chosen.settings.items() if k not in in_file}
        s = override(Settings(), chosen, "settings.")
        s = override(s, in_file, "settings.")
        return override(s, explicit, "settings.")


def override(default: T, values: Mapping[str, Any], where: str = "") -> T:
    """A copy of the dataclass `default` with some values replaced; the new values are checked.

    Raises:
        UsageError: as `from_dict`.
    """
    new = from_dict(type(default), values, where)
    changed: Any = default
    return dataclasses.replace(changed, **{k: getattr(new, k) for k in values})


def field_values(instance: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass with their values, not copied."""
    return {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}


def to_builtin(value: Any) -> Any:
    """Tuples to lists, at any depth."""
    if isinstance(value, Mapping):
        return {str(k): to_builtin(v) for k, v in value.items()}
    return [to_builtin(v) for v in value] if isinstance(value, (list, tuple)) else value


def from_dict(cls: type, raw: Mapping[str, Any], where: str = "") -> Any:
    """Builds a dataclass from built-in values, checking names and types.

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
            nearest = did_you_mean(str(key), names)
            raise UsageError(f"Unknown key {where}{key!r} in the configuration.{nearest}")
        out[key] = _coerce(hints[key], value, where + key)
    return cls(**out)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """The value of a type hint's type: int may become float, and list tuple; else UsageError."""
    if hint is Any or dataclasses.is_dataclass(hint):  # nested dataclasses are read separately
        return value
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        inner = [k for k in typing.get_args(hint) if k is not type(None)]
        if value is None or any(value in typing.get_args(k) for k in inner[1:]):  # a Literal's
            return value
        return _coerce(inner[0], value, where)
    if typing.get_origin(hint) is Mapping or hint is Mapping:
        return dict(value)
    if typing.get_origin(hint) is tuple:
        args = typing.get_args(hint)
        if isinstance(value, (list, tuple)) and (args[-1] is ... or len(value) == len(args)):
            return tuple(_coerce(args[0], v, where) for v in value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = hint.__name__ if isinstance(hint, type) else str(hint)
    raise UsageError(f"{where} is {value!r}; it must be of type {name}.")
