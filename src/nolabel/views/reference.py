"""The reference executor: one sample at a time, with torchvision's operators.

It is slow and defines the correct result. `FastViews` draws the same parameters and is tested
against it.
"""

from __future__ import annotations

import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from nolabel.views.draw import Params, draw
from nolabel.views.executor import Executor
from nolabel.views.images import Images, image_list, key_array
from nolabel.views.noise import gaussian_noise
from nolabel.views.plan import View, ViewPlan
from nolabel.views.view import SOLARISE_THRESHOLD


class ReferenceViews(Executor):
    """Makes the views of a plan with torchvision, which rounds uint8 images after each operator.

    Args:
        plan: the views.
        seed: seed of the run.
        device: device of the result; the computation is done on the CPU.
    """

    plan: ViewPlan
    device: torch.device

    def __init__(self, plan: ViewPlan, seed: int = 0, device: torch.device | str = "cpu"):
        self.plan = plan
        self.seed = seed
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(
        self, images: Images, keys: npt.ArrayLike | Tensor, epoch: int
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
        tensors = [t.cpu() for t in image_list(images, self.plan.channels)]
        heights, widths = [t.shape[0] for t in tensors], [t.shape[1] for t in tensors]
        drawn = draw(self.plan, heights, widths, key_array(keys, len(tensors)), self.seed, epoch)
        out = {}
        for view in self.plan.views:
            copies = [
                torch.stack(
                    [self._one(t, view, drawn[view.name, v], i) for i, t in enumerate(tensors)]
                )
                for v in range(view.count)
            ]
            out[view.name] = torch.stack(copies).to(self.device)
        return out

    def _one(self, image: Tensor, view: View, params: Params, index: int) -> Tensor:
        """One copy of one view of one image [H, W, C] -> float32 [C, size, size]."""
        p = params
        if image.is_floating_point():  # was uint16
            image = image / 255
        x = _geometry(image.permute(2, 0, 1), view, p, index)
        if p.flip[index]:
            x = tv.horizontal_flip(x)
        if p.vertical_flip[index]:
            x = tv.vertical_flip(x)
        x = torch.rot90(x, int(p.turns[index]), (1, 2))
        if view.channel_jitter:
            x = _scaled(x, torch.from_numpy(p.gains[index]))
        if p.jitter[index]:
            x = _jitter(x, view, p.factors[index].tolist(), p.order[index].tolist())
        if p.grey[index]:
            x = tv.rgb_to_grayscale(x, num_output_channels=3)
        if p.blur[index]:
            x = tv.gaussian_blur(x, [2 * view.blur_radius + 1] * 2, [float(p.sigma[index])] * 2)
        if p.solarise[index]:
            x = tv.solarize(x, SOLARISE_THRESHOLD / (255 if x.is_floating_point() else 1))
        if not x.is_floating_point():
            x = x.to(torch.float32) / 255
        if p.noise[index]:
            noise = gaussian_noise(p.noise_seed[index : index + 1], x.numel()).view_as(x)
            x = (x + float(p.noise[index]) * noise).clamp(0, 1)
        return tv.normalize(x, mean=list(self.plan.mean), std=list(self.plan.std))


def _geometry(x: Tensor, view: View, p: Params, i: int) -> Tensor:
    """Crops and resizes sample i, [C, H, W] -> [C, size, size]."""
    mode = InterpolationMode(view.interpolation)
    size = [int(p.rows[i]), int(p.columns[i])]
    box = [int(v[i]) for v in (p.top, p.left, p.height, p.width)]
    x = tv.resized_crop(x, *box, size=size, interpolation=mode, antialias=True)
    top, left = int(p.window_top[i]), int(p.window_left[i])
    return x[:, top : top + view.size, left : left + view.size]


def _scaled(x: Tensor, gains: Tensor) -> Tensor:
    """Each channel of [C, H, W] times its factor, rounded down as torchvision does for 8 bits."""
    most = 1.0 if x.is_floating_point() else 255.0
    return (x * gains[:, None, None].float()).clamp(0, most).to(x.dtype)


def _jitter(x: Tensor, view: View, factors: list[float], order: list[int]) -> Tensor:
    """Changes brightness, contrast, saturation and hue of [C, H, W], in the drawn order."""
    shape = x.shape
    if shape[0] != 3:  # treat all channels as one large grey image: contrast uses their common mean
        x = x.reshape(1, -1, shape[2])
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for op in order:
        if view.jitter[op]:
            x = adjust[op](x, factors[op])
    return x.reshape(shape)
