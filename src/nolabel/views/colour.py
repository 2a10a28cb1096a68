"""Colour operations as one affine map per sample: jitter, grey, normalisation; solarise; noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nolabel.views.draw import Params
from nolabel.views.noise import gaussian_noise
from nolabel.views.plan import ViewPlan
from nolabel.views.view import SOLARISE_THRESHOLD

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights for grey


@dataclass(frozen=True)
class Effects:
    """What follows the affine maps of n views; see `Params`."""

    solarise: npt.NDArray[np.bool_]  # [n]
    noise: npt.NDArray[np.float64]  # [n]
    noise_seed: npt.NDArray[np.int64]  # [n]

    @classmethod
    def of(cls, p: Params) -> Effects:
        """Of the samples of one copy of a view."""
        return cls(p.solarise, p.noise, p.noise_seed)


class Colour:
    """The colour operations of a plan on one device.

    Input pixels are in 0..255, output is normalised: (pixel / 255 - mean) / std.

    Args:
        plan: the views.
        device: device of the tensors.
    """

    def __init__(self, plan: ViewPlan, device: torch.device):
        mean, std = torch.tensor(plan.mean), torch.tensor(plan.std)
        self._device, self._channels = device, plan.channels
        self._scale = (1 / (255 * std)).to(device)  # [C]
        self._shift = (-mean / std).to(device)  # [C]
        pairs = zip(plan.mean, plan.std, strict=True)
        self._bounds = [(-m / s, (1 - m) / s) for m, s in pairs]  # normalised black and white

    def maps(self, params: list[Params]) -> tuple[Tensor, Tensor]:
        """`colour_matrices` of V copies times 1 / (255 std): A and Q, float32 [B, V, C, C] each."""
        maps = np.stack([colour_matrices(p, self._channels) for p in params], 1)  # [B, V, 2, C, C]
        both = torch.from_numpy(maps.astype(np.float32)).to(self._device) * self._scale[:, None]
        return both[:, :, 0].contiguous(), both[:, :, 1].contiguous()

    def offset(self, pull: Tensor, means: Tensor) -> Tensor:
        """Offsets float32 [n, C, 1] of n views.

        Args:
            pull: Q of `maps`, float32 [n, C, C].
            means: means of the channels of each view, float32 [n, C] in 0..255.
        """
        return torch.baddbmm(self._shift[:, None], pull, means[..., None])

    def finish(self, values: Tensor, p: Effects, out: Tensor) -> None:
        """Clamps normalised pixels to black..white; solarises some of the views, adds their noise.

        Args:
            values: float32 [n, C, pixels], after the affine maps; may be `out` itself.
            p: what follows the affine maps.
            out: float32 [n, C, pixels], the result.
        """
        self._clamp(values, out)
        if p.solarise.any():
            where = torch.from_numpy(np.flatnonzero(p.solarise)).to(self._device)
            x = out[where]
            level = ((SOLARISE_THRESHOLD - 0.5) * self._scale + self._shift)[:, None]
            inverted = (255 * self._scale + 2 * self._shift)[:, None] - x
            out[where] = torch.where(x >= level, inverted, x)
        if p.noise.any():
            noisy = np.flatnonzero(p.noise)
            noise = gaussian_noise(p.noise_seed[noisy], out[0].numel(), self._device)
            sigma = torch.from_numpy(p.noise[noisy].astype(np.float32)).to(self._device)
            where = torch.from_numpy(noisy).to(self._device)
            # From here on [., C, pixels]; 255 `_scale` is one range in normalised units.
            x = noise.view(-1, *out.shape[1:]) * (255 * self._scale)[:, None]
            x = x.mul_(sigma[:, None, None]).add_(out[where])
            self._clamp(x, x)
            out[where] = x

    def _clamp(self, values: Tensor, out: Tensor) -> None:
        for c, (low, high) in enumerate(self._bounds):
            torch.clamp(values[:, c], low, high, out=out[:, c])


def colour_matrices(p: Params, channels: int = 3) -> npt.NDArray[np.float64]:
    """Colour jitter and grey as one affine map per sample: value = A pixel + Q mean.

    Contrast blends with the mean grey of the view after the preceding operations, which is linear
    in the means of the view's channels. So the maps do not depend on the pixels.

    Args:
        p: parameters of B samples.
        channels: C. Unless it is 3, grey is the mean of all channels and there is no hue.

    Returns:
        A and Q, float64 [B, 2, C, C].
    """
    n = len(p.grey)
    state = np.zeros((n, 2, channels, channels))
    state[:, 0] = np.eye(channels) * p.gains[:, None]
    luma = np.array(_LUMA) if channels == 3 else np.full(channels, 1 / channels)
    if p.jitter.any():
        on = p.jitter[:, None]
        scale = np.where(on, p.factors[:, :3], 1.0)
        turn = _hue_matrices(np.where(p.jitter, p.factors[:, 3], 0.0)) if channels == 3 else None
        for op in p.order.T:  # op [n]: the operation of each sample at this position
            # Brightness scales; contrast blends with the grey of the view, saturation with that of
            # the pixel; hue rotates.
            f = np.where(op < 3, np.take_along_axis(scale, op.clip(max=2)[:, None], 1)[:, 0], 1.0)
            grey = luma @ state  # [n, 2, C]
            mean = grey.sum(1)  # [n, C]: grey of the mean colour
            complement = (1 - f)[:, None]
            if turn is not None:
                hue = op == 3
                state[hue] = turn[hue, None] @ state[hue]
            state *= f[:, None, None, None]
            state[:, 1] += (complement * mean * (op == 1)[:, None])[:, None, :]
            state += ((complement * (op == 2)[:, None])[:, None] * grey)[:, :, None, :]
    if p.grey.any():
        state[p.grey] = (luma @ state[p.grey])[:, :, None, :]
    return state


def _hue_matrices(turns: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Rotations float64 [n, 3, 3] about the grey axis, from red to green to blue.

    Args:
        turns: shifts of hue as fractions of a full turn, float [n].
    """
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns) / math.sqrt(3)
    cross = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    cos, sin = cos[:, None, None], sin[:, None, None]
    return cos * np.eye(3) + (1 - cos) / 3 + sin * cross
