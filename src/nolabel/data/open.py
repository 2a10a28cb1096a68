"""Sources: numbered images, some with labels, and how a name on the command line becomes one.

Nothing heavy is imported until an image is read, so that `nolabel list datasets` is quick.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from nolabel.data.order import index_at
from nolabel.data.sources.items import Items
from nolabel.data.text.captions import texts_of
from nolabel.errors import DataError, UsageError, did_you_mean, unknown

if TYPE_CHECKING:
    from nolabel.types import Sample


@dataclass(frozen=True)
class Named:
    """One line of the table of named sets."""

    name: str
    description: str
    splits: tuple[str, ...] = ("train", "test")


NAMES: tuple[Named, ...] = (
    Named(
        "creatures",
        "procedural world of drawn creatures, made in memory, with labels, captions and masks",
    ),
    Named(
        "scenes",
        "one to four creatures in an image, with captions that count and relate them",
    ),
    Named(
        "digits",
        "1,797 handwritten digits of 8 x 8 pixels, part of scikit-learn",
    ),
    Named(
        "fashion-mnist",
        "70,000 grey pictures of clothes, 28 x 28 pixels, ten kinds",
    ),
    Named(
        "cifar10",
        "60,000 colour photographs, 32 x 32 pixels, ten kinds",
    ),
    Named(
        "emoji",
        "3,953 emoji of 72 x 72 pixels with names and masks (pip install 'nolabel[emoji]')",
    ),
)
_TABLE = {named.name: named for named in NAMES}


@runtime_checkable
class Source(Protocol):
    """Numbered images.  Reading image i gives the same pixels every time, in any process.

    A source that holds its images in memory at one size also has `images(indices)`, int [N] ->
    uint8 [N, H, W, 3], which reads a whole batch at once (see `fast_images`).  One whose files
    may be decoded at a reduced scale has `reduces = True`, and its `read` takes `enough`, a number
    of pixels that will do (see `read_image`).  One that has texts has
    `read_text(i)`, str or None, which decodes no image, and if many at once are quicker,
    `read_texts(indices)` (see `nolabel.data.text.captions`).
    """

    @property
    def name(self) -> str:
        """As the user named it; for messages and tables."""
        ...

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [N], or None when the images have no labels."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each label; empty without labels."""
        ...

    def __len__(self) -> int: ...

    def path(self, i: int, /) -> str:
        """Where image i lies, or a name for it; for messages."""
        ...

    def read(self, i: int, /) -> Sample:
        """Image i.  Raises BadImage when it cannot be used."""
        ...


def fast_images(source: Source) -> Callable[[np.ndarray], np.ndarray] | None:
    """The source's way of reading many images at once, or None when it reads one by one."""
    images = getattr(source, "images", None)
    return images if callable(images) and getattr(source, "in_memory", True) else None


class Arrays:
    """Images of one size held in memory.

    Args:
        name: For messages.
        pixels: uint8 [N, H, W, 3], or grey [N, H, W], which stays grey in memory.  With
            `channels`, uint8 or uint16 [N, H, W, C].
        labels: int64 [N] or None.
        classes: Name of each label.
    """

    in_memory = True

    def __init__(
        self,
        name: str,
        pixels: np.ndarray,
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
        channels: int = 3,
    ):
        kinds = (np.uint8,) if channels == 3 else (np.uint8, np.uint16)
        grey = pixels.ndim == 3 and channels in (1, 3)
        if pixels.dtype not in kinds or not (
            grey or (pixels.ndim == 4 and pixels.shape[-1] == channels)
        ):
            raise UsageError(
                f"Images must be uint8 [N, H, W, {channels}] or grey [N, H, W], got "
                f"{pixels.dtype} {list(pixels.shape)}."
            )
        self.name, self.channels = name, channels
        self.pixels = pixels
        self.labels = labels
        self.classes = classes

    def __len__(self) -> int:
        return len(self.pixels)

    def path(self, i: int, /) -> str:
        """A name for image i, such as `digits:train[12]`."""
        return f"{self.name}[{i}]"

    def read(self, i: int, /) -> Sample:
        """Image i as a copy of its own."""
        from nolabel.types import Sample

        image = self.images(np.array([i]))[0]
        return Sample(image=image, label=label_at(self.labels, i))

    def images(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 [N, H, W, 3] of the images at `indices`, int [N]."""
        some = self.pixels[indices]
        return some if some.ndim == 4 else np.repeat(some[..., None], self.channels, axis=-1)


class Subset:
    """A view of some images of a source, in the order of `indices` (int [N], may repeat)."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray, name: str = ""):
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        if self.indices.size and not (self.indices.min() >= 0 and self.indices.max() < len(source)):
            raise UsageError(f"A subset of {source.name!r} reaches past its {len(source)} images.")
        self.name = name or source.name
        self.labels = None if source.labels is None else source.labels[self.indices]
        self.classes = source.classes
        self._images = fast_images(source)
        self.in_memory = self._images is not None
        self.reduces = bool(getattr(source, "reduces", False))
        self.channels = int(getattr(source, "channels", 3))

    def __len__(self) -> int:
        return len(self.indices)

    def path(self, i: int, /) -> str:
        """Path of the image in the source."""
        return self.source.path(int(self.indices[i]))

    def read(self, i: int, /, **how: Any) -> Sample:
        """Image i of the subset, as the source reads it.  Raises BadImage."""
        return self.source.read(int(self.indices[i]), **how)

    def read_texts(self, indices: np.ndarray, /) -> tuple[str | None, ...]:
        """Texts of the images at `indices`, None where there is none."""
        return texts_of(self.source, self.indices[indices])

    def images(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 [N, H, W, 3]; only when the source is in memory."""
        if self._images is None:
            raise TypeError(f"{self.name!r} reads images one by one: use read(i)")
        return self._images(self.indices[indices])


def open_source(
    spec: Any,
    *,
    image_size: int | None = None,
    download: bool = False,
    split_default: str = "train",
    channels: int = 3,
) -> Source:
    """Turns what a user names into a source.

    Args:
        spec: A folder; a list of paths (.txt) or a table with the column `path` (.csv, .tsv,
            .parquet); tar shards, such as `shards/{000..127}.tar`; a video or a folder of videos,
            with `@5` behind it for five frames a second instead of one, `@all` for all; a named
            set, such as `digits` or `fashion-mnist:test` (a folder of that name is meant by
            `./digits`); a set of the Hugging Face Hub, `hf:owner/name:split`; a list of paths,
            Pillow images or arrays; an array uint8 [N, H, W, 3]; or a source, returned as it is.
        image_size: Side in pixels at which `creatures` and `scenes` are drawn; 32 when None.
        download: Whether a named set may be fetched from the network without asking.
        split_default: The split of a named set when the name has none.
        channels: Channels of the images; with other than 3, files are read by `read_bands`.

    Raises:
        UsageError: No such folder, set or split.
        DataError: The folder holds no image, or cannot be read.
    """
    if isinstance(spec, np.ndarray):
        return Arrays("array", spec, channels=channels)
    if isinstance(spec, list | tuple):
        return Items(spec, channels=channels)
    if isinstance(spec, Source):
        has = int(getattr(spec, "channels", 3))
        if has != channels:
            raise UsageError(f"{spec.name!r} has images of {has} channels, not {channels}.")
        return spec
    if not isinstance(spec, str | os.PathLike):
        raise UsageError(
            f"Data must be a folder, a list or table of paths, shards, a named set "
            f"({', '.join(_TABLE)}), a list of paths or images, an array, or a source; got "
            f"{type(spec).__name__}."
        )
    source = _opened(spec, image_size, download, split_default, channels)
    if int(getattr(source, "channels", 3)) != channels:
        if hasattr(source, "reduces"):  # its files are read one by one, as it is told
            source.channels = channels  # type: ignore[attr-defined]
        elif isinstance(source, Arrays) and source.pixels.ndim == 3 and channels == 1:
            source.channels = 1
        else:
            raise UsageError(f"{source.name!r} has images of 3 channels, not {channels}.")
    return source


def _opened(
    spec: str | os.PathLike[str],
    image_size: int | None,
    download: bool,
    split_default: str,
    channels: int,
) -> Source:
    """The source that a text names."""
    text = os.fspath(spec)
    name, colon, split_name = text.partition(":")
    if isinstance(spec, str) and name in _TABLE:
        return _named(_TABLE[name], split_name if colon else split_default, image_size, download)
    if isinstance(spec, str) and text.startswith("hf:"):
        from nolabel.data.sources.hub import Hub

        where, _, part = text[3:].partition(":")
        return Hub(where, part or split_default)
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
        return manifest.Manifest(text)
    raise _no_folder(text)


def _named(named: Named, split_name: str, image_size: int | None, download: bool) -> Source:
    if split_name not in named.splits:
        raise unknown(f"split of {named.name}:", split_name, named.splits)
    if named.name == "creatures":
        from nolabel.data.creatures.world import Creatures

        return Creatures(split=split_name, size=image_size or 32)
    if named.name == "scenes":
        from nolabel.data.creatures.scenes import Scenes

        return Scenes(split=split_name, size=image_size or 32)
    if named.name == "emoji":
        from nolabel.data.sources.emoji import Emoji

        return Emoji(split_name)
    from nolabel.data.sources import builtin

    if named.name == "digits":
        return builtin.digits(split_name)
    if named.name == "cifar10":
        return builtin.cifar10(split_name, download=download)
    return builtin.fashion_mnist(split_name, download=download)


def _no_folder(text: str) -> UsageError:
    sets = f"Named sets: {', '.join(_TABLE)} (see `nolabel list datasets`)."
    if not text:
        return UsageError(f"No data named: give a folder of images or a named set.  {sets}")
    if os.path.exists(text):
        return UsageError(
            f"{text!r} is neither a folder nor a list of images.  Give the folder that holds the "
            "images, a list (.txt), a table (.csv, .tsv, .parquet) or shards (.tar)."
        )
    path = Path(text)
    siblings: list[str] = []
    try:
        siblings = [str(p) for p in path.parent.iterdir() if p.is_dir() and p.name[0] != "."]
    except OSError:  # the parent is missing as well
        parent = next((p for p in path.parents if p.is_dir()), None)
        if parent is not None and str(parent) != ".":
            return UsageError(f"No folder {text!r}: it is missing from {str(parent)!r} on.  {sets}")
    names = [f"{n.name}:{s}" for n in NAMES for s in n.splits] if ":" in text else list(_TABLE)
    close = did_you_mean(str(path), siblings) or did_you_mean(text, names)
    return UsageError(f"No folder or named set {text!r}.{close}  {sets}")


def require_labels(source: Source) -> np.ndarray:
    """The source's labels, int64 [N], for a task that needs at least two classes.

    Raises:
        DataError: There are no labels, or all images have the same.
    """
    if source.labels is None:
        raise DataError(
            f"{source.name!r} has no labels, which this needs.  In a folder, put the images of "
            "each class into a sub-folder with the name of the class; every image needs one."
        )
    present = np.unique(source.labels)
    if len(present) < 2:
        only = source.classes[int(present[0])] if source.classes and len(present) else ""
        raise DataError(
            f"{source.name!r} has labels of one class only{f' ({only!r})' if only else ''}; this "
            "needs two or more.  In a folder, each class is a sub-folder directly below it: "
            "perhaps a folder above or below is meant."
        )
    return source.labels


def split(source: Source, fraction: float, seed: int = 0) -> tuple[Subset, Subset]:
    """Parts one labelled source in two, class by class, the same way every time.

    Args:
        source: A source with labels.
        fraction: Share of every class in the second part, in (0, 1).  A class of two or more
            images is present in both parts; a class of one image is in the first only.
        seed: Another seed, another division.

    Returns:
        The rest and the fraction, each in the source's order.

    Raises:
        UsageError: A fraction outside (0, 1).
        DataError: The source has no labels, or one class only.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"The fraction to split off must lie between 0 and 1, got {fraction}.")
    labels = require_labels(source)
    second = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        # The loader's permutation: unlike a library's generator, it never changes.
        second[members[index_at(seed, int(label), np.arange(count), len(members))]] = True
    return Subset(source, np.flatnonzero(~second)), Subset(source, np.flatnonzero(second))


def label_at(labels: np.ndarray | None, i: int) -> int | None:
    """The label of image i as `Sample` wants it."""
    return None if labels is None else int(labels[i])


def warm(source: Source) -> None:
    """Makes a procedural set once, here, so that every worker shares it from the start."""
    images = fast_images(source)
    if images is not None:
        for start in range(0, len(source), 1024):
            images(np.arange(start, min(start + 1024, len(source))))
