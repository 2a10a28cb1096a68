"""The verb pretrain: its flags are read once, as the options that are given explicitly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any

from nolabel.cli.flags import flags, flags_in, write_json

HELP = frozenset({"-h", "--help", "--help-all"})


@dataclass(frozen=True, kw_only=True)
class Own:
    """The verb's own flags."""

    config: str | None = None  # a config.yaml whose values these flags override
    dry_run: bool = False  # print the resolved run and stop
    json: str | None = None  # write the outcome to this file


@dataclass(frozen=True, kw_only=True)
class Given:
    """A command line, read."""

    own: Own = field(default_factory=Own)
    explicit: Any  # the options that it sets, a `Layer`


def run_pretrain(name: str, args: list[str]) -> None:
    """`nolabel pretrain METHOD ...`.

    Args:
        name: of the method.
        args: what follows it.
    """
    if HELP & set(args):
        from nolabel.cli.help import show_help

        given = read_flags(name, [a for a in args if a not in HELP])
        return show_help(name, given, everything="--help-all" in args)
    given = read_flags(name, args)
    from nolabel.config import Layer, Request
    from nolabel.engine.build import Built
    from nolabel.engine.describe import describe
    from nolabel.engine.resolve import Resolved
    from nolabel.engine.train import pretrain

    own = given.own
    request = Request(
        method=name,
        explicit=given.explicit,
        file=Layer.from_file(own.config) if own.config else Layer(),
    )

    def show(built: Built, resolved: Resolved) -> None:
        print(describe(built, resolved))
        if own.dry_run:
            write_json(own.json, resolved.to_dict())

    run = pretrain(request, show=show, dry_run=own.dry_run)
    if not own.dry_run:
        write_json(own.json, {**run.to_dict(), "encoder": str(run.folder / "encoder.safetensors")})


def read_flags(name: str, args: list[str]) -> Given:
    """The verb's own flags, and the options that are given explicitly.

    Args:
        name: of the method.
        args: without those that ask for help.
    """
    from nolabel import methods
    from nolabel.config import Layer, Settings
    from nolabel.types import Optim

    kind = methods.load(name)
    if not args:
        return Given(explicit=Layer())
    import tyro

    flat = tyro.conf.OmitArgPrefixes
    everything = make_dataclass(
        "Pretrain",
        [
            ("own", Annotated[Own, flat], Own()),
            ("settings", Annotated[Settings, flat], Settings()),
            ("options", Annotated[kind.Options, flat], kind.Options()),
            ("optim", Optim, Optim()),
        ],
        frozen=True,
    )
    values = flags(everything, args, f"nolabel pretrain {name}", first_line(kind))
    named = set(flags_in(args))
    named |= {f.replace("no_", "", 1) for f in named}  # --no-shard, --optim.no-decay-all

    def explicit(part: Any, prefix: str = "") -> dict[str, Any]:
        return {f.name: getattr(part, f.name) for f in fields(part) if prefix + f.name in named}

    return Given(
        own=values.own,
        explicit=Layer(
            settings=explicit(values.settings),
            options=explicit(values.options),
            optim=explicit(values.optim, "optim."),
        ),
    )


def first_line(kind: Callable[..., Any]) -> str:
    """What a class says it is."""
    return (kind.__doc__ or kind.__name__).strip().splitlines()[0]
