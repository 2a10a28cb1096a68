"""The verb pretrain."""

from __future__ import annotations

from nolabel.cli.flags import write_json
from nolabel.cli.pretrain_flags import read_flags

HELP = frozenset({"-h", "--help", "--help-all"})


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
