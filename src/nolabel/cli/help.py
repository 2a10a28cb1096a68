"""`nolabel pretrain METHOD --help`: the options in groups, with the values that a run would take.

The values are not the defaults of the classes: they are resolved as for a run, with the recipes
"auto" and "paper", for the data given or else for two examples.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import itertools
import textwrap
import tokenize
import typing
from collections.abc import Sequence
from dataclasses import dataclass

from nolabel import methods
from nolabel.cli.pretrain_flags import CommandLine, VerbFlags, first_line
from nolabel.config import CHOICES, Layer, Request, Settings, field_values
from nolabel.data.source import Source
from nolabel.engine.fit import proposed
from nolabel.engine.optimiser import CLIPS, NAMES
from nolabel.engine.placeholder import Placeholder
from nolabel.engine.resolve import Resolved, resolve
from nolabel.errors import UsageError
from nolabel.methods.base import Method
from nolabel.types import Optim
from nolabel.views.fields import SHARED

EXAMPLES = (Placeholder(50_000, 224), Placeholder(50_000, 32))
METHOD_FIRST = 5  # options of a method that are shown without --help-all
OPTIM = "optim."

# Group -> options that --help shows, options that only --help-all shows.
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "data": (
        ("data", "image_size", "probe"),
        (
            "channels",
            "mean",
            "std",
            "max_bad",
            "download",
        ),
    ),
    "views": ((), ("views", "fit_views", *SHARED)),
    "network": (
        ("backbone", "init"),
        ("patch_size", "warm_heads", "init_guard", "checkpoint_activations"),
    ),
    "length": (
        ("epochs", "steps", "minutes", "batch_size"),
        ("accumulate", "keep", "probe_every", "log_every", "checkpoint_every"),
    ),
    "optimiser": (("optim.lr", "optim.weight_decay", "optim.warmup_epochs"), ()),
    "this method": ((), ()),
    "machine": (
        ("device", "precision", "workers"),
        ("cache", "views_on", "shard", "shard_layers", "compile"),
    ),
    "run": (
        ("out", "recipe", "config", "dry_run"),
        ("seed", "tournament", "on_collapse", "overwrite", "private", "json"),
    ),
}


# What an option takes, where its type does not say it.
PLACEHOLDERS = {
    "data": "SRC", "probe": "SRC", "init": "ENC", "teacher": "ENC", "backbone": "NAME",
    "out": "DIR", "config": "FILE", "json": "FILE", "recipe": "auto|paper|FILE", "views": "FILE",
    "cache": "auto|off|PIXELS", "tournament": "auto|on|off",
    **{name: "|".join(values) for name, values in CHOICES.items()},
    "optim.name": "|".join(NAMES), "optim.clip_by": "|".join(CLIPS),
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """The values of one recipe on some data."""

    title: str
    resolved: Resolved | None  # None: such a run is impossible
    why: str = ""  # why it is impossible
    measured: frozenset[str] = frozenset()  # settings that are chosen by trial steps

    def value(self, name: str) -> str:
        """The value as typed on the command line; "-" for none, "measured" if it is measured."""
        if self.resolved is None:
            return "-"
        run, unmeasured = self.resolved.run, self.resolved.settings
        if name.startswith(OPTIM):
            return typed(field_values(run.optim)[name.removeprefix(OPTIM)])
        options = field_values(run.options)
        if name in options:
            return typed(options[name])
        if name in ("data", "out") and isinstance(self.resolved.source, Placeholder):
            return "-"
        if (
            name in self.measured
            or name in self.resolved.open
            or (name == "accumulate" and unmeasured.accumulate is None and self.resolved.open)
        ):
            return "measured"
        if name == "warm_heads" and not unmeasured.init:
            return "-"
        return typed(field_values(run.settings)[name])


def show_help(name: str, line: CommandLine, *, everything: bool) -> None:
    """Prints the help of a method.

    Args:
        name: of the method.
        line: the other flags of the command line; the values depend on them.
        everything: show all options (`--help-all`).
    """
    from rich.console import Console

    method_class = methods.load(name)
    value_columns = columns(name, line)
    console = Console(highlight=False, markup=False, emoji=False)
    about = {
        **comments(VerbFlags), **comments(Settings), **comments(method_class.Options),
        **{OPTIM + k: v for k, v in comments(Optim).items()},
    }  # fmt: skip
    types = {
        **typing.get_type_hints(VerbFlags), **typing.get_type_hints(Settings),
        **typing.get_type_hints(method_class.Options),
        **{OPTIM + k: v for k, v in typing.get_type_hints(Optim).items()},
    }  # fmt: skip
    console.print(
        f"usage: nolabel pretrain {name} --data SRC [options]\n\n{first_line(method_class)}\n"
    )
    console.print(_explanation(value_columns) + "\n")
    screen = _Screen(console.width, len(value_columns))
    console.print(screen.row(["", *(c.title.replace(", ", "\n") for c in value_columns), ""]))
    hidden = 0
    for group, (first, more) in groups(method_class).items():
        hidden += 0 if everything else len(more)
        names = (*first, *more) if everything else first
        if names:
            console.print(group, style="bold")
        for option in names:
            of_verb = option in {f.name for f in dataclasses.fields(VerbFlags)}
            values = ["-" if of_verb else column.value(option) for column in value_columns]
            flag = screen.flag(option, types[option])
            console.print(screen.row([flag, *values, about[option]]), soft_wrap=True)
    if hidden:
        console.print(f"\n--help-all lists {hidden} more options.")
    if everything:
        console.print("\nTo turn a switch off: --no-NAME, or --optim.no-NAME.")


def columns(name: str, line: CommandLine) -> list[Column]:
    """The values with the automatic recipe and the paper's, for the data or two examples."""
    file = Layer.from_file(line.verb.config) if line.verb.config else Layer()
    settings = {**file.settings, **line.explicit.settings}
    recipes = [r for r in ("auto", "paper") if settings.get("recipe", r) == r]
    recipes = recipes or [str(settings["recipe"])]  # a file
    cases: list[tuple[str, str, Source | None]] = []
    for recipe in recipes:
        if settings.get("data"):
            cases.append((recipe, recipe, None))
        else:
            examples = EXAMPLES if recipe != "paper" else EXAMPLES[:1]
            cases += [(f"{recipe}, {e.size} px", recipe, e) for e in examples]
    out = []
    for title, recipe, source in cases:
        changed = {**line.explicit.settings, "recipe": recipe}
        if source is not None:
            changed["data"] = source.name
        layer = dataclasses.replace(line.explicit, settings=changed)
        try:
            request = Request(method=name, explicit=layer, file=file)
            request, measured = proposed(request)
            resolved = resolve(request, source=source, quiet=True)
            out.append(Column(title, resolved, measured=measured))
        except UsageError as error:
            out.append(Column(title, None, str(error)))
    return out


def groups(method_class: type[Method]) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """`GROUPS` with the options of a method and of the optimiser in them."""
    # What a page declares itself comes before options that several pages share, as of the crops.
    options = [f.name for f in dataclasses.fields(method_class.Options)]
    options.sort(key=lambda name: name not in method_class.Options.__annotations__)
    out = dict(GROUPS)
    first, more = out["views"]
    out["views"] = (first, tuple(name for name in more if name not in options))
    out["this method"] = (tuple(options[:METHOD_FIRST]), tuple(options[METHOD_FIRST:]))
    first = GROUPS["optimiser"][0]
    rest = tuple(OPTIM + f.name for f in dataclasses.fields(Optim) if OPTIM + f.name not in first)
    out["optimiser"] = (first, rest)
    return out


def typed(value: object) -> str:
    """A value as typed on the command line; "-" for none, "on" and "off" for switches."""
    if value is None or value in ("", ()):
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(typed(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def comments(cls: type) -> dict[str, str]:
    """The comment of each field of a dataclass, from its source: on its line, or on lines above."""
    out: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            text = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # a class without a source file
            continue
        lines = text.splitlines()
        by_line = {
            t.start[0]: t.string.lstrip("# ").rstrip()
            for t in tokenize.generate_tokens(io.StringIO(text).readline)
            if t.type == tokenize.COMMENT
        }
        tree = ast.parse(text).body[0]
        for node in tree.body if isinstance(tree, ast.ClassDef) else ():
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            comment = by_line.get(node.end_lineno or 0, "")
            above, line = [], node.lineno - 1
            while not comment and line in by_line and lines[line - 1].lstrip().startswith("#"):
                above.insert(0, by_line[line])
                line -= 1
            out[node.target.id] = comment or " ".join(above)
    return {f.name: out.get(f.name, "") for f in dataclasses.fields(cls)}


def _explanation(value_columns: list[Column]) -> str:
    first = next((c.resolved for c in value_columns if c.resolved), None)
    if first is None:
        data = "these data, on this machine"
    elif isinstance(first.source, Placeholder):
        data = f"{first.source.count:,} images on this machine (for your data: add --data SRC)"
    else:
        data = f"{first.source.name}: {len(first.source):,} images, on this machine"
    text = (
        "Values of options that are left out, with --recipe auto (the default) and --recipe paper, "
        f'for {data}. "-": no value. "measured": chosen when training starts, by a few trial '
        "steps. SRC names data, ENC names an encoder: see `nolabel --help`."
    )
    for column in value_columns:
        if "backbone" in column.measured and column.resolved:
            s = column.resolved.run.settings
            text += (
                f" {column.title}: what depends on the network is shown for {s.backbone} at "
                f"{s.image_size} px."
            )
    notes = [f"\n{c.title}: not possible here. {c.why}" for c in value_columns if c.why]
    return text + "".join(notes)


class _Screen:
    """Lays out rows of flag, values and explanation.

    Args:
        width: of the terminal, in characters.
        values: number of value columns.
    """

    def __init__(self, width: int, values: int):
        # Narrow enough that something is left for the explanations on a terminal of 80 columns.
        self.flags, value = (40, 14) if width >= 110 else (24, 8)
        if width >= 200:
            value = (width - 120) // values
        self.gap = 2 if width >= 110 else 1
        rest = max(width - self.flags - values * (value + self.gap) - self.gap - 1, 20)
        self.widths = (self.flags, *(value,) * values, rest)

    def flag(self, name: str, hint: object) -> str:
        """An option with what it takes, such as `--batch-size N|auto`, in one line or two."""
        flag, word = "  --" + name.replace("_", "-"), PLACEHOLDERS.get(name) or _placeholder(hint)
        one_line = f"{flag} {word}".rstrip()
        return one_line if len(one_line) <= self.flags else f"{flag}\n      {word}".rstrip()

    def row(self, cells: Sequence[str]) -> str:
        """The cells side by side, wrapped; a flag that is too long has a line of its own."""
        first, _, rest = cells[0].partition("\n")
        above = ""
        if len(first) > self.flags:
            above, first, rest = first + "\n", rest, ""
        columns = [[first, rest] if rest else [first]]
        for cell, width in zip(cells[1:], self.widths[1:], strict=True):
            lines = (textwrap.wrap(line, width) for line in cell.split("\n"))
            columns.append([part for line in lines for part in line])
        gap = " " * self.gap
        rows = itertools.zip_longest(*columns, fillvalue="")
        padded = (
            gap.join(f"{c:<{w}}" for c, w in zip(row, self.widths, strict=True)) for row in rows
        )
        return above + "\n".join(line.rstrip() for line in padded)


def _placeholder(hint: object) -> str:
    """What a value of a type looks like: N, X, TEXT, or its choices."""
    args = [a for a in typing.get_args(hint) if a is not type(None)]
    words = {bool: "", int: "N", float: "X", str: "TEXT"}
    if isinstance(hint, type) and hint in words:
        return words[hint]
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(str(a) for a in args)
    if typing.get_origin(hint) is tuple:
        return "X ..." if args[-1] is ... else " ".join(_placeholder(a) for a in args)
    return "|".join(_placeholder(a) for a in args)
