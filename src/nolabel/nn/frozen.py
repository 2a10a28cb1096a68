"""A frozen network that a method learns from: a teacher or a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Frozen:
    """A frozen teacher or tokenizer, in evaluation mode and without gradient.

    It is not an nn.Module, so that a method which holds it neither trains nor saves it; the run's
    folder has a copy of its file.

    Args:
        module: the network.
        mean, std: of each channel, with which its input is normalised.
        given: mean and std of the images that `prepare` gets, which are the run's; None: its own.
        image_size: side in pixels to which `prepare` resizes; 0 = no resizing.
        about: its metadata, saved with the copy.
        projection: of its embedding into the space that it shares with texts, where it has one.
    """

    def __init__(
        self,
        module: Any,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        given: tuple[Sequence[float], Sequence[float]] | None = None,
        image_size: int = 0,
        about: Mapping[str, Any] | None = None,
        projection: nn.Linear | None = None,
    ):
        self.module = module.eval().requires_grad_(False)
        self.mean, self.std = tuple(mean), tuple(std)
        self.given = (tuple(given[0]), tuple(given[1])) if given else (self.mean, self.std)
        self.image_size, self.about = image_size, dict(about or {})
        self.projection = None if projection is None else projection.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, object]) -> Frozen:
        return self  # it is immutable

    def prepare(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Resizes and normalises the run's images for this network, and moves it to their device.

        Args:
            x: normalised images, float [N, C, H, W].
            size: (height, width) in pixels instead of `image_size`.

        Returns:
            [N, C, h, w], with gradient to x.
        """
        self.module.to(x.device)
        if self.projection is not None:
            self.projection.to(x.device)
        if size is None and self.image_size:
            size = (self.image_size, self.image_size)
        if size is not None and size != x.shape[-2:]:
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True)
        if self.given == (self.mean, self.std):
            return x

        def channels(values: Sequence[float]) -> Tensor:
            return x.new_tensor(values).view(1, -1, 1, 1)

        mean, std = self.given
        return (x * channels(std) + channels(mean) - channels(self.mean)) / channels(self.std)
