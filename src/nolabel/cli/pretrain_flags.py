"""The flags of the verb pretrain, read once, as the options that are given explicitly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any

from nolabel.cli.flags import flags, flags_in


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
