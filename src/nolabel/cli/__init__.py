"""The command line: parses options and prints results. Each verb imports what it needs."""

import importlib
import io
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, make_dataclass
from typing import Annotated, Any

from nolabel._files import check_file, check_folder
from nolabel._version import __version__
from nolabel.catalogue import Entry, render
from nolabel.cli._output import write, write_error
from nolabel.cli.flags import first, flags, is_rank0, without_trust, write_json
from nolabel.data.progress import status_lines
from nolabel.errors import NolabelError, Stopped, UsageError, command, unknown

AUTO = "auto"  # in the place of a method: chosen automatically
BEGAN = time.monotonic()  # of the command
VERBS = {
    "demo": "an example on built-in data: pre-train, compare, pictures, report.html",
    "pretrain": "[METHOD] --data SRC: train an encoder on unlabelled images",
    "resume": "DIR: continue a stopped run exactly, or train a finished one further",
    "replay": "DIR: repeat a non-finite step, and name the module that caused it",
    "evaluate": "PROTOCOL --encoder ENC [--train SRC] [--test SRC]: measure an encoder",
    "compare": "ENC ENC ... [--train SRC] [--test SRC]: several encoders, one table",
    "ablate": "METHOD --data SRC: change one setting at a time, equal budgets, several seeds",
    "show": "WHAT --encoder ENC --data SRC --out DIR: pictures and measured numbers",
    "worth": "--data SRC --labels SRC: what pre-training brings, over label budgets",
    "scan": "--data SRC: check a data set: sizes, bad files, duplicates, a recipe and its cost",
    "pack": "--data SRC --out DIR [--max-side N]: resize images and pack them into tar shards",
    "bench": "data | step | embed: images per second of each stage, on this machine",
    "plan": "--method METHOD --devices N --gpu GPU: predict memory, speed, time and cost",
    "embed": "--encoder ENC --data SRC --out FILE: save the features of a data set, resumable",
    "search": "--index FILE --encoder ENC --query IMAGE_OR_TEXT: find the nearest images",
    "import": "FILE --as LAYOUT: convert a published checkpoint into an encoder",
    "export": "--encoder ENC --to timm|hf|onnx --out DIR: convert for other libraries, and compare",
    "report": "DIR: one offline HTML file about a run, with a verdict first",
    "list": "methods | backbones | weights | datasets | protocols | pictures: the available ones",
}
LISTS = {  # what -> where its table is
    "methods": "nolabel.methods:METHODS",
    "backbones": "nolabel.backbones:BACKBONES",
    "weights": "nolabel.encoders:WEIGHTS",
    "datasets": "nolabel.data.open:DATASETS",
    "protocols": "nolabel.protocols.run:PROTOCOLS",
    "pictures": "nolabel.pictures:PICTURES",
}


def usage() -> str:
    """The text of `nolabel --help`."""
    verbs = "\n".join(f"  {name:<10} {text}" for name, text in VERBS.items())
    return (
        "nolabel: self-supervised learning of image encoders.\n\n"
        f"usage: nolabel VERB ...\n\n{verbs}\n\n"
        "`nolabel VERB --help` lists the options of a verb with their defaults;\n"
        "`nolabel pretrain METHOD --help` adds those of a method.\n\n"
        "A first run:    nolabel demo\n"
        "Your images:    nolabel pretrain dino --data photos/ --out runs/dino\n\n"
        "SRC  a folder; a list (.txt) or table (.csv, .tsv, .parquet) of paths; tar shards\n"
        "     ('shards/{000..127}.tar'); a video or a folder of them (clips@5: frames a second);\n"
        "     hf:owner/name; creatures, digits, fashion-mnist, cifar10, emoji, stamps, clipart\n"
        "     (:train or :test)\n"
        "ENC  a run's folder, an encoder.safetensors, timm:NAME, openclip:NAME/TAG, random:NAME,\n"
        "     pixels\n\n"
        "--trust-code  for verbs that take an ENC or a run's DIR: execute the code in it\n"
        "     (methods, networks, sources) even if it was never run on this machine\n\n"
        "exit codes: 0 done, 1 failed, 2 wrong use, 3 stopped by a guard, 75 stopped on request"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # names and pictures of bars in an ASCII terminal
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not is_rank0():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        args, trust = without_trust(args)
        status = status_lines(f"nolabel {args[0]}") if args and is_rank0() else nullcontext()
        with trust, status:
            code = _run(args)
        sys.stdout.flush()  # now, so that a closed pipe (`| head`) is caught below
    except NolabelError as error:
        # Wrong use is the same on all ranks, so rank 0 reports it; other errors are reported by
        # the rank that raised them.
        if is_rank0() or not isinstance(error, UsageError | Stopped):
            write_error(f"nolabel: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        print("\nnolabel: interrupted.", file=sys.stderr)
        return 130  # as shells have it for SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        write_error(f"nolabel: {error}. Check the path and the free space.")
        return 1
    return code


def _run(args: list[str]) -> int:
    if args[:1] == ["help"] and len(args) > 1:  # `help pretrain dino` is `pretrain dino --help`
        args = [*args[1:], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        write(usage())
        return 0 if args else 2
    if args[0] == "--version":
        write(__version__)
        return 0
    verbs: dict[str, Callable[[list[str]], None]] = {
        "demo": _demo, "pretrain": _pretrain, "evaluate": _evaluate,
        "compare": _compare, "show": _show, "report": _report, "list": _list,
    }  # fmt: skip
    if args[0] not in VERBS:
        raise unknown("verb", args[0], VERBS)
    if args[0] in verbs:
        verbs[args[0]](args[1:])
    else:
        from nolabel.cli import apps as cli_apps
        from nolabel.cli import data as cli_data
        from nolabel.cli import encoders as cli_weights
        from nolabel.cli import runs as cli_runs
        from nolabel.cli import worth as cli_worth

        about = {
            "resume": cli_runs.resume_, "replay": cli_runs.replay_, "worth": cli_worth.worth_,
            "scan": cli_data.scan_, "pack": cli_data.pack_, "bench": cli_data.bench_,
            "plan": cli_data.plan_,
            "ablate": cli_data.ablate_, "import": cli_weights.import_,
            "export": cli_weights.export_,
            "embed": cli_apps.embed_, "search": cli_apps.search_,
        }  # fmt: skip
        about[args[0]](args[1:], VERBS[args[0]])
    return 0


def _pretrain(args: list[str]) -> None:
    from nolabel import methods

    help_asked = args and args[0] in ("-h", "--help")
    if args and not help_asked and (args[0] == AUTO or args[0].startswith("-")):
        name, args = AUTO, args[args[0] == AUTO :]
    else:
        named = first(
            args, "pretrain", "METHOD", (AUTO, *methods.METHODS, "path/to/file.py:Class"),
            VERBS["pretrain"],
        )  # fmt: skip
        if named is None:
            return
        name, args = named, args[1:]
        methods.check_name(name)  # before torch is imported, which takes seconds
    from nolabel.cli.pretrain import run_pretrain

    run_pretrain(name, args, BEGAN)


SIZE = "side of the images in pixels (of pictures, the shorter one); default: the encoder's own"


def _evaluate(args: list[str]) -> None:
    from nolabel.protocols.run import PROTOCOLS, evaluate, options_of

    names = list(PROTOCOLS)
    name = first(args, "evaluate", "PROTOCOL", [*names, "all"], VERBS["evaluate"])
    if name is None:
        return
    if name == "all":
        from nolabel.cli.apps import evaluate_all_

        return evaluate_all_(args[1:])
    if name not in names:
        raise unknown("protocol", name, [*names, "all"])
    import tyro

    options_class, learns = options_of(name), PROTOCOLS[name].learns
    text, maybe, arg = str, str | None, tyro.conf.arg
    fields: list[Any] = [
        ("encoder", Annotated[text, arg(help="ENC: a run's folder, timm:NAME, pixels, ...")]),
        ("train", Annotated[text, arg(help="SRC with labels, to learn from")])
        if learns
        else ("train", Annotated[maybe, tyro.conf.Suppress], None),
        ("test", Annotated[maybe, arg(help="SRC with labels, to test on; by default "
                                       "the set's test split, or a fifth of train")], None)
        if learns
        else ("test", Annotated[text, arg(help=PROTOCOLS[name].test_help)]),
        (name, Annotated[options_class, tyro.conf.OmitArgPrefixes], options_class()),
        ("image_size", Annotated[int | None, arg(help=SIZE)], None),
        ("json", Annotated[maybe, arg(help="write the table to this file")], None),
    ]  # fmt: skip
    given = flags(
        make_dataclass("Evaluate", fields, frozen=True, kw_only=True),
        args[1:],
        f"nolabel evaluate {name}",
        "Measure an encoder: --encoder ENC "
        + ("--train SRC [--test SRC]." if learns else "--test SRC."),
    )
    options = asdict(vars(given)[name])
    report = evaluate(
        name, given.encoder, given.train, given.test, image_size=given.image_size, **options
    )
    write(report)
    write_json(given.json, report.to_json())


def _compare(args: list[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True, kw_only=True)
    class Compare:
        encoders: Positional[tuple[str, ...]]  # two or more ENC
        train: str | None = None  # SRC with labels; none for protocols that learn nothing
        test: str | None = None  # SRC; default: the train set's test split, or a fifth of it
        protocols: tuple[str, ...] = ()  # which; default knn, without --train labelfree
        all: bool = False  # print every setting, not only the one that represents an encoder
        json: str | None = None  # write the table to this file

    given = flags(Compare, args, "nolabel compare", "Several encoders, one table.")
    if not given.encoders:
        raise UsageError("Give encoders, such as `nolabel compare runs/dino pixels --train SRC`.")
    from nolabel.protocols.compare import compare, save_in_runs

    table = compare(given.encoders, given.train, given.test, protocols=given.protocols)
    write(table.table(given.all))
    for path in save_in_runs(table, given.encoders):
        write(f"saved in {path}, for `{command('nolabel', 'report', str(path.parent))}`")
    write_json(given.json, table.to_json())


def _show(args: list[str]) -> None:
    from nolabel.pictures import PICTURES, options_of

    name = first(args, "show", "WHAT", list(PICTURES), VERBS["show"])
    if name is None:
        return
    if name not in PICTURES:
        raise unknown("picture", name, PICTURES)
    import tyro

    text, arg = str, tyro.conf.arg
    of = "a run's folder" if PICTURES[name].of_run else "ENC: a run's folder, timm:NAME, ..."
    of += "; one with a text tower (clip, siglip)" if PICTURES[name].of_text else ""
    of += "; the pictures of several are stacked"
    options = options_of(name)
    fields: list[Any] = [
        ("encoder", Annotated[tuple[str, ...], arg(help=of)]),
        ("data", Annotated[text, arg(help="SRC")])
        if PICTURES[name].data
        else ("data", Annotated[str | None, arg(help="not used")], None),
        (
            "out",
            Annotated[text, arg(help="folder for the pictures, numbers and data")],
            "pictures",
        ),
        ("count", Annotated[int, arg(help="images shown")], 8),
        ("label", Annotated[str | None, arg(help="the class whose images are shown")], None),
        ("image_size", Annotated[int | None, arg(help=SIZE)], None),
        *((o.name, Annotated[o.kind, arg(help=o.help)], o.default) for o in options),
        ("json", Annotated[str | None, arg(help="write the numbers to this file")], None),
    ]
    show_class = make_dataclass("Show", fields, frozen=True, kw_only=True)
    given = flags(show_class, args[1:], f"nolabel show {name}", PICTURES[name].description)
    from nolabel.tools.show import show

    check_folder(given.out)
    pictures = show(
        name, given.encoder, given.data, count=given.count, label=given.label,
        image_size=given.image_size,
        **{o.name: vars(given)[o.name] for o in options},
    )  # fmt: skip
    for picture in pictures:
        write(picture.caption)
    for path in pictures.save(given.out):
        write(path)
    write_json(given.json, pictures.numbers)


def _report(args: list[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True, kw_only=True)
    class Report:
        folder: Positional[str]  # the run's folder
        out: str | None = None  # the HTML file; default report.html in the folder
        data: str = "auto"  # SRC for its pictures; auto: the data of its probe, or its training
        draw: bool = True  # draw the pictures that are not in the folder yet

    given = flags(Report, args, "nolabel report", VERBS["report"])
    if given.out:
        check_file(given.out)
    from nolabel.tools.report import build_report
    from nolabel.tools.show import draw_missing

    missing = draw_missing(given.folder, given.data) if given.draw else []
    write(build_report(given.folder, out=given.out, notes=missing))


def _demo(args: list[str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Demo:
        out: str = "demo"  # folder for the run, the pictures and report.html
        minutes: float = 2.5  # length of the training
        method: str = "simclr"  # dino, mae or simclr
        overwrite: bool = False  # replace an earlier demo in the folder
        json: str | None = None  # write the numbers to this file

    given = flags(Demo, args, "nolabel demo", VERBS["demo"])
    from nolabel import methods

    methods.check_name(given.method)
    from nolabel.tools.demo import demo

    numbers = demo(given.out, given.minutes, given.method, overwrite=given.overwrite)
    write_json(given.json, numbers)


def _list(args: list[str]) -> None:
    if not args or args[0].startswith("--json"):
        return _list_all(args)
    what = first(args, "list", "WHAT", tuple(LISTS), VERBS["list"])
    if what is None:
        return
    table = catalogue(what)
    out = None
    if args[1:]:

        @dataclass(frozen=True, kw_only=True)
        class List:
            json: str | None = None  # write the list to this file

        out = flags(List, args[1:], f"nolabel list {what}", VERBS["list"]).json
    write(render(table))
    write_json(out, [entry.row() for entry in table.values()])


def _list_all(args: list[str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class List:
        json: str | None = None  # write the lists to this file

    out = flags(List, args, "nolabel list", VERBS["list"]).json if args else None
    tables = {what: catalogue(what) for what in LISTS}
    write("\n\n".join(f"{what.upper()}\n{render(table)}" for what, table in tables.items()))
    write_json(out, {w: [entry.row() for entry in t.values()] for w, t in tables.items()})


def catalogue(what: str) -> Mapping[str, Entry]:
    """The table that `nolabel list` shows.

    Args:
        what: one of `LISTS`.

    Raises:
        UsageError: no such table.
    """
    if what not in LISTS:
        raise unknown("list", what, LISTS)
    module, _, name = LISTS[what].partition(":")
    return vars(importlib.import_module(module))[name]


if __name__ == "__main__":
    sys.exit(main())
