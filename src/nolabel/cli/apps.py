"""Verbs that use an encoder: evaluate all, embed and search."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from nolabel._files import check_folder
from nolabel.cli._output import write
from nolabel.cli.flags import continues, flags, write_json
from nolabel.errors import command

if TYPE_CHECKING:
    from nolabel.apps.embed import Index
    from nolabel.apps.search import Hits
    from nolabel.encoders import Encoder
    from nolabel.pictures._tiles import Pictures


def evaluate_all_(args: list[str]) -> None:
    """`nolabel evaluate all`."""
    from nolabel.protocols.all import evaluate_all

    @dataclass(frozen=True, kw_only=True)
    class Evaluate:
        encoder: str  # ENC: a run's folder, timm:NAME, pixels, ...
        train: str  # SRC with labels, to learn from
        test: str | None = None  # SRC with labels; default: the set's test split, or a fifth
        json: str | None = None  # write the tables to this file

    about = "Every protocol that suits the encoder and the data."
    given = flags(Evaluate, args, "nolabel evaluate all", about)
    found = evaluate_all(given.encoder, given.train, given.test)
    write(found)
    write_json(given.json, found.to_json())


def embed_(args: list[str], about: str) -> None:
    """`nolabel embed`."""
    import tyro

    from nolabel.apps.embed import Options, embed, open_inputs

    @dataclass(frozen=True, kw_only=True)
    class Embed:
        encoder: str  # ENC
        data: str  # SRC
        out: str  # FILE.npy, FILE.safetensors or FILE.parquet
        features: Annotated[Options, tyro.conf.OmitArgPrefixes] = Options()
        image_size: int | None = None  # side in pixels; default: the encoder's own
        device: str = "auto"  # auto, cpu or cuda
        overwrite: bool = False  # replace a file that is there
        json: str | None = None  # write the description of the features to this file too

    given = flags(Embed, args, "nolabel embed", about)
    encoder, source = open_inputs(
        given.encoder, given.data, image_size=given.image_size, device=given.device
    )
    for note in source.notes:
        write(f"note: {note}")
    with continues(f"The features that are done are kept beside {given.out}."):
        index = embed(encoder, source, given.out, options=given.features, overwrite=given.overwrite)
    a = index.about
    write(f"wrote {given.out}: {a['count']:,} x {a['dim']} {a['dtype']} of {a['encoder']}")
    if a["skipped"]:
        path, reason = a["skipped"][0]
        write(f"{len(a['skipped'])} image(s) could not be read, first {path}: {reason}")
    words = ("--index", given.out, "--encoder", given.encoder, "--query", "IMAGE")
    write(f"search it: {command('nolabel', 'search', *words)}")
    write_json(given.json, a)


def search_(args: list[str], about: str) -> None:
    """`nolabel search`."""
    from nolabel.apps.search import open_inputs, search

    @dataclass(frozen=True, kw_only=True)
    class Search:
        index: str  # FILE that nolabel embed wrote
        encoder: str  # the ENC that made it
        query: str  # an image; or a text, for encoders of clip and siglip
        k: int = 10  # number of results
        approximate: bool = False  # search only the nearest cells, for millions of rows (faiss)
        data: str | None = None  # SRC that was embedded, to draw the images with --out
        out: str | None = None  # folder for the picture of the images
        json: str | None = None  # write the results to this file

    given = flags(Search, args, "nolabel search", about)
    if given.out:
        check_folder(given.out)
    index, encoder = open_inputs(given.index, given.encoder)
    hits = search(index, encoder, given.query, k=given.k, approximate=given.approximate)
    write(hits)
    if given.out:
        for path in _drawn(index, encoder, hits, given.query, given.data).save(given.out):
            write(path)
    found = zip(hits.rows, hits.names, hits.similarity, strict=True)
    rows = [{"row": r, "name": n, "similarity": s} for r, n, s in found]
    write_json(given.json, {"query": hits.query, "found": rows})


def _drawn(
    index: "Index", encoder: "Encoder", hits: "Hits", query: str, data: str | None
) -> "Pictures":
    """A picture of the images that were found, the query first if it is an image."""
    import os

    from nolabel._usercode import refuse_paths
    from nolabel.apps.search import draw
    from nolabel.data.open import open_source
    from nolabel.data.source import Subset
    from nolabel.encoders.encoder import read_pixels

    if data is None:  # the name comes from the index file, which somebody else may have written
        refuse_paths(index.about["data"], str(index.path))
        data = index.about["data"]
    source = open_source(data, image_size=encoder.image_size, channels=encoder.channels)
    first, count = index.about["first"], index.about["count"]
    source = Subset(source, range(first, first + count))
    shown = read_pixels(query, encoder.channels) if os.path.exists(query) else None
    return draw(hits, source, shown)
