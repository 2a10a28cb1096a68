"""A network from elsewhere that a method learns from and that never changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


class Frozen:
    """A network that never changes: a teacher or a tokenizer from elsewhere.

    Not a module, so that the method that holds it neither trains nor saves it: the run's folder
    has a copy of its file. It follows its input's device, and always is in evaluation mode.

    Args:
        module: the network.
        mean, std: of each channel, for which it was trained.
        given: mean and std of the images that `prepare` gets, the run's; None means its own.
        image_size: side in pixels at which it is used; 0 takes images as they are.
        about: what is known of it, for the copy.
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
    ):
        self.module = module.eval().requires_grad_(False)
        self.mean, self.std = tuple(mean), tuple(std)
        self.given = (tuple(given[0]), tuple(given[1])) if given else (self.mean, self.std)
        self.image_size, self.about = image_size, dict(about or {})

    def __deepcopy__(self, memo: Any) -> Frozen:
        return self  # nothing in it changes

    def prepare(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """The run's images [N, C, H, W] as this network wants them: of its size and statistics.

        Also moves the network to their device.

        Args:
            size: (height, width) in pixels instead of `image_size`.
        """
        self.module.to(x.device)
        own = (self.image_size, self.image_size)
        if (wanted := size or (own if self.image_size else x.shape[-2:])) != x.shape[-2:]:
            x = F.interpolate(x, size=wanted, mode="bicubic", antialias=True)
        if self.given == (self.mean, self.std):
            return x

        def channels(values: Sequence[float]) -> Tensor:
            return x.new_tensor(values).view(1, -1, 1, 1)

        mean, std = self.given
        return (x * channels(std) + channels(mean) - channels(self.mean)) / channels(self.std)
