"""Verbs that take an encoder, as functions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nolabel.apps.embed import Index
    from nolabel.apps.search import Hits
    from nolabel.data.open import SourceSpec
    from nolabel.encoders import Encoder
    from nolabel.encoders.encoder import ImageLike
    from nolabel.pictures._tiles import Pictures
    from nolabel.protocols.compare import Comparison
    from nolabel.protocols.report import Report
    from nolabel.protocols.run import TestSpec


def evaluate(
    protocol: str,
    encoder: Encoder | str | os.PathLike[str],
    train: SourceSpec | None = None,
    test: TestSpec | None = None,
    *,
    image_size: int | None = None,
    trust_code: bool = False,
    **options: object,
) -> Report:
    """Evaluates an encoder by one protocol; the report prints as a table.

    Args:
        protocol: a name of `nolabel list protocols`.
        encoder: an encoder, or a name that `load` takes.
        train: labelled images, for protocols that learn.
        test: test images; by default the test split of a named set, or a fifth of `train`.
        image_size: side of the images in pixels; default: the encoder's own.
        trust_code: execute user code that is stored with an encoder, also if it was never run on
            this machine.
        options: every option of `nolabel evaluate PROTOCOL --help`, with underscores.

    Raises:
        UsageError: unknown protocol or option, or train and test are the same images.
        DataError: no labels, only one class, or classes in test that train does not have.
    """
    from nolabel._usercode import trusted_code
    from nolabel.protocols.run import evaluate as run

    with trusted_code(trust_code):
        return run(protocol, encoder, train, test, image_size=image_size, **options)


def compare(
    encoders: Sequence[Encoder | str | os.PathLike[str]],
    *,
    train: SourceSpec | None = None,
    test: SourceSpec | None = None,
    protocols: Sequence[str] = (),
    options: Mapping[str, Mapping[str, object]] | None = None,
    trust_code: bool = False,
) -> Comparison:
    """Evaluates several encoders on the same images; the comparison prints as one table.

    The folder of a run among them keeps it, for the run's report.

    Args:
        encoders: encoders, or names that `load` takes.
        train: as for `evaluate`.
        test: as for `evaluate`.
        protocols: names of `nolabel list protocols`; by default knn, and without `train` labelfree.
        options: options of each protocol, by its name.
        trust_code: as for `evaluate`.

    Raises:
        UsageError, DataError: as `evaluate`.
    """
    from nolabel._usercode import trusted_code
    from nolabel.protocols.compare import compare as run
    from nolabel.protocols.compare import save_in_runs

    with trusted_code(trust_code):
        comparison = run(encoders, train, test, protocols=protocols, options=options)
        save_in_runs(comparison, encoders)
        return comparison


def show(
    what: str,
    encoder: Encoder | str | os.PathLike[str] | Sequence[Encoder | str | os.PathLike[str]],
    data: SourceSpec | None = None,
    *,
    count: int = 8,
    label: str | None = None,
    image_size: int | None = None,
    trust_code: bool = False,
    **options: object,
) -> Pictures:
    """Draws one kind of picture; it displays itself in notebooks, and `save(folder)` writes it.

    Args:
        what: a name of `nolabel list pictures`.
        encoder: an encoder, or a name that `load` takes; for some pictures the folder of a run; or
            several encoders, whose pictures of the same images are stacked.
        data: the images; some pictures need none.
        count: number of images to show.
        label: name of the class whose images are shown; None: all classes.
        image_size: shorter side of the images in pixels; default: the encoder's own.
        trust_code: as for `evaluate`.
        options: every option of `nolabel show WHAT --help`, with underscores.

    Raises:
        UsageError: unknown picture or option, or an encoder that does not support it.
        DataError: no image can be read, or there is no such class.
    """
    from nolabel._usercode import trusted_code
    from nolabel.tools.show import show as draw

    with trusted_code(trust_code):
        return draw(what, encoder, data, count=count, label=label, image_size=image_size, **options)


def embed(
    encoder: Encoder | str | os.PathLike[str],
    data: SourceSpec,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    trust_code: bool = False,
    **options: object,
) -> Index:
    """Saves the features of every image of a data set; a stopped call continues where it stopped.

    Args:
        encoder: an encoder, or a name that `load` takes.
        data: a SRC, a list of images, or a `Source`.
        out: FILE.npy, FILE.safetensors or FILE.parquet.
        overwrite: replace a file that is there.
        trust_code: as for `evaluate`.
        options: every option of `nolabel embed --help`, with underscores.

    Returns:
        The features on disk; `search` takes them.

    Raises:
        UsageError: an unknown option, or a file that holds other features.
    """
    from nolabel._usercode import trusted_code
    from nolabel.apps.embed import Options, open_inputs
    from nolabel.apps.embed import embed as run
    from nolabel.config import from_dict

    with trusted_code(trust_code):
        used, source = open_inputs(encoder, data)
        return run(used, source, out, options=from_dict(Options, options), overwrite=overwrite)


def search(
    index: Index | str | os.PathLike[str],
    encoder: Encoder | str | os.PathLike[str],
    query: ImageLike,
    *,
    k: int = 10,
    approximate: bool = False,
    trust_code: bool = False,
) -> Hits:
    """Finds the images most similar to an image or to a text.

    Args:
        index: what `embed` wrote or returned.
        encoder: the encoder that made it, or a name that `load` takes.
        query: a path, a Pillow image or an array; or a text, for encoders of clip and siglip.
        k: number of results.
        approximate: search only the nearest cells, for millions of rows (extra `search`).
        trust_code: as for `evaluate`.

    Raises:
        UsageError: another encoder than the index's, or a text without a text tower.
        DataError: the image cannot be read.
    """
    from nolabel._usercode import trusted_code
    from nolabel.apps.search import open_inputs
    from nolabel.apps.search import search as run

    with trusted_code(trust_code):
        opened, used = open_inputs(index, encoder)
        return run(opened, used, query, k=k, approximate=approximate)


def export(
    encoder: Encoder | str | os.PathLike[str],
    to: str,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Exports an encoder for another library, loads it there, and compares the features.

    Args:
        encoder: an encoder, or a name that `load` takes.
        to: timm, hf (transformers) or onnx.
        out: a folder.
        overwrite: replace what is in the folder.
        trust_code: as for `evaluate`.

    Returns:
        "form", "folder", "files", "largest_difference" and "loading" (code that loads it).

    Raises:
        UsageError: an unknown format, or a folder that is not empty.
    """
    from nolabel._usercode import trusted_code
    from nolabel.encoders.convert.export import export as run

    with trusted_code(trust_code):
        return run(loaded(encoder, device="cpu"), to, out, overwrite=overwrite)


def import_checkpoint(
    file: str | os.PathLike[str],
    layout: str,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    tokenizer: str = "",
    **options: object,
) -> Encoder:
    """Converts a published checkpoint into an encoder.

    Args:
        file: .pth, .pt, .bin or .safetensors.
        layout: its layout, a name of `nolabel list weights`.
        out: folder for the encoder.
        overwrite: replace an encoder that is in the folder.
        tokenizer: tokenizer.json for CLIP's text tower.
        options: every option of `nolabel import FILE --help`, with underscores.

    Raises:
        UsageError: no such file or layout.
        FileDamaged: the file is no checkpoint, or holds objects that could run code.
        DataError: tensors are missing, left over, or not in this layout.
    """
    from nolabel.encoders.convert.official import import_file, save_imported

    found = import_file(file, layout, **options)
    save_imported(found, out, family=layout, tokenizer=tokenizer, overwrite=overwrite)
    return found.encoder


def loaded(encoder: Encoder | str | os.PathLike[str], **options: Any) -> Encoder:
    """Returns an encoder unchanged, and loads one that is given by name."""
    from nolabel.encoders import Encoder, load

    return encoder if isinstance(encoder, Encoder) else load(os.fspath(encoder), **options)
