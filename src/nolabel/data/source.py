"""The base class of all image sources, and subsets of a source.

Your own source is a subclass with two methods, `__len__` and `read`; everything else has a default.
Pass it as `nolabel.pretrain(data=MySource())`, or name it on the command line as
`my_source.py:MySource`.

    class MySource(Source):
        def __len__(self) -> int: ...
        def read(self, i: int) -> Sample: ...

torch and Pillow are imported only when an image is read, so that `nolabel list datasets` is fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nolabel.errors import BadImage, DataError, UsageError

if TYPE_CHECKING:
    from nolabel.types import Sample

_PRERENDER_CHUNK = 1024  # images per call in `prerender`


class Source(ABC):
    """N images with random access. Image i has the same pixels every time and in any process.

    A subclass sets the attributes that differ from the defaults below, on the class or in its
    constructor, and overrides the methods that it supports.

    Attributes:
        name: the source as the user named it, for messages and tables; by default the class's name.
        labels: int64 [N], indices into `classes`; None when the images have no labels.
        classes: name of each label; empty without labels.
        groups: int64 [N], equal for images that belong together (same patient, same video).
        group_names: name of each group, by which groups of two sources are compared; may be empty.
        domains: int64 [N], indices into `domain_names` (camera, style).
        domain_names: name of each domain; empty without domains.
        channels: channels C of every image.
        block: consecutive images that are stored together on disk; a training run then shuffles
            blocks of so many images (`block_index_at`). 0 shuffles single images.
        root: folder to which the paths are relative; empty when there is none.
        in_memory: whether `images` returns a batch at once; all images then have one size.
        supports_draft: whether `read` takes `sufficient_pixels` and may decode at reduced size.
        has_files: whether `read_bytes` returns the encoded file of an image.
        notes: remarks for the user on what was chosen or left out when the source was opened.
        unlabelled: why `labels` is None, for the message of a task that needs labels.
    """

    name: str = ""
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    groups: np.ndarray | None = None
    group_names: Iterable[str] = ()
    domains: np.ndarray | None = None
    domain_names: tuple[str, ...] = ()
    channels: int = 3
    block: int = 0
    root: str = ""
    in_memory: bool = False
    supports_draft: bool = False
    has_files: bool = False
    notes: tuple[str, ...] = ()
    unlabelled: str = ""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.name:
            cls.name = cls.__name__

    @abstractmethod
    def __len__(self) -> int:
        """Number of images N."""

    @abstractmethod
    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i, decoded.

        Args:
            i: index of the image, in [0, N).
            sufficient_pixels: the image may be decoded at a reduced size if at least so many pixels
                (height x width) remain; passed only to sources with `supports_draft`. None means
                full size.

        Returns:
            The image, uint8 or uint16 [H, W, C], with its label and text if it has them.

        Raises:
            BadImage: it cannot be read. The loader replaces it by another image.
        """

    def path(self, i: int, /) -> str:
        """Path of image i, or a name for it such as `digits:train[12]`; for messages."""
        return f"{self.name}[{i}]"

    def images(self, indices: np.ndarray, /) -> np.ndarray:
        """A batch of images at once, for sources that are `in_memory`.

        Args:
            indices: int [B], each in [0, N).

        Returns:
            uint8 or uint16 [B, H, W, C].

        Raises:
            TypeError: the source reads images one by one.
        """
        raise TypeError(f"{self.name!r} reads images one by one: use read(i).")

    def read_text(self, i: int, /) -> str | None:
        """The text of image i without decoding the image; None when it has none.

        Raises:
            BadImage, OSError: the text cannot be read.
        """
        return None

    def read_texts(self, indices: np.ndarray, /) -> tuple[str | None, ...]:
        """Texts of many images; override it where that is faster than one by one.

        Args:
            indices: int [B], each in [0, N).

        Returns:
            B texts; None where an image has none or its text cannot be read.
        """
        return tuple(self._text_or_none(int(i)) for i in indices)

    def _text_or_none(self, i: int) -> str | None:
        try:
            return self.read_text(i)
        except (BadImage, OSError):
            return None

    def read_bytes(self, i: int, /) -> bytes:
        """The encoded file of image i, unchanged, for sources that have files (`has_files`).

        Raises:
            TypeError: the source has no files.
            BadImage, OSError: the file cannot be read.
        """
        raise TypeError(f"{self.name!r} has no files: use read(i).")

    def size_in_bytes(self, i: int, /) -> int:
        """Size of the file that `read_bytes` returns. Raises as `read_bytes`."""
        return len(self.read_bytes(i))

    def read_end(self, i: int, count: int, /) -> bytes:
        """The last `count` bytes of the file that `read_bytes` returns. Raises as `read_bytes`."""
        return self.read_bytes(i)[-count:]

    def label(self, i: int, /) -> int | None:
        """The label of image i as a Python int; None without labels."""
        return None if self.labels is None else int(self.labels[i])


class Subset(Source):
    """Some images of a source, in the order of `indices` (int [N], may repeat).

    Labels, texts, pixels, groups, domains and files are those of the source; blocks are not carried
    over.

    Args:
        source: the source.
        indices: int [N], each an index of an image of the source.
        name: name of the subset; by default the source's.

    Raises:
        UsageError: an index outside the source.
    """

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray, name: str = ""):
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        if self.indices.size and not (self.indices.min() >= 0 and self.indices.max() < len(source)):
            raise UsageError(f"A subset of {source.name!r} reaches past its {len(source)} images.")
        self.name = name or source.name
        self.labels = None if source.labels is None else source.labels[self.indices]
        self.classes = source.classes
        self.unlabelled = source.unlabelled
        self.groups = None if source.groups is None else source.groups[self.indices]
        self.group_names = source.group_names
        self.domains = None if source.domains is None else source.domains[self.indices]
        self.domain_names = source.domain_names
        self.has_files = source.has_files
        self.in_memory = source.in_memory
        self.supports_draft = source.supports_draft
        self.channels = source.channels

    def __len__(self) -> int:
        return len(self.indices)

    def path(self, i: int, /) -> str:
        """Path of the image in the source."""
        return self.source.path(int(self.indices[i]))

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i of the subset, as the source reads it. Raises BadImage."""
        index = int(self.indices[i])
        if (
            sufficient_pixels is None
        ):  # sources without `supports_draft` need not accept the argument
            return self.source.read(index)
        return self.source.read(index, sufficient_pixels=sufficient_pixels)

    def read_bytes(self, i: int, /) -> bytes:
        """File of image i of the subset, as the source reads it. Raises OSError or BadImage."""
        return self.source.read_bytes(int(self.indices[i]))

    def size_in_bytes(self, i: int, /) -> int:
        """Size of the file of image i of the subset."""
        return self.source.size_in_bytes(int(self.indices[i]))

    def read_end(self, i: int, count: int, /) -> bytes:
        """The last `count` bytes of the file of image i of the subset."""
        return self.source.read_end(int(self.indices[i]), count)

    def read_text(self, i: int, /) -> str | None:
        """Text of image i of the subset. Raises BadImage or OSError."""
        return self.source.read_text(int(self.indices[i]))

    def read_texts(self, indices: np.ndarray, /) -> tuple[str | None, ...]:
        """Texts of the images at `indices`, int [B]; None where there is none."""
        return self.source.read_texts(self.indices[indices])

    def images(self, indices: np.ndarray, /) -> np.ndarray:
        """Images at `indices`, int [B]: uint8 or uint16 [B, H, W, C]. Needs a source in memory."""
        return self.source.images(self.indices[indices])


def require_labels(source: Source) -> np.ndarray:
    """The source's labels, int64 [N], for a task that needs at least two classes.

    Raises:
        DataError: there are no labels, or all images have the same label.
    """
    if source.labels is None:
        raise DataError(
            f"{source.name!r} has no labels, which this needs. "
            + (
                source.unlabelled
                or "In a folder, put the images of each class into a sub-folder with the name of "
                "the class; every image needs a class."
            )
        )
    present = np.unique(source.labels)
    if len(present) < 2:
        name = f" ({source.classes[int(present[0])]!r})" if source.classes and len(present) else ""
        raise DataError(
            f"{source.name!r} has labels of one class only{name}; this needs two or more. In a "
            "folder, each class is a sub-folder directly below it: perhaps you meant a folder "
            "above or below."
        )
    return source.labels


def prerender(source: Source) -> None:
    """Renders a procedural set before workers are forked, so that they share its images."""
    if source.in_memory:
        for start in range(0, len(source), _PRERENDER_CHUNK):
            source.images(np.arange(start, min(start + _PRERENDER_CHUNK, len(source))))
