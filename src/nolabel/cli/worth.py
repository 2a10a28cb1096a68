"""The verb worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from nolabel.cli._output import write
from nolabel.cli.flags import flags, write_json
from nolabel.methods import check_name


def worth_(args: list[str], about: str) -> None:
    """`nolabel worth`."""

    @dataclass(frozen=True, kw_only=True)
    class Worth:
        data: str  # SRC without labels, to pre-train on
        labels: str  # SRC with labels, a few of each class or more
        test: str | None = None  # SRC with labels to test on; default: a fifth of --labels
        out: str = "worth"  # folder for the run, worth.json and worth.png
        minutes: float = 20.0  # time for everything, on this machine
        run: str | None = None  # a finished run, instead of pre-training
        public: tuple[str, ...] = ()  # published encoders (ENC) to compare with; may be downloaded
        method: str | None = None  # as for pretrain; default: this machine's
        backbone: str | None = None  # as for pretrain
        image_size: int | None = None  # as for pretrain
        steps: int | None = None  # of pre-training, instead of its share of the minutes
        json: str | None = None  # write the results to this file

    given = flags(Worth, args, "nolabel worth", about)
    if given.method is not None:
        check_name(given.method)
    from nolabel.tools.worth import describe, worth

    options = {k: v for k, v in asdict(given).items() if k not in ("data", "labels", "json")}
    found = worth(given.data, given.labels, **options)
    write(describe(found))
    write(f"picture: {given.out}/worth.png; numbers: {given.out}/worth.json")
    write_json(given.json, found)
