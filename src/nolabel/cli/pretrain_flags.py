"""The flags of the verb pretrain: parsed once, into the options that are set explicitly."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_type_hints

from nolabel._files import check_file
from nolabel.cli.flags import flags, flags_in

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from nolabel.config import Layer
    from nolabel.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class VerbFlags:
    """Flags of the verb itself, beside the options of a run."""

    config: str | None = None  # a config.yaml whose values these flags override
    dry_run: bool = False  # print the resolved run and stop
    # choose the method by trial, where none is named; auto: where labels (--probe) judge
    tournament: Literal["auto", "on", "off"] = "auto"
    json: str | None = None  # write the outcome to this file


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A parsed command line."""

    verb: VerbFlags = field(default_factory=VerbFlags)
    explicit: Layer  # the options that it sets


def read_flags(name: str, args: list[str]) -> CommandLine:
    """Parses the flags of `nolabel pretrain NAME`.

    Args:
        name: of the method.
        args: without -h, --help and --help-all.
    """
    from nolabel import methods
    from nolabel.config import Layer, Settings, field_values
    from nolabel.types import Optim

    method_class = methods.load(name)
    if not args:
        return CommandLine(explicit=Layer())
    args = with_prefix(args, method_class)
    import tyro

    flat = tyro.conf.OmitArgPrefixes
    own = {f.name for f in fields(method_class.Options)}
    hints = get_type_hints(Settings)
    # Some settings of the views are options of some methods.
    shared = make_dataclass(
        "Settings",
        [(f.name, hints[f.name], f.default) for f in fields(Settings) if f.name not in own],
        frozen=True,
    )
    everything = make_dataclass(
        "Pretrain",
        [
            ("verb", Annotated[VerbFlags, flat], VerbFlags()),
            ("settings", Annotated[shared, flat], shared()),
            ("options", Annotated[method_class.Options, flat], method_class.Options()),
            ("optim", Optim, Optim()),
        ],
        frozen=True,
    )
    values = flags(everything, args, f"nolabel pretrain {name}", first_line(method_class))
    if values.verb.json:
        check_file(values.verb.json, "--json")
    named = set(flags_in(args))
    named |= {f.replace("no_", "", 1) for f in named}  # --no-shard, --optim.no-decay-all

    def explicit(part: DataclassInstance, prefix: str = "") -> dict[str, object]:
        return {k: v for k, v in field_values(part).items() if prefix + k in named}

    return CommandLine(
        verb=values.verb,
        explicit=Layer(
            settings=explicit(values.settings),
            options=explicit(values.options),
            optim=explicit(values.optim, "optim."),
        ),
    )


def with_prefix(args: list[str], method_class: type[Method]) -> list[str]:
    """The arguments with `--lr` as `--optim.lr`, as Python takes `lr`, and so on.

    Fields of the optimiser whose names are also options of the run or of the method keep theirs.
    """
    from nolabel.config import Settings
    from nolabel.types import Optim

    taken = {f.name for cls in (Settings, method_class.Options, VerbFlags) for f in fields(cls)}
    short = {f.name.replace("_", "-") for f in fields(Optim)} - {"name"}
    short -= {name.replace("_", "-") for name in taken}

    def full(arg: str) -> str:
        name, equals, value = arg.removeprefix("--").partition("=")
        no = "no-" if name.startswith("no-") else ""
        known = name.removeprefix(no).replace("_", "-") in short
        if not arg.startswith("--") or not known:
            return arg
        return f"--optim.{name}{equals}{value}"

    return [full(arg) for arg in args]


def first_line(cls: type) -> str:
    """The first line of a class's docstring."""
    return (cls.__doc__ or cls.__name__).strip().splitlines()[0]
