"""Visualisations of what an encoder has learnt: one picture a file, each with its numbers.

A picture is a function that returns `Pictures`: images, captions, numbers and data. Saving,
notebooks and the report use the same object. Options are annotated keywords (`_options`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nolabel.catalogue import Entry, by_name
from nolabel.pictures._options import Option, read_options

if TYPE_CHECKING:
    from nolabel.pictures._tiles import Pictures


@dataclass(frozen=True, kw_only=True)
class PictureInfo(Entry):
    """One line of `PICTURES`. Its file and function have its name, with _ for -.

    Attributes:
        of_run: whether it needs a run's folder, since an encoder alone is not enough.
        of_text: whether it needs an encoder with a text tower.
        data: what it takes from the source: "images", a few to draw; "gallery", also a random
            subset to search or measure; "", nothing.
        grouping: how the images are chosen: "", spread over the source; "pairs", two of a class
            each; "class", all of one class.
    """

    of_run: bool = False
    of_text: bool = False
    data: str = "images"
    grouping: str = ""


PICTURES: dict[str, PictureInfo] = by_name(
    PictureInfo(
        name="attention",
        description="attention of the class token, and the patches that hold most of it (ViT)",
        paper="Caron et al. 2021, arXiv 2104.14294",
    ),
    PictureInfo(
        name="pca",
        description="patch features as colours: three principal components, joint over the images",
        paper="Amir et al. 2021, arXiv 2112.05814",
    ),
    PictureInfo(
        name="similarity",
        description="similarity of every patch to a chosen one",
    ),
    PictureInfo(
        name="correspond",
        description="matching patches (pairs of images)",
        paper="Amir et al. 2021, arXiv 2112.05814",
        grouping="pairs",
    ),
    PictureInfo(
        name="parts",
        description="the foreground that images have in common, and its parts (ViT)",
        paper="Amir et al. 2021, arXiv 2112.05814",
        grouping="class",
    ),
    PictureInfo(
        name="cosegment",
        description="the common foreground of images, cut out to the pixel (ViT)",
        paper="Amir et al. 2021, arXiv 2112.05814",
        grouping="class",
    ),
    PictureInfo(
        name="objects",
        description="the object of each image by a normalised cut of its patches",
    ),
    PictureInfo(
        name="neighbours",
        description="nearest neighbours of some images in a set",
        data="gallery",
    ),
    PictureInfo(
        name="tsne",
        description="a two-dimensional map of a set, coloured by class",
        paper="van der Maaten & Hinton 2008, JMLR 9",
        data="gallery",
    ),
    PictureInfo(
        name="filters",
        description="the filters of the first layer and their components",
        data="",
    ),
    PictureInfo(
        name="positions",
        description="similarity of a ViT's position embeddings",
        paper="Dosovitskiy et al. 2020, arXiv 2010.11929",
        data="",
    ),
    PictureInfo(
        name="attention-distance",
        description="mean attention distance of each head of each layer (ViT)",
        paper="Dosovitskiy et al. 2020, arXiv 2010.11929",
    ),
    PictureInfo(
        name="invert",
        description="images with the same class token in a layer",
        paper="Tumanyan et al. 2022, arXiv 2201.00424",
        data="gallery",
    ),
    PictureInfo(
        name="transfer",
        description="one image with the appearance of another (pairs of images; ViT)",
        paper="Tumanyan et al. 2022, arXiv 2201.00424",
        grouping="pairs",
    ),
    PictureInfo(
        name="dream",
        description="images that maximise a neuron or a head: optimised, and found in a set",
        paper="Olah et al. 2017, Distill",
        data="gallery",
    ),
    PictureInfo(
        name="ask",
        description="images ranked by a sentence, and where its words are",
        needs="a text tower",
        of_text=True,
        data="gallery",
    ),
    PictureInfo(
        name="paint",
        description="an image from a sentence",
        needs="a text tower",
        of_text=True,
        data="gallery",
    ),
    PictureInfo(
        name="typographic",
        description="whether a wrong word written on the image changes its class",
        paper="Goh et al. 2021, Distill",
        needs="a text tower",
        of_text=True,
        data="gallery",
    ),
    PictureInfo(
        name="bias",
        description="words that an encoder assigns to some groups more often than to others",
        paper="Radford et al. 2021, arXiv 2103.00020",
        needs="a text tower",
        of_text=True,
        data="gallery",
    ),
    PictureInfo(
        name="counting",
        description="whether an encoder counts creatures",
        needs="a text tower",
        of_text=True,
        data="",
    ),
    PictureInfo(
        name="relations",
        description="whether swapped objects or colours in captions are distinguished (Winoground)",
        paper="Thrush et al. 2022, arXiv 2204.03162",
        needs="a text tower",
        of_text=True,
        data="",
    ),
    PictureInfo(
        name="prototypes",
        description="the images with the highest score for each prototype of a run",
        needs="the folder of a run",
        of_run=True,
        data="gallery",
    ),
    PictureInfo(
        name="reconstruct",
        description=(
            "reconstructions by a generative run: of the whole image, or of 75, 85 and 95 % masked "
            "patches"
        ),
        paper="He et al. 2021, arXiv 2111.06377",
        needs="the folder of a run",
        of_run=True,
    ),
    PictureInfo(
        name="views",
        description="the crops that a run's view plan makes of each image",
        needs="the folder of a run",
        of_run=True,
    ),
)


def function_of(name: str) -> Callable[..., Pictures]:
    """The function that draws a picture of `PICTURES`; its file is imported here."""
    python_name = name.replace("-", "_")
    return vars(importlib.import_module(f"nolabel.pictures.{python_name}"))[python_name]


def options_of(name: str) -> tuple[Option, ...]:
    """The options of a picture of `PICTURES`, from its function's annotations."""
    return read_options(function_of(name))
