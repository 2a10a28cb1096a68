"""What some methods can do beside training an encoder: captions, tokens and pixels.

A capability is a class that a method inherits; the engine and the pictures ask by `isinstance`:

    LearnsFromText  learns from captions, and has a space that images and texts share
    Tokenizes       turns an image into one id a patch: the tokenizer of BEiT
    Reconstructs    rebuilds the images that it has seen
    Inpaints        predicts the pixels of patches that it has not seen

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
        shared: the text tower and the projections into the space that images and texts share; it
            is saved beside the encoder.
        tokenizer: of the captions, the `text` that the method was built with.
    """

    shared: SharedSpace
    tokenizer: Tokenizer

    @classmethod
    def make_tokenizer(cls, options: Any, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer that it is built with.

        Called once a run, before the method is built; the run's folder keeps it.

        Args:
            options: the method's own.
            texts: captions of the training data, at most 100,000 of them, spread over the set.
        """
        raise NotImplementedError


class Tokenizes:
    """A network that turns an image into one id a patch, and may be another method's tokenizer.

    Attributes:
        vocabulary: number of different ids.
        patch: side of a patch in pixels.
    """

    vocabulary: int
    patch: int

    def tokens(self, x: Tensor) -> Tensor:
        """Normalised images [N, C, H, W] to ids int64 [N, P], row by row, below `vocabulary`."""
        raise NotImplementedError


class Reconstructs:
    """A method that rebuilds an image that it has seen, from a code or from tokens."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] rebuilt, normalised like x."""
        raise NotImplementedError

    def swapped(self, x: Tensor) -> Tensor | None:
        """Images rebuilt with the code of the image before; None where there is no such code."""
        return None


class Inpaints:
    """A method that hides patches of an image and predicts their pixels.

    Attributes:
        knows_statistics: whether predictions are drawn with each patch's true mean and deviation,
            which the network did not predict.
    """

    knows_statistics: bool = False

    def inpaint(
        self, x: Tensor, ratio: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hides a share of the patches and predicts the images.

        Args:
            x: normalised images [N, C, H, W].
            ratio: share of patches to hide.
            generator: of the choice of patches; by default torch's own.

        Returns:
            predicted images [N, C, H, W] and the hidden patches bool [N, h, w].
        """
        raise NotImplementedError
