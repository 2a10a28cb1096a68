"""Capabilities of some methods: captions, tokens and pixels.

A capability is a class that a method inherits; the engine and the pictures check `isinstance`:

    LearnsFromText  learns from captions, and has a space that images and texts share
    Tokenizes       turns an image into one id per patch: the tokenizer of BEiT
    Reconstructs    reconstructs images from their codes
    Inpaints        predicts the pixels of masked patches

`Contrastive` and `HasPrototypes` are in `methods/base.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nolabel.backbones.text import SharedSpace
    from nolabel.data.text.tokenizer import Tokenizer


class LearnsFromText:
    """A method that learns from captions: batches carry `text`. Its `inputs` hold "text".

    Attributes:
        shared: the text tower and the projections into the shared space; saved beside the encoder.
        tokenizer: of the captions, the constructor's `text`.
    """

    shared: SharedSpace
    tokenizer: Tokenizer

    @classmethod
    def make_tokenizer(cls, options: Any, texts: Iterable[str]) -> Tokenizer:
        """Trains or loads the tokenizer; called once a run, before the method is built.

        Args:
            options: the method's options.
            texts: at most 100,000 captions, evenly spaced over the training data.
        """
        raise NotImplementedError


class Tokenizes:
    """A method that turns an image into one id per patch, and can be another method's tokenizer.

    Attributes:
        vocabulary: number of different ids.
        patch: side of a patch in pixels.
    """

    vocabulary: int
    patch: int

    def tokens(self, x: Tensor) -> Tensor:
        """Ids int64 [N, P], row by row, in [0, vocabulary), of normalised images [N, C, H, W]."""
        raise NotImplementedError


class Reconstructs:
    """A method that reconstructs a whole image from a code or from tokens."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstructions [N, C, H, W] of images x [N, C, H, W], normalised like x."""
        raise NotImplementedError

    def swapped(self, x: Tensor) -> Tensor | None:
        """Images [N, C, H, W] decoded with the code of the image before; None if there is no
        code."""
        return None


class Inpaints:
    """A method that hides patches of an image and predicts their pixels.

    Attributes:
        knows_statistics: whether predictions get the true mean and standard deviation of each
            patch, which the network does not predict.
    """

    knows_statistics: bool = False

    def inpaint(
        self, x: Tensor, ratio: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Masks a share of the patches and predicts the images.

        Args:
            x: normalised images [N, C, H, W].
            ratio: share of patches to mask, in (0, 1).
            generator: for the choice of patches; by default torch's global one.

        Returns:
            predicted images [N, C, H, W], normalised like x, and the masked patches bool [N, h, w].
        """
        raise NotImplementedError
