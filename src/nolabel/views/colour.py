"""Colour as one affine map per sample: jitter, grey, normalisation, and what follows it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nolabel.views.draw import Params
from nolabel.views.plan import ViewPlan
from nolabel.views.view import SOLARISE_THRESHOLD

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of grey


class Colour:
    """The colour operations of a plan on one device.

    Pixels come in as 0..255 and leave normalised, (pixel / 255 - mean) / std.
    """

    def __init__(self, plan: ViewPlan, device: torch.device):
        mean, std = torch.tensor(plan.mean), torch.tensor(plan.std)
        self._device, self._channels = device, plan.channels
        self._scale = (1 / (255 * std)).to(device)  # [3]
        self._shift = (-mean / std).to(device)  # [3]
        pairs = zip(plan.mean, plan.std, strict=True)
        self._bounds = [(-m / s, (1 - m) / s) for m, s in pairs]  # black and white

    def maps(self, params: list[Params]) -> tuple[Tensor, Tensor]:
        """`colour_matrices` of V copies, normalising, on the device: two of [B, V, C, C]."""
        maps = np.stack([colour_matrices(p, self._channels) for p in params], 1)  # [B, V, 2, C, C]
        both = torch.from_numpy(maps.astype(np.float32)).to(self._device) * self._scale[:, None]
        return both[:, :, 0].contiguous(), both[:, :, 1].contiguous()

    def offset(self, pull: Tensor, means: Tensor) -> Tensor:
        """Offsets [n, C, 1] of views whose channels have means [n, C]."""
        return torch.baddbmm(self._shift[:, None], pull, means[..., None])

    def finish(self, values: Tensor, solarise: npt.NDArray[np.bool_], out: Tensor) -> None:
        """Clamps normalised [n, C, pixels] to black..white and solarises, into `out`.

        Args:
            values: what the maps gave; may be `out` itself.
            solarise: bool [n].
            out: of the same shape.
        """
        for c, (low, high) in enumerate(self._bounds):
            torch.clamp(values[:, c], low, high, out=out[:, c])
        if solarise.any():
            where = torch.from_numpy(np.flatnonzero(solarise)).to(self._device)
            x = out[where]
            level = ((SOLARISE_THRESHOLD - 0.5) * self._scale + self._shift)[:, None]
            inverted = (255 * self._scale + 2 * self._shift)[:, None] - x
            out[where] = torch.where(x >= level, inverted, x)


def colour_matrices(p: Params, channels: int = 3) -> npt.NDArray[np.float64]:
    """Jitter and grey as one map per sample, value = A pixel + Q mean.

    Contrast blends with the mean grey of the view as the operations before it left it, which is
    linear in the means of the view's channels; so all is known before a pixel is read.

    Args:
        p: parameters of B samples.
        channels: C; with other than three, grey is the mean of all, and there is no hue.

    Returns:
        A and Q, float64 [B, 2, C, C].
    """
    n = len(p.grey)
    state = np.zeros((n, 2, channels, channels))
    state[:, 0] = np.eye(channels)
    luma = np.array(_LUMA) if channels == 3 else np.full(channels, 1 / channels)
    if p.jitter.any():
        on = p.jitter[:, None]
        scale = np.where(on, p.factors[:, :3], 1.0)
        turn = _hue_matrices(np.where(p.jitter, p.factors[:, 3], 0.0)) if channels == 3 else None
        for op in p.order.T:  # op [n]: which operation comes now
            # Brightness scales; contrast and saturation blend with a grey, of the whole view or
            # of the pixel; hue rotates.
            f = np.where(op < 3, np.take_along_axis(scale, op.clip(max=2)[:, None], 1)[:, 0], 1.0)
            grey = luma @ state  # [n, 2, C]
            mean = grey.sum(1)  # [n, C]: the mean colour's grey
            rest = (1 - f)[:, None]
            if turn is not None:
                hue = op == 3
                state[hue] = turn[hue, None] @ state[hue]
            state *= f[:, None, None, None]
            state[:, 1] += (rest * mean * (op == 1)[:, None])[:, None, :]
            state += ((rest * (op == 2)[:, None])[:, None] * grey)[:, :, None, :]
    if p.grey.any():
        state[p.grey] = (luma @ state[p.grey])[:, :, None, :]
    return state


def _hue_matrices(turns: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Rotations [n, 3, 3] about the grey axis; red goes to green, to blue, to red."""
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns) / math.sqrt(3)
    cross = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    cos, sin = cos[:, None, None], sin[:, None, None]
    return cos * np.eye(3) + (1 - cos) / 3 + sin * cross
