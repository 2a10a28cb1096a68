"""Opens a source by name: named data sets, folders, tables, shards, videos, users' own classes.

torch and Pillow are imported only when an image is read, so that `nolabel list datasets` is fast.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nolabel import _usercode
from nolabel.catalogue import Entry, by_name
from nolabel.data.source import Source
from nolabel.errors import UsageError, did_you_mean, unknown

if TYPE_CHECKING:
    from nolabel.data.sources.items import Item

    SourceSpec = str | os.PathLike[str] | np.ndarray | Sequence[Item] | Source

SOURCE_CLASS = "source class (a subclass of nolabel.data.source.Source)"
OBJECT_PREFIX = "object:"  # of the name of data that were passed in from Python
PROCEDURAL_SIZE = 32  # pixels; default side of rendered images


@dataclass(frozen=True, kw_only=True)
class DatasetInfo(Entry):
    """One entry of the table of named data sets."""

    splits: tuple[str, ...] = ("train", "test")

    def row(self) -> dict[str, object]:
        """As `Entry.row`, with the splits."""
        return {**super().row(), "splits": list(self.splits)}


DATASETS: dict[str, DatasetInfo] = by_name(
    DatasetInfo(
        name="creatures",
        description=(
            "procedural images of creatures, rendered in memory, with labels, captions and masks"
        ),
    ),
    DatasetInfo(
        name="scenes",
        description="one to four creatures per image, with captions of their number and positions",
    ),
    DatasetInfo(
        name="digits",
        description="1,797 handwritten digits of 8 x 8 pixels, part of scikit-learn",
    ),
    DatasetInfo(
        name="fashion-mnist",
        description="70,000 grey pictures of clothes, 28 x 28 pixels, ten classes",
    ),
    DatasetInfo(
        name="cifar10",
        description="60,000 colour photographs, 32 x 32 pixels, ten classes",
    ),
    DatasetInfo(
        name="emoji",
        description="3,953 emoji of 72 x 72 pixels with names and masks",
        needs="pip install 'nolabel[emoji]'",
    ),
    DatasetInfo(
        name="stamps",
        description="796 photographs and drawings, cut out, with theme, description and mask",
        needs="the Debian package tuxpaint-stamps-default",
    ),
    DatasetInfo(
        name="clipart",
        description="6,883 drawings, cut out, with category, title and mask",
        needs="the Debian package openclipart-png",
    ),
)


def open_source(
    spec: SourceSpec,
    *,
    image_size: int | None = None,
    download: bool = False,
    split_default: str = "train",
    channels: int = 3,
) -> Source:
    """Opens a source from a path, a name, a list, an array or a `Source`.

    Args:
        spec: a folder; a list of paths (.txt) or a table with the column `path` (.csv, .tsv,
            .parquet); tar shards, such as `shards/{000..127}.tar`; a video or a folder of videos,
            with the suffix `@5` for five frames a second instead of one, `@all` for all; a named
            set, such as `digits` or `fashion-mnist:test` (`./digits` is a folder of that name);
            a set of the Hugging Face Hub, `hf:owner/name:split` or `hf:owner/name:split:column`;
            your own source, `path/to/file.py:Class`; a list of paths, Pillow images or arrays; an
            array uint8 [N, H, W, 3]; or a `Source`, returned as it is.
        image_size: side in pixels at which `creatures` and `scenes` are rendered; 32 when None.
        download: whether a named set may be downloaded without asking.
        split_default: split of a named set when `spec` names none.
        channels: number of channels C; unless it is 3, files are read by `read_bands`.

    Returns:
        The source.

    Raises:
        UsageError: no such folder, set or split; an object of another type; or images of another
            number of channels.
        DataError: the folder holds no image, or cannot be read.
    """
    if isinstance(spec, Source):
        _check_channels(spec, channels)
        return spec
    if isinstance(spec, np.ndarray):
        from nolabel.data.sources.arrays import Arrays

        if spec.ndim == 3 and spec.shape[0] == channels == 3 != spec.shape[-1]:
            raise UsageError(
                f"An array {list(spec.shape)} is one image with its channels first, or three grey "
                "images. Images are [N, H, W, 3]: use array.transpose(1, 2, 0)[None]. Give grey "
                "images as a list."
            )
        return Arrays("array", spec, channels=channels)
    if isinstance(spec, list | tuple):
        from nolabel.data.sources.items import Items

        return Items(spec, channels=channels)
    if not isinstance(spec, str | os.PathLike):
        raise UsageError(
            f"Data must be a folder, a list or table of paths, shards, a named set "
            f"({', '.join(DATASETS)}), file.py:Class, a list of paths or images, an array, or a "
            f"source; got {type(spec).__name__}. Your own source must be an instance of a "
            "subclass of nolabel.data.source.Source, which defines __len__ and read(i)."
        )
    source = _open_named(spec, image_size, download, split_default, channels)
    _check_channels(source, channels)
    return source


def _check_channels(source: Source, channels: int) -> None:
    if source.channels != channels:
        raise UsageError(
            f"{source.name!r} has images of {source.channels} channels, not {channels}."
        )


def record_source(spec: str) -> str:
    """The name under which a run records its data; executes a user's own source file.

    Args:
        spec: path or name from the command line.

    Returns:
        `file.py:Class@hash` for a user's own source; any other name unchanged.

    Raises:
        UsageError: no such file or class.
    """
    if not _names_user_source(spec):
        return spec
    return _usercode.load_path(spec, _is_source, SOURCE_CLASS).name


def name_of_object(source: Source) -> str:
    """The name under which a run records data that were passed in from Python."""
    return f"{OBJECT_PREFIX}{source.name}"


def open_again(spec: SourceSpec, name: str, who: str, *, channels: int) -> Source:
    """The data of a saved run that got them from Python, passed in again.

    Args:
        spec: the data.
        name: of the data in the run.
        who: the run, for the message.
        channels: number of channels C of the run.

    Raises:
        UsageError: its data are opened by their name; or as `open_source`.
    """
    if not name.startswith(OBJECT_PREFIX):
        raise UsageError(f"{who} has the data {name!r}, opened by this name. Leave data out.")
    return open_source(spec, channels=channels)


def absolute_source(spec: str) -> str:
    """A source's name that means the same from every folder: paths become absolute.

    Args:
        spec: path or name, from `record_source`.
    """
    elsewhere = spec.startswith(("hf:", OBJECT_PREFIX)) or spec.partition(":")[0] in DATASETS
    if elsewhere or _names_user_source(spec):
        return spec
    return os.path.abspath(spec) if spec else spec


def recorded_name(source: Source) -> str:
    """A source's name for a file that others open elsewhere; absolute where it leads to files."""
    name = source.name
    pattern = re.split(r"[*?{\[]", name)[0]
    on_disk = os.path.exists(name) or os.path.exists(name.rpartition("@")[0])
    if on_disk or (pattern != name and os.path.isdir(os.path.dirname(pattern) or ".")):
        return absolute_source(name)
    return name


def place_of(spec: str) -> str:
    """The file or folder that a source's name leads to; "" for named sets and users' classes.

    Args:
        spec: from `absolute_source`.
    """
    if not os.path.isabs(spec):
        return ""
    if not os.path.exists(spec) and os.path.exists(spec.rpartition("@")[0]):  # a video's rate
        return spec.rpartition("@")[0]
    return spec if os.path.exists(spec) else os.path.dirname(re.split(r"[*?{\[]", spec)[0])


def _is_source(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Source) and value is not Source


def _names_user_source(text: str) -> bool:
    """Whether a text is `file.py:Class` and not a folder of that name."""
    return _usercode.is_reference(text) and not os.path.isdir(text)


def _open_user_source(text: str) -> Source:
    """An instance of a user's own source, named `path/to/file.py:Class` or with `@hash`."""
    cls = _usercode.find(text, _is_source, SOURCE_CLASS)
    assert isinstance(cls, type) and issubclass(cls, Source)  # noqa: S101
    missing = sorted(cls.__abstractmethods__)
    if missing:
        raise UsageError(f"The source {cls.__name__} of {text} lacks {' and '.join(missing)}.")
    try:
        inspect.signature(cls).bind()
    except TypeError as error:
        raise UsageError(
            f"The source {cls.__name__} of {text} is made without arguments, but its __init__ "
            f"needs some ({error}). Give them defaults, or use Python: data={cls.__name__}(...)."
        ) from None
    return cls()


def _open_named(
    spec: str | os.PathLike[str],
    image_size: int | None,
    download: bool,
    split_default: str,
    channels: int,
) -> Source:
    """The source that a string or a path names."""
    text = os.fspath(spec)
    name, colon, split_name = text.partition(":")
    if text.startswith(OBJECT_PREFIX):
        raise UsageError(
            f"The data {text.removeprefix(OBJECT_PREFIX)!r} were passed in from Python, and no "
            "file names them. Pass them again: nl.resume(folder, data=...), or data= of the "
            "function that you call."
        )
    if isinstance(spec, str) and name in DATASETS:
        info, part = DATASETS[name], split_name if colon else split_default
        source = _open_dataset(info, part, image_size, download, channels)
        if os.path.exists(name):
            what = "folder" if os.path.isdir(name) else "file"
            source.notes = (
                *source.notes,
                f"{name!r} is the named set; there is a {what} of that name too, which is "
                f"--data ./{name}",
            )
        return source
    if isinstance(spec, str) and text.startswith("hf:"):
        from nolabel.data.sources.hub import Hub

        repository, _, part = text[3:].partition(":")
        part, _, column = part.partition(":")
        return Hub(repository, part or split_default, channels, column)
    if isinstance(spec, str) and _names_user_source(text):
        return _open_user_source(text)
    from nolabel.data.sources import video

    if video.is_videos(text):
        return video.Videos(text)
    if os.path.isdir(text):
        from nolabel.data.sources.folder import Folder

        return Folder(text, channels)
    from nolabel.data.sources import manifest, shards

    if shards.is_shards(text):
        return shards.Shards(text)
    if os.path.isfile(text) and manifest.is_manifest(text):
        return manifest.Manifest(text, channels)
    raise _unknown_source(text)


def _open_dataset(
    info: DatasetInfo, split_name: str, image_size: int | None, download: bool, channels: int
) -> Source:
    if split_name not in info.splits:
        raise unknown(f"split of {info.name}:", split_name, info.splits)
    if info.name == "creatures":
        from nolabel.data.creatures.world import Creatures

        return Creatures(split=split_name, size=image_size or PROCEDURAL_SIZE)
    if info.name == "scenes":
        from nolabel.data.creatures.scenes import Scenes

        return Scenes(split=split_name, size=image_size or PROCEDURAL_SIZE)
    if info.name == "emoji":
        from nolabel.data.sources.emoji import Emoji

        return Emoji(split_name)
    if info.name in ("stamps", "clipart"):
        from nolabel.data.sources.cutouts import Cutouts

        return Cutouts(info.name, split_name)
    from nolabel.data.sources import builtin

    if info.name == "digits":
        arrays = builtin.digits(split_name)
    elif info.name == "cifar10":
        arrays = builtin.cifar10(split_name, download=download)
    else:
        arrays = builtin.fashion_mnist(split_name, download=download)
    if channels == 1 and arrays.pixels.ndim == 3:  # stored as grey: do not repeat it to RGB
        arrays.channels = 1
    return arrays


def _unknown_source(text: str) -> UsageError:
    """The error for a string that names no source, with the nearest name."""
    sets = f"Named sets: {', '.join(DATASETS)} (see `nolabel list datasets`)."
    if not text:
        return UsageError(f"No data given: name a folder of images or a named set. {sets}")
    if os.path.exists(text):
        return UsageError(
            f"{text!r} is neither a folder nor a list of images. Give the folder that contains "
            "the images, a list (.txt), a table (.csv, .tsv, .parquet) or shards (.tar)."
        )
    path = Path(text)
    siblings: list[str] = []
    try:
        siblings = [str(p) for p in path.parent.iterdir() if p.is_dir() and p.name[0] != "."]
    except OSError:  # the parent is missing as well
        parent = next((p for p in path.parents if p.is_dir()), None)
        if parent is not None and str(parent) != ".":
            return UsageError(f"No folder {text!r}: it is missing from {str(parent)!r} on. {sets}")
    names = list(DATASETS)
    if ":" in text:
        names = [f"{info.name}:{s}" for info in DATASETS.values() for s in info.splits]
    close = did_you_mean(str(path), siblings) or did_you_mean(text, names)
    return UsageError(f"No folder or named set {text!r}.{close} {sets}")
