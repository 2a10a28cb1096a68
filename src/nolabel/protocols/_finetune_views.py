"""The views of fine-tuning: a random crop, a flip, RandAugment and random erasing.

An executor for the project's loader, so that workers read, decode and augment. Crop and flip are
those of `FastViews`; what is random depends on seed, epoch and image only.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nolabel.protocols._randaugment import rand_augment
from nolabel.views import FastViews
from nolabel.views.executor import Executor
from nolabel.views.images import Images, key_array
from nolabel.views.plan import View, ViewPlan

NAME = "image"
ERASED = (0.02, 1 / 3)  # smallest and largest share of the area that is erased
RATIO = 0.3  # smallest height / width of the erased rectangle; its inverse is the largest
_STREAM = 0x6669_6E65  # keys the random numbers of RandAugment and erasing


class FinetuneViews(Executor):
    """Makes one augmented view "image" of each image with three channels.

    Args:
        size: side of the view in pixels.
        scale: smallest and largest area of the crop, as shares of the image.
        flip: probability of a left-right flip.
        magnitude: of RandAugment; 0 is off.
        erase: probability of random erasing.
        mean: mean of each channel, for pixels in 0..1.
        std: standard deviation of each channel.
        seed: of everything random.
    """

    plan: ViewPlan

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float],
        flip: float,
        magnitude: float,
        erase: float,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int = 0,
    ):
        view = View(name=NAME, size=size, scale=scale, flip=flip)
        self.plan = ViewPlan(views=(view,), mean=mean, std=std)
        plain = ViewPlan(views=(view,), mean=(0.0,) * 3, std=(1.0,) * 3)  # pixels in 0..1
        self.magnitude, self.erase, self.seed = magnitude, erase, seed
        self._crop = FastViews(plain if magnitude else self.plan, seed)
        self._fill = tuple(round(255 * v) for v in mean)

    def __call__(
        self, images: Images, keys: npt.ArrayLike | Tensor, epoch: int, /
    ) -> dict[str, Tensor]:
        """The view of each image, float32 [1, B, 3, S, S]; as `Executor.__call__`."""
        x = self._crop(images, keys, epoch)[NAME]
        numbers = key_array(keys, x.shape[1])
        randoms = [np.random.default_rng((self.seed, epoch, int(k), _STREAM)) for k in numbers]
        if self.magnitude:
            x[0] = self._augmented(x[0], randoms)
        if self.erase:
            for image, rng in zip(x[0], randoms, strict=True):
                erase_rectangle(image, self.erase, rng)
        return {NAME: x}

    def _augmented(self, x: Tensor, randoms: list[np.random.Generator]) -> Tensor:
        """RandAugment and normalisation of pixels float [B, 3, S, S] in 0..1."""
        pixels = (x * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        changed = [
            rand_augment(image, self.magnitude, rng, self._fill)
            for image, rng in zip(pixels, randoms, strict=True)
        ]
        y = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.plan.mean, self.plan.std))
        return (y - mean) / std


def erase_rectangle(image: Tensor, probability: float, rng: np.random.Generator) -> None:
    """Random erasing, in place: a rectangle becomes normal noise.

    Zhong et al., "Random Erasing Data Augmentation", 2017, arXiv 1708.04896. If ten rectangles do
    not fit into the image, nothing is erased.

    Args:
        image: normalised, float [C, H, W].
        probability: of erasing.
        rng: random numbers.
    """
    if rng.random() >= probability:
        return
    height, width = image.shape[1:]
    for _ in range(10):
        area = rng.uniform(*ERASED) * height * width
        ratio = math.exp(rng.uniform(math.log(RATIO), -math.log(RATIO)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            noise = rng.standard_normal((image.shape[0], h, w), dtype=np.float32)
            image[:, top : top + h, left : left + w] = torch.from_numpy(noise)
            return
