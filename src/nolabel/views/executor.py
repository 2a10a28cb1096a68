"""What makes the views of a batch: the class that both executors inherit."""

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
        plan: the views; None when the executor does not follow a plan. It says how many pixels of
            an image suffice.
        device: where the work is done and the result lies. With other than the CPU, data workers
            only decode.
        shared: whether results on the CPU are put where other processes can read them; data
            workers set it.
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
            keys: number of each image in its source, integers [B]; with seed and epoch, it alone
                decides what is drawn.
            epoch: 0-based epoch.

        Returns:
            Name of the view -> float32 [V, B, C, size, size], normalised.
        """
