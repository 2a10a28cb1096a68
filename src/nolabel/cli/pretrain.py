"""The verb pretrain."""

from __future__ import annotations

from nolabel.cli._output import write
from nolabel.cli.flags import write_json
from nolabel.cli.pretrain_flags import read_flags

HELP = frozenset({"-h", "--help", "--help-all"})


def run_pretrain(name: str, args: list[str], began: float) -> None:
    """`nolabel pretrain METHOD ...`.

    Args:
        name: of the method, or "auto".
        args: what follows it.
        began: time.monotonic() at the start of the command.
    """
    automatic = name == "auto"
    if automatic:
        from nolabel.engine.fit import automatic_method
        from nolabel.engine.log import say

        name, why = automatic_method()
        if not HELP & set(args):
            say(f"method: {name} {why} (`nolabel list methods` has the others)")
    if HELP & set(args):
        from nolabel.cli.help import show_help

        line = read_flags(name, [a for a in args if a not in HELP])
        return show_help(name, line, everything="--help-all" in args)
    line = read_flags(name, args)
    from nolabel.config import Layer, Request
    from nolabel.engine.build import Built
    from nolabel.engine.describe import describe, summarise
    from nolabel.engine.resolve import Resolved
    from nolabel.engine.train import pretrain
    from nolabel.errors import UsageError

    verb = line.verb
    if verb.tournament == "on" and not automatic:
        raise UsageError(
            f"--tournament on chooses the method, and {name} is named. Leave one of them out."
        )
    request = Request(
        method=name,
        tournament=verb.tournament if automatic else "off",
        explicit=line.explicit,
        file=Layer.from_file(verb.config) if verb.config else Layer(),
    )

    def show(built: Built, resolved: Resolved) -> None:
        write(describe(built, resolved) if verb.dry_run else summarise(built, resolved))
        if verb.dry_run:
            write_json(verb.json, resolved.to_dict())

    run = pretrain(request, show=show, dry_run=verb.dry_run, began=began)
    if not verb.dry_run:
        write_json(verb.json, {**run.to_dict(), "encoder": str(run.folder / "encoder.safetensors")})
