"""The verbs scan, pack, bench, plan and ablate."""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from nolabel.cli._output import write
from nolabel.cli.flags import continues, first, flags, write_json
from nolabel.data.progress import phase
from nolabel.errors import UsageError, command, unknown
from nolabel.methods import check_name


def scan_(args: list[str], about: str) -> None:
    """`nolabel scan`."""

    @dataclass(frozen=True, kw_only=True)
    class Scan:
        data: str  # SRC
        out: str = "scan"  # folder for the contact sheet and the lists
        method: str | None = None  # the method to suggest settings for; default: this machine's
        channels: int = 3  # of the images
        limit: int | None = None  # read that many images only, chosen at random
        all: bool = False  # read every image, however long it takes; else for some seconds
        json: str | None = None  # write the results to this file

    given = flags(Scan, args, "nolabel scan", about)
    if given.method is not None:
        check_name(given.method)  # the images are read first, which takes long
    from nolabel.data.open import open_source
    from nolabel.tools.scan import describe, scan

    if given.limit is not None and given.limit < 1:
        raise UsageError(f"--limit is {given.limit}; it must be above 0.")
    source = open_source(given.data, channels=given.channels)
    found = scan(source, given.out, method=given.method, limit=given.limit, everything=given.all)
    write(describe(found))
    write(f"pictures    {given.out}/contact-sheet.png; lists beside it")
    write_json(given.json, found)


def pack_(args: list[str], about: str) -> None:
    """`nolabel pack`."""
    import tyro

    from nolabel.tools.pack import Packing, pack

    @dataclass(frozen=True, kw_only=True)
    class Pack:
        data: str  # SRC
        out: str  # folder for the shards; a stopped command continues there
        packing: Annotated[Packing, tyro.conf.OmitArgPrefixes]
        json: str | None = None  # write the outcome to this file

    given = flags(Pack, args, "nolabel pack", about)
    from nolabel.data.open import open_source

    source = open_source(given.data)
    for note in source.notes:
        write(f"note: {note}")
    with continues(f"The shards that are complete are kept in {given.out}."):
        numbers = pack(source, given.out, given.packing)
    before, after = numbers["bytes_before"], numbers["bytes_after"]
    size = f"{after / 1e6:,.1f} MB" + (f" from {before / 1e6:,.1f} MB" if before else "")
    write(f"{numbers['images']:,} images in {numbers['shards']} shards, {size}")
    if numbers["skipped"]:
        write(f"{numbers['skipped']} could not be read: {given.out}/skipped.jsonl")
    rates = [numbers["images_per_second_before"], numbers["images_per_second_after"]]
    if rates[0]:
        write(f"read and decoded on one core: {rates[0]:,.0f} images/s before, {rates[1]:,.0f} now")
    write(f"use it with {command('--data', str(numbers['pattern']))}")
    write_json(given.json, numbers)


def bench_(args: list[str], about: str) -> None:
    """`nolabel bench data`, `nolabel bench step` and `nolabel bench embed`."""
    verbs = {"data": _bench_data, "step": _bench_step, "embed": _bench_embed}
    what = first(args, "bench", "WHAT", tuple(verbs), about)
    if what is None:
        return
    if what not in verbs:
        raise unknown("bench", what, tuple(verbs))
    verbs[what](args[1:], about)


def _bench_data(args: list[str], about: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bench:
        data: str  # SRC
        recipe: str = "dino"  # the method whose views are made
        image_size: int | None = None  # side of the large views in pixels; default: by the data
        workers: int = 0  # processes that make the batches; 0: this one, in one thread
        batch_size: int | Literal["auto"] = 64  # images in a batch; auto: as training would
        seconds: float = 5.0  # how long the complete path is measured
        device: str = "auto"  # where the batches go: auto, cpu or cuda
        json: str | None = None  # write the numbers to this file

    given = flags(Bench, args, "nolabel bench data", about)
    check_name(given.recipe)
    from nolabel.data.open import open_source
    from nolabel.tools.bench import bench_data, describe

    source = open_source(given.data, image_size=given.image_size)
    found = bench_data(
        source, given.recipe, image_size=given.image_size, workers=given.workers,
        batch_size=given.batch_size, seconds=given.seconds, device=given.device,
    )  # fmt: skip
    write(describe(found))
    write_json(given.json, found)


def _bench_step(args: list[str], about: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class BenchStep:
        method: str = "dino"  # whose step
        backbone: str = "vit_small_patch16_224"  # as for pretrain
        image_size: int = 224  # side of the large views in pixels
        patch_size: int | None = None  # as for pretrain
        batch_size: int | Literal["auto"] = 4  # images of a step; auto: as many as fit
        precision: str = "auto"  # auto (both are measured), fp32 or bf16
        device: str = "auto"  # auto, cpu or cuda
        recipe: str = "paper"  # paper or auto
        teacher: str | None = None  # for methods that learn from a frozen network
        json: str | None = None  # write the numbers to this file

    given = flags(BenchStep, args, "nolabel bench step", about)
    check_name(given.method)
    from nolabel.tools.bench import bench_step, describe_step

    found = bench_step(**{k: v for k, v in asdict(given).items() if k != "json"})
    write(describe_step(found))
    write_json(given.json, found)


def _bench_embed(args: list[str], about: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class BenchEmbed:
        encoder: str  # ENC
        data: str  # SRC
        batch_size: int = 256  # images at once
        image_size: int | None = None  # side in pixels; default: the encoder's own
        precision: str = "auto"  # auto (both are measured), fp32 or bf16
        seconds: float = 5.0  # how long each stage is measured
        device: str = "auto"  # auto, cpu or cuda
        json: str | None = None  # write the numbers to this file

    given = flags(BenchEmbed, args, "nolabel bench embed", about)
    from nolabel.data.open import open_source
    from nolabel.encoders import load
    from nolabel.tools.bench import bench_embed, describe_embed

    encoder = load(given.encoder, image_size=given.image_size, device=given.device)
    source = open_source(given.data, image_size=encoder.image_size, channels=encoder.channels)
    found = bench_embed(
        encoder, source, batch_size=given.batch_size, precision=given.precision,
        seconds=given.seconds,
    )  # fmt: skip
    write(describe_embed(found))
    write_json(given.json, found)


def plan_(args: list[str], about: str) -> None:
    """`nolabel plan`."""

    @dataclass(frozen=True, kw_only=True)
    class Plan:
        method: str = "dinov2"  # a built-in name or path/to/file.py:Class
        backbone: str = "vit_large_patch16_224"  # a preset or timm's name
        devices: int = 8  # how many GPUs
        gpu: str = "h200"  # b200, h200, h100, a100, a100-40, l40s, rtx4090, v100
        image_size: int = 224  # side of the large views in pixels
        patch_size: int | None = None  # side of a patch in pixels
        # of a step, over all devices; auto: as many as fit; default: the recipe's
        batch_size: int | Literal["auto"] | None = None
        recipe: str = "paper"  # paper or auto
        images: int = 1_281_167  # in the data set (default: ImageNet's number)
        epochs: int | None = None  # default: the recipe's
        shard: bool = False  # shard weights, gradients and moments over devices
        shard_layers: bool = False  # with --shard: all-gather weights a layer at a time
        precision: str = "bf16"  # bf16 or fp32
        share: float = 0.4  # of the peak FLOP/s that a step reaches (nolabel bench step)
        price: float = 0.0  # of a GPU hour
        check: bool = True  # compare the prediction of a step with a measured one, here
        json: str | None = None  # write the plan to this file

    given = flags(Plan, args, "nolabel plan", about)
    check_name(given.method)
    from nolabel.tools import plan

    wanted = {k: v for k, v in asdict(given).items() if k not in ("check", "json", "method")}
    with phase("counting the work and memory of a step"):
        found = plan.plan(given.method, **wanted)
    if given.check:
        with phase("measuring a step on this machine, to compare (--no-check leaves it out)"):
            found["check"] = plan.check(
                given.method, backbone=given.backbone, image_size=given.image_size,
                patch_size=given.patch_size, recipe=given.recipe, images=given.images,
            )  # fmt: skip
    write(plan.describe(found, found["check"]["error"] if given.check else None))
    write_json(given.json, found)


def ablate_(args: list[str], about: str) -> None:
    """`nolabel ablate`."""
    from nolabel import methods

    tables = [n for n in methods.METHODS if n in ("dino", "dinov2")]
    name = first(args, "ablate", "METHOD", (*tables, "or any other with --rows"), about)
    if name is None:
        return
    method_class = methods.load(methods.with_ablations(name))

    @dataclass(frozen=True, kw_only=True)
    class Ablate:
        data: str  # SRC with labels, which are used for measuring only
        test: str | None = None  # SRC with labels to test on; by default the set's test split
        rows: tuple[str, ...] = ()  # "option=value option=value" for each row, instead of the table
        seeds: int = 3  # runs of each row
        minutes: float | None = None  # length of each run; one of minutes, steps, epochs
        steps: int | None = None  # length in optimiser steps
        epochs: int | None = None  # length in epochs
        backbone: str | None = None  # as for pretrain
        image_size: int | None = None  # as for pretrain
        batch_size: int | Literal["auto"] | None = None  # as for pretrain
        out: str = ""  # folder of the runs and ablation.json; default runs/ablate-METHOD
        download: bool = False  # allow a named set to be downloaded
        json: str | None = None  # write the table to this file

    given = flags(Ablate, args[1:], f"nolabel ablate {name}", about)
    from nolabel.tools.ablate import ablate, parse_rows, render

    if given.seeds < 1:
        raise UsageError(f"--seeds is {given.seeds}; it must be above 0.")
    keys = ("minutes", "steps", "epochs", "backbone", "image_size", "batch_size")
    settings = {k: v for k, v in asdict(given).items() if k in keys and v is not None}
    if given.download:
        settings["download"] = True
    rows = parse_rows(given.rows, method_class) if given.rows else None
    with continues("The runs that are complete are kept."):
        table = ablate(name, data=given.data, test=given.test, rows=rows, seeds=given.seeds,
                       out=given.out, **settings)  # fmt: skip
    write(f"{name} on {given.data}: k-NN top-1, mean over {given.seeds} seeds")
    write(render(table))
    write_json(given.json, {"method": name, "data": given.data, "rows": table})
