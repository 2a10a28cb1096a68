"""Flags from dataclasses, and helpers of several verbs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nolabel._files import check_file, write_text
from nolabel._moved import present_flags
from nolabel.cli._output import write
from nolabel.errors import Stopped, UsageError
from nolabel.limits import check_finite

TRUST = "--trust-code"
# Verbs that open a run's folder or an encoder, whose code they may have to execute.
MAY_EXECUTE = frozenset(
    {"pretrain", "resume", "replay", "evaluate", "compare", "ablate", "show", "bench", "embed",
     "search", "export", "report", "worth"}
)  # fmt: skip


def without_trust(args: list[str]) -> tuple[list[str], contextlib.AbstractContextManager[None]]:
    """The arguments without `--trust-code`, and the context that enables it."""
    if not args or args[0] not in MAY_EXECUTE or TRUST not in args:
        return args, contextlib.nullcontext()
    from nolabel._usercode import trusted_code

    return [a for a in args if a != TRUST], trusted_code()


def flags(cls: type, args: list[str], prog: str, description: str, default: object = None) -> Any:
    """Parses flags into a dataclass; for --help and wrong use, tyro prints and exits (0 or 2).

    Raises:
        UsageError: a number is not finite, or the file of --json cannot be written.
    """
    import tyro

    args = present_flags(prog.partition(" ")[2], args)

    if prog.split()[1] in MAY_EXECUTE:
        description += (
            f"\n\n{TRUST}: execute the code in a run's folder or beside an encoder file even if it "
            "was never run on this machine."
        )
    given: Any = (
        tyro.cli(cls, args=args, prog=prog, description=description)
        if default is None
        else tyro.cli(cls, args=args, prog=prog, description=description, default=default)
    )
    check_finite(given)
    json_file = getattr(given, "json", None)
    if json_file:
        check_file(json_file, "--json")
    return given


def flags_in(args: Sequence[str]) -> list[str]:
    """Names of the flags on a command line, with dots and underscores: `optim.lr`, `batch_size`."""
    return [a[2:].partition("=")[0].replace("-", "_") for a in args if a.startswith("--")]


@contextlib.contextmanager
def continues(kept: str) -> Iterator[None]:
    """Inside, Ctrl-C ends the verb with a message, as the same command goes on later.

    Args:
        kept: a sentence that says what is kept.

    Raises:
        Stopped: the user interrupted it.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"Stopped. {kept} The same command goes on from there.") from None


def is_rank0() -> bool:
    """Whether RANK is 0 or not set. Unlike `distributed.is_main`, it needs no torch."""
    return os.environ.get("RANK", "0") == "0"


def write_json(path: str | None, value: object) -> None:
    """Writes a value to the file of `--json`, on rank 0; does nothing without a path."""
    if path and is_rank0():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(value, indent=2) + "\n")


def first(args: list[str], verb: str, what: str, allowed: Sequence[str], about: str) -> str | None:
    """The word after the verb; None if it is -h or --help, after printing the help."""
    if args and args[0] in ("-h", "--help"):
        write(f"usage: nolabel {verb} {what} [options]\n\n{about}\n")
        write(f"{what}: {', '.join(allowed)}\n")
        write(f"`nolabel {verb} {what} --help` lists the options.")
        return None
    if not args or args[0].startswith("-"):
        raise UsageError(f"nolabel {verb} needs a {what}. Allowed: {', '.join(allowed)}.")
    return args[0]
