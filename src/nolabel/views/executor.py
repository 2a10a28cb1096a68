"""The base class of the executors, which make the views of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy.typing as npt
import torch
from torch import Tensor

from nolabel.views.images import Images
from nolabel.views.plan import ViewPlan


class Executor(ABC):
    """Makes the views of decoded images.

    Attributes:
        plan: the views; None when the executor does not follow a plan. The loader decodes images at
            a reduced size if the plan allows it (`ViewPlan.sufficient_pixels`).
        device: device of the computation and of the result. Unless it is the CPU, data workers only
            decode.
        shared: whether results on the CPU are allocated in shared memory; set in data workers.
    """

    plan: ViewPlan | None = None
    device: torch.device | str = "cpu"
    shared: bool = False

    @abstractmethod
    def __call__(
        self, images: Images, keys: npt.ArrayLike | Tensor, epoch: int, /
    ) -> dict[str, Tensor]:
        """Makes all views of a batch.

        Args:
            images: uint8 [B, H, W, C], or B of uint8 or uint16 [H_i, W_i, C].
            keys: index of each image in its source, int [B]. The random parameters of an image
                depend on seed, epoch and key only.
            epoch: 0-based epoch.

        Returns:
            Name of the view -> float32 [V, B, C, size, size], normalised.
        """
