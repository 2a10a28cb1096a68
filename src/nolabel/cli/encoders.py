"""Verbs for weights of other libraries: import and export."""

import os
from dataclasses import dataclass
from typing import Annotated, Any

from nolabel.cli._output import write
from nolabel.cli.flags import first, flags, write_json
from nolabel.errors import command


def import_(args: list[str], about: str) -> None:
    """`nolabel import`."""
    from nolabel.backbones.vit import ViT
    from nolabel.encoders.convert.families import LAYOUTS
    from nolabel.encoders.convert.official import import_file, save_imported
    from nolabel.encoders.state_dict import first_names

    file = first(args, "import", "FILE", ("a checkpoint: .pth, .pt, .bin, .safetensors",), about)
    if file is None:
        return
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Import:
        as_: Annotated[str, tyro.conf.arg(name="as", help=f"its layout: {', '.join(LAYOUTS)}")]
        out: str = ""  # folder for the encoder; default imported/NAME-OF-THE-FILE
        branch: str = ""  # of a training checkpoint: teacher or student; default: as published
        heads: int | None = None  # attention heads; default: the published number for the width
        text_heads: int | None = None  # of CLIP's text tower; default: its width / 64
        image_size: int | None = None  # side in pixels at which it will be used; default: its own
        positions: str = ""  # how positions are resized: dino, mae or timm; default: the family's
        pool: str = ""  # the embedding: class (token) or mean; default: class, for BEiT mean
        quick_gelu: bool = True  # as in OpenAI's CLIP; most models of OpenCLIP do not use it
        tokenizer: str = ""  # tokenizer.json for CLIP's text tower; default: CLIP's own vocabulary
        overwrite: bool = False  # replace an encoder that is in the folder
        json: str | None = None  # write a description of the encoder to this file

    given = flags(Import, args[1:], "nolabel import FILE", about)
    chosen: dict[str, Any] = {
        k: vars(given)[k]
        for k in ("branch", "heads", "text_heads", "image_size", "positions", "pool", "quick_gelu")
    }
    found = import_file(file, given.as_, **chosen)
    out = given.out or os.path.join("imported", os.path.basename(file).split(".")[0])
    paths = save_imported(
        found, out, family=given.as_, tokenizer=given.tokenizer, overwrite=given.overwrite
    )
    e, b = found.encoder, found.encoder.backbone
    positions = b.positions if isinstance(b, ViT) else None
    numbers = {
        "file": file, "layout": given.as_, "branch": found.branch or None, "name": b.name,
        "kwargs": b.kwargs, "parameters": sum(p.numel() for p in b.parameters()), "dim": b.dim,
        "image_size": e.image_size, "positions": positions,
        "mean": list(e.mean), "std": list(e.std), "left_out": list(found.left_out),
        "written": [str(p) for p in paths],
    }  # fmt: skip
    write(f"read {file} as {given.as_} ({LAYOUTS[given.as_].paper})")
    write(
        f"network: {b.name}, {numbers['parameters']:,} parameters, embedding of {b.dim}, images "
        f"of {e.image_size} px" + (f", positions resized as by {positions}" if positions else "")
    )
    for other in found.others:
        write(
            f"note: read the branch {found.branch}; the file also holds {other}, often averaged "
            f"weights, which are better: --branch {other}"
        )
    if found.left_out:
        write(f"not part of the encoder, left out: {first_names(found.left_out, 4)}")
    if found.text and len(paths) == 1:
        write("the text tower was left out: its vocabulary is not CLIP's. Give --tokenizer.")
    for path in paths:
        write(f"wrote {path}")
    write(f"use it as {command('--encoder', out)}")
    write_json(given.json, numbers)


def export_(args: list[str], about: str) -> None:
    """`nolabel export`."""
    from nolabel.encoders import load
    from nolabel.encoders.convert.export import export

    @dataclass(frozen=True, kw_only=True)
    class Export:
        encoder: str  # ENC
        to: str  # timm, hf (transformers) or onnx
        out: str  # a folder
        image_size: int | None = None  # side in pixels; default: the encoder's own
        overwrite: bool = False  # replace what is in the folder
        json: str | None = None  # write the results to this file

    given = flags(Export, args, "nolabel export", about)
    encoder = load(given.encoder, image_size=given.image_size, device="cpu")
    result = export(encoder, given.to, given.out, overwrite=given.overwrite)
    write(f"wrote {result['folder']}: {', '.join(result['files'])}")
    write(f"loaded again: largest difference of a feature {result['largest_difference']:.1e}")
    write(f"load it: {result['loading']}")
    write_json(given.json, result)
