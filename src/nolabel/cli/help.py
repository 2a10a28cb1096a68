"""`nolabel pretrain METHOD --help`: the options in groups, with the values that a run takes.

The values are not the defaults of the classes: they are resolved as for a run, with the recipe
"auto" and with the paper's, for the data given or else for two examples.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import typing
from dataclasses import dataclass
from typing import Any

from nolabel import methods
from nolabel.cli.pretrain_flags import Given, Own, first_line
from nolabel.config import Layer, Request, Settings
from nolabel.data.source import Source
from nolabel.engine.placeholder import Placeholder
from nolabel.engine.resolve import Resolved, resolve
from nolabel.errors import UsageError
from nolabel.methods.base import Method
from nolabel.types import Optim

EXAMPLES = (Placeholder(50_000, 224), Placeholder(50_000, 32))
METHOD_FIRST = 5  # of a method's options, in their order, are shown without --help-all
OPTIM = "optim."

# Group -> options that matter first, further options. The method's own stand between.
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "data": (
        ("data", "image_size", "probe"),
        ("channels", "mean", "std", "max_bad", "download"),
    ),
    "network": (
        ("backbone", "init"),
        ("patch_size", "warm_heads", "init_guard", "checkpoint_activations"),
    ),
    "length": (
        ("epochs", "steps", "minutes", "batch_size"),
        ("accumulate", "probe_every", "log_every", "checkpoint_every"),
    ),
    "optimiser": (("optim.lr", "optim.weight_decay", "optim.warmup_epochs"), ()),
    "this method": ((), ()),
    "machine": (
        ("device", "precision", "workers"),
        ("views_on", "shard", "shard_layers", "compile"),
    ),
    "run": (
        ("out", "recipe", "config", "dry_run"),
        ("seed", "on_collapse", "overwrite", "json"),
    ),
}


@dataclass(frozen=True)
class Column:
    """The values of one recipe on some data."""

    title: str
    resolved: Resolved | None  # None: such a run is impossible
    why: str = ""  # it is

    def value(self, name: str) -> str:
        """An option's value as it is typed on the command line."""
        if self.resolved is None:
            return "-"
        run, asked = self.resolved.run, self.resolved.settings
        if name.startswith(OPTIM):
            return typed(getattr(run.optim, name.removeprefix(OPTIM)))
        if name in {f.name for f in dataclasses.fields(run.options)}:
            return typed(getattr(run.options, name))
        if name in ("data", "out") and isinstance(self.resolved.source, Placeholder):
            return "-"
        if name in self.resolved.open or (
            name == "accumulate" and asked.accumulate is None and self.resolved.open
        ):
            return "measured"
        if name == "warm_heads" and not asked.init:
            return "-"
        return typed(getattr(run.settings, name))


def show_help(name: str, given: Given, *, everything: bool) -> None:
    """Prints the help of a method.

    Args:
        name: of the method.
        given: the other flags of the command line, which the values follow.
        everything: all options, not only those that matter first.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    kind = methods.load(name)
    shown = columns(name, given)
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, 100)
    about = {
        **comments(Own), **comments(Settings), **comments(kind.Options),
        **{OPTIM + k: v for k, v in comments(Optim).items()},
    }  # fmt: skip
    types = {
        **typing.get_type_hints(Own), **typing.get_type_hints(Settings),
        **typing.get_type_hints(kind.Options),
        **{OPTIM + k: v for k, v in typing.get_type_hints(Optim).items()},
    }  # fmt: skip
    console.print(f"usage: nolabel pretrain {name} --data SRC [options]\n\n{first_line(kind)}\n")
    console.print(_explanation(shown) + "\n")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=True)
    table.add_column("", no_wrap=True)
    for column in shown:
        narrow = 14 if console.width < 200 else None
        title = Text(column.title.replace(", ", "\n"))
        table.add_column(title, max_width=narrow, overflow="fold")
    table.add_column("")
    hidden = 0
    for group, (first, more) in groups(kind).items():
        hidden += 0 if everything else len(more)
        names = (*first, *more) if everything else first
        if names:
            table.add_row(Text(group, style="bold"))
        for option in names:
            own = option in {f.name for f in dataclasses.fields(Own)}
            values = ["-" if own else column.value(option) for column in shown]
            table.add_row(f"  {_flag(option, types[option])}", *values, Text(about[option]))
    console.print(table)
    if hidden:
        console.print(f"\n--help-all lists {hidden} more options.")
    if everything:
        console.print("\nWhat is on is turned off by --no-NAME (--optim.no-NAME).")


def columns(name: str, given: Given) -> list[Column]:
    """The values with the automatic recipe and the paper's: for the data given, or two examples."""
    own = Layer.from_file(given.own.config) if given.own.config else Layer()
    settings = {**own.settings, **given.explicit.settings}
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
        changed = {**given.explicit.settings, "recipe": recipe}
        if source is not None:
            changed["data"] = source.name
        layer = dataclasses.replace(given.explicit, settings=changed)
        try:
            request = Request(method=name, explicit=layer, file=own)
            out.append(Column(title, resolve(request, source=source, quiet=True)))
        except UsageError as error:
            out.append(Column(title, None, str(error)))
    return out


def groups(kind: type[Method]) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """`GROUPS` with the options of a method and of the optimiser in them."""
    options = tuple(f.name for f in dataclasses.fields(kind.Options))
    out = dict(GROUPS)
    out["this method"] = (options[:METHOD_FIRST], options[METHOD_FIRST:])
    first = GROUPS["optimiser"][0]
    rest = tuple(OPTIM + f.name for f in dataclasses.fields(Optim) if OPTIM + f.name not in first)
    out["optimiser"] = (first, rest)
    return out


def typed(value: Any) -> str:
    """A value as it is typed on the command line; "-" for none, on and off for switches."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(typed(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def comments(cls: type) -> dict[str, str]:
    """The comment of each field of a dataclass: behind it, or on the lines above it."""
    out: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            text = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # a class that was made without a file
            continue
        lines = text.splitlines()
        found = {
            t.start[0]: t.string.lstrip("# ").rstrip()
            for t in tokenize.generate_tokens(io.StringIO(text).readline)
            if t.type == tokenize.COMMENT
        }
        tree = ast.parse(text).body[0]
        for node in tree.body if isinstance(tree, ast.ClassDef) else ():
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            said = found.get(node.end_lineno or 0, "")
            above, line = [], node.lineno - 1
            while not said and line in found and lines[line - 1].lstrip().startswith("#"):
                above.insert(0, found[line])
                line -= 1
            out[node.target.id] = said or " ".join(above)
    return {f.name: out.get(f.name, "") for f in dataclasses.fields(cls)}


def _explanation(shown: list[Column]) -> str:
    first = next((c.resolved for c in shown if c.resolved), None)
    if first is not None and isinstance(first.source, Placeholder):
        data = (
            f"{first.source.count:,} images of the size named, on this machine. `--data SRC "
            "--help` shows the values for your data"
        )
    else:
        data = "these data, on this machine" if first is None else f"{first.source.name}: "
        data += "" if first is None else f"{len(first.source):,} images, on this machine"
    text = (
        "Values that a run takes where nothing is given, with --recipe auto (which is the default) "
        f"and with --recipe paper, for {data}. measured: by a few steps at the start."
    )
    notes = [f"\n{c.title}: not possible here. {c.why}" for c in shown if c.why]
    return text + "".join(notes)


def _flag(name: str, kind: Any) -> str:
    """`--batch-size N|auto`, say."""
    flag = "--" + name.replace("_", "-")
    word = _placeholder(kind)
    return f"{flag} {word}" if word else flag


def _placeholder(kind: Any) -> str:
    args = [a for a in typing.get_args(kind) if a is not type(None)]
    if kind in (bool, int, float, str):
        return {bool: "", int: "N", float: "X", str: "TEXT"}[kind]
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(str(a) for a in args)
    if typing.get_origin(kind) is tuple:
        return "X ..." if args[-1] is ... else " ".join(_placeholder(a) for a in args)
    return "|".join(_placeholder(a) for a in args)
