"""Pictures of what an encoder sees: one picture a file, each with its numbers.

A picture is a function that returns `Pictures`; saving, notebooks and the report share it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple


class Named(NamedTuple):
    """One line of `nolabel list pictures`; its function has its name (_ for -), as has its file."""

    name: str
    description: str
    of_run: bool = False  # needs the folder of a run, not any encoder
    alike: int = 0  # images of one class that belong together: 2 are pairs, 1 are all of them
    of_text: bool = False  # needs a text tower
    looks: str = "images"  # at some; "gallery": at many of the source too; "": at none


NAMES: tuple[Named, ...] = (
    Named("attention", "what the class token attends to, head by head, and masks by mass (ViT)"),
    Named("pca", "patch features as colours: three principal components, joint over the images"),
    Named("similarity", "how alike every patch is to one that is pointed at"),
    Named("correspond", "which patch of one image is which of another (pairs of images)", alike=2),
    Named("parts", "the foreground that images have in common, and its parts (ViT)", alike=1),
    Named(
        "cosegment", "the figure that images have in common, cut out to the pixel (ViT)", alike=1
    ),
    Named("objects", "the object of each image by a normalised cut of its patches"),
    Named("neighbours", "the images of a set that are nearest to some", looks="gallery"),
    Named("tsne", "a map of a set, coloured by class", looks="gallery"),
    Named("filters", "the filters of the first layer and their components", looks=""),
    Named("positions", "how alike a ViT's position embeddings are", looks=""),
    Named("attention-distance", "how far each head of each layer looks (ViT)"),
    Named("invert", "what a layer still knows: images with the same class token", looks="gallery"),
    Named("transfer", "one image with the look of another (pairs of images; ViT)", alike=2),
    Named("dream", "what excites a neuron or a head, made and found", looks="gallery"),
    Named(
        "ask", "images ranked by a sentence, and where its words are", of_text=True, looks="gallery"
    ),
    Named("paint", "an image from a sentence", of_text=True, looks="gallery"),
    Named(
        "typographic",
        "whether it believes a wrong word on the image",
        of_text=True,
        looks="gallery",
    ),
    Named(
        "bias",
        "words that it takes for some groups more than for others",
        of_text=True,
        looks="gallery",
    ),
    Named("counting", "whether it can count creatures", of_text=True, looks=""),
    Named("relations", "whether it knows who is where and which is what", of_text=True, looks=""),
    Named(
        "prototypes", "the images that each prototype of a run likes", of_run=True, looks="gallery"
    ),
    Named(
        "reconstruct",
        "what a generative run rebuilds: of the whole image, or of 75, 85 and 95 % hidden patches",
        of_run=True,
    ),
    Named("views", "the crops that a run's view plan makes of each image", of_run=True),
)
# What `show` knows itself.
_GIVEN = ("masks", "mean", "std", "gallery", "each")


class Option(NamedTuple):
    """An option of a picture, as its function declares it."""

    name: str
    kind: Any
    default: Any
    help: str


def function_of(name: str) -> Callable[..., Any]:
    """The function that draws a picture of `NAMES`."""
    plain = name.replace("-", "_")
    return getattr(importlib.import_module(f"nolabel.pictures.{plain}"), plain)


def options_of(name: str) -> tuple[Option, ...]:
    """The options of a picture: its function's keywords, with what its docstring says of them."""
    draw = function_of(name)
    kinds, said = inspect.get_annotations(draw, eval_str=True), _said(inspect.getdoc(draw) or "")
    return tuple(
        Option(p.name, kinds[p.name], p.default, said.get(p.name, ""))
        for p in inspect.signature(draw).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in _GIVEN
    )


def _said(doc: str) -> dict[str, str]:
    """Argument -> its lines in a docstring's part "Args:"."""
    out: dict[str, str] = {}
    name = ""
    for line in doc.partition("Args:\n")[2].splitlines():
        if not line.startswith("    "):
            break
        if not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            out[name] = text
        elif name:
            out[name] += " " + line.strip()
    return out
