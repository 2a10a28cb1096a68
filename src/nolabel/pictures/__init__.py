"""Pictures of what an encoder sees: one picture a file, each with its numbers.

A picture is a function that returns `Pictures`; saving, notebooks and the report share it.
"""

from __future__ import annotations

from typing import NamedTuple


class Named(NamedTuple):
    """One line of `nolabel list pictures`."""

    name: str
    description: str


NAMES: tuple[Named, ...] = (
    Named("attention", "what the class token attends to, head by head, and masks by mass (ViT)"),
    Named("pca", "patch features as colours: three principal components, joint over the images"),
    Named(
        "reconstruct",
        "what a generative run rebuilds: of the whole image, or of 75, 85 and 95 % hidden patches",
    ),
    Named("views", "the crops that a run's view plan makes of each image"),
)
