"""Images that are searched for rather than taken: what they are made of, and the search.

Two ways to write an image so that its neighbours in the search are images too: its spectrum, with
the data's own colours (`Fourier`; Olah et al., "Feature Visualization", 2017), and a network that
draws it from noise or from another image (`Generator`; Ulyanov et al., "Deep Image Prior", 2018,
arXiv 1711.10925). Several images are searched for at once, and none knows of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nolabel.data.progress import progress_bar
from nolabel.encoders import Encoder
from nolabel.nn.pixels import to_pixels
from nolabel.nn.random_state import preserve_rng

SHOTS = 4  # previews that are kept, and shown as a strip
Each = Callable[[int, np.ndarray], Any]  # step and images uint8 [N, H, W, 3]; True ends the search


@dataclass
class Search:
    """How a search went.

    Attributes:
        losses: of every step, float [steps, terms].
        shots: steps and images uint8 [N, H, W, 3] on the way, the last one the outcome.
        stopped: whether it was ended early.
    """

    losses: list[list[float]] = field(default_factory=list)
    shots: list[tuple[int, np.ndarray]] = field(default_factory=list)
    stopped: bool = False

    @property
    def summary(self) -> str:
        """For captions."""
        early = ", stopped early" if self.stopped else ""
        return f"{len(self.losses):,} steps{early}"


def search(
    title: str,
    parameters: Sequence[Tensor],
    loss: Callable[[int], Sequence[Tensor]],
    draw: Callable[[], np.ndarray],
    *,
    steps: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    each: Each | None = None,
) -> Search:
    """Adam on the parameters of images, with a progress bar; Ctrl-C ends it early and keeps what is
    there.

    Args:
        title: of the bar.
        parameters: that make the images.
        loss: step -> terms whose sum is to fall.
        draw: the images of now.
        steps, lr, betas: of Adam; the rate is constant.
        each: called at `SHOTS` previews and at the end; True ends the search.
    """
    out = Search()
    optimiser = torch.optim.Adam(parameters, lr=lr, betas=betas)
    due = {round(steps / 2**i) for i in range(1, SHOTS)}  # a half, a quarter, an eighth
    try:
        with progress_bar(title, steps) as advance:
            for step in range(steps):
                terms = loss(step)
                grads = torch.autograd.grad(torch.stack(list(terms)).sum(), list(parameters))
                for p, g in zip(parameters, grads, strict=True):
                    p.grad = g
                optimiser.step()
                out.losses.append([float(t.detach()) for t in terms])
                advance(1)
                if step + 1 in due:
                    out.shots.append((step + 1, draw()))
                    if each is not None and each(*out.shots[-1]) is True:
                        out.stopped = True
                        break
    except KeyboardInterrupt:
        out.stopped = True
    out.shots.append((len(out.losses), draw()))
    if each is not None:
        each(*out.shots[-1])
    return out


class Fourier(nn.Module):
    """N images [N, C, S, S] from 0 to 1: spectra in which all frequencies weigh alike, mixed into
    the colours of some data, through a sigmoid.

    Args:
        count: N.
        side: S in pixels.
        colours: float [C, C], what mixes independent channels (`colours_of`).
        seed: of the start.
        deviation: of the spectrum at the start.
    """

    mix: Tensor
    weight: Tensor

    def __init__(
        self, count: int, side: int, colours: Tensor, *, seed: int = 0, deviation: float = 0.01
    ):
        super().__init__()
        rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
        frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / side)
        generator = torch.Generator().manual_seed(seed)
        shape = (count, len(colours), *frequency.shape, 2)
        self.spectrum = nn.Parameter(deviation * torch.randn(shape, generator=generator))
        self.register_buffer("weight", (1 / frequency)[..., None])
        self.register_buffer("mix", colours)
        self.side = side

    def forward(self) -> Tensor:
        spectrum = torch.view_as_complex((self.spectrum * self.weight).contiguous())
        x = torch.fft.irfft2(spectrum, s=(self.side, self.side), norm="ortho") / 4
        return torch.einsum("nchw,dc->ndhw", x, self.mix).sigmoid()


def colours_of(pixels: np.ndarray) -> Tensor:
    """The square root of the covariance of colours of uint8 [..., C], its longest row of length
    1: float [C, C]; that of grey images would be singular, so a little white is added."""
    flat = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64) / 255
    values, vectors = np.linalg.eigh(np.cov(flat.T).reshape(flat.shape[1], -1) + 1e-3 * np.eye(
        flat.shape[1]))  # fmt: skip
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    return torch.from_numpy(root / np.linalg.norm(root, axis=1).max()).float()


class Generator(nn.Module):
    """`count` hour-glasses with skips, side by side as groups: images [count, C, S, S] from 0 to 1
    from input [1 or count, inputs, S, S].

    Each norm is by instance, so that none of the networks knows of the others.

    Args:
        count: networks.
        side: S in pixels, which limits how often the size is halved.
        inputs: channels of the input.
        outputs: C.
        widths: channels of each level, shallow to deep.
        skip: channels that go around each level.
        seed: of the weights.
    """

    def __init__(
        self,
        count: int,
        side: int,
        *,
        inputs: int,
        outputs: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128, 128, 128),
        skip: int = 4,
        seed: int = 0,
    ):
        super().__init__()
        levels = max(min(len(widths), int(math.log2(side)) - 2), 1)  # no map below 4 pixels
        with preserve_rng():
            torch.manual_seed(seed)
            self.count, self.depth = count, levels
            self.down, self.around, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
            wide = inputs
            for i, w in enumerate(widths[:levels]):
                deeper = widths[i + 1] if i + 1 < levels else w
                size = (7, 7, 5, 5, 3, 3)[i] if side >= 96 and i < 6 else 3
                self.down.append(
                    nn.Sequential(self._conv(wide, w, size, 2), *self._act(w),
                                  self._conv(w, w, size), *self._act(w))
                )  # fmt: skip
                self.around.append(nn.Sequential(self._conv(wide, skip, 1), *self._act(skip)))
                self.up.append(
                    nn.Sequential(
                        nn.InstanceNorm2d(count * (deeper + skip), affine=True),
                        self._conv(deeper + skip, w, size), *self._act(w),
                        self._conv(w, w, 1), *self._act(w),
                    )
                )  # fmt: skip
                wide = w
            self.last = self._conv(widths[0], outputs, 1)

    def _conv(self, a: int, b: int, size: int, stride: int = 1) -> nn.Conv2d:
        n = self.count
        return nn.Conv2d(n * a, n * b, size, stride, size // 2, groups=n, padding_mode="reflect")

    def _act(self, width: int) -> tuple[nn.Module, nn.Module]:
        return nn.InstanceNorm2d(self.count * width, affine=True), nn.LeakyReLU(0.2)

    def _side_by_side(self, *maps: Tensor) -> Tensor:
        """Maps [1, count * a, h, w], [1, count * b, h, w] -> [1, count * (a + b), h, w]."""
        return torch.cat([m.unflatten(1, (self.count, -1)) for m in maps], 2).flatten(1, 2)

    def _level(self, x: Tensor, i: int) -> Tensor:
        y = self.down[i](x)
        if i + 1 < self.depth:
            y = self._level(y, i + 1)
        y = F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.up[i](self._side_by_side(y, self.around[i](x)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(self.count, -1, -1, -1).reshape(1, -1, *x.shape[-2:])
        return self.last(self._level(x, 0)).unflatten(1, (self.count, -1))[0].sigmoid()


def normalised(x: Tensor, encoder: Encoder) -> Tensor:
    """Images from 0 to 1 as the encoder takes them."""
    mean, std = (x.new_tensor(v).view(1, -1, 1, 1) for v in (encoder.mean, encoder.std))
    return (x - mean) / std


def unnormalised(x: Tensor, encoder: Encoder) -> Tensor:
    """Images that the encoder takes as from 0 to 1."""
    mean, std = (x.new_tensor(v).view(1, -1, 1, 1) for v in (encoder.mean, encoder.std))
    return x * std + mean


def pixels_of(x: Tensor) -> np.ndarray:
    """Images [N, C, H, W] from 0 to 1 as uint8 [N, H, W, 3]."""
    c = x.shape[1]
    return to_pixels(x.detach().cpu().numpy(), [0.0] * c, [1.0] * c)


def warped(
    x: Tensor,
    generator: torch.Generator,
    *,
    turn: float = 10.0,
    scale: tuple[float, float] = (0.9, 1.1),
    shift: float = 0.06,
    flip: bool = False,
) -> Tensor:
    """Each image turned, enlarged and moved by chance, mirrored at its border, with gradient.

    Args:
        x: [N, C, H, W].
        turn: degrees, either way.
        scale: range of the enlargement.
        shift: of the image's side, either way.
        flip: whether half of them are mirrored.
    """
    u = torch.rand(5, len(x), generator=generator).to(x.device)
    angle = (2 * u[0] - 1) * math.radians(turn)
    size = 1 / (scale[0] + (scale[1] - scale[0]) * u[1])
    side = torch.where(u[4] < 0.5, -1.0, 1.0) if flip else torch.ones_like(size)
    cos, sin, move = angle.cos() * size, angle.sin() * size, 2 * shift * (2 * u[2:4] - 1)
    theta = torch.stack([torch.stack([side * cos, -sin, move[0]], -1),
                         torch.stack([side * sin, cos, move[1]], -1)], 1)  # fmt: skip
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def crops(x: Tensor, generator: torch.Generator, count: int, scale: tuple[float, float]) -> Tensor:
    """`count` random squares of each image [N, C, S, S], of a share of its side in `scale`, at full
    size again: [count * N, C, S, S]."""
    y = x.repeat(count, 1, 1, 1)
    u = torch.rand(3, len(y), generator=generator).to(x.device)
    size = scale[0] + (scale[1] - scale[0]) * u[0]
    at = (1 - size) * (2 * u[1:] - 1)
    zero = torch.zeros_like(size)
    theta = torch.stack([torch.stack([size, zero, at[0]], -1),
                         torch.stack([zero, size, at[1]], -1)], 1)  # fmt: skip
    grid = F.affine_grid(theta, list(y.shape), align_corners=False)
    return F.grid_sample(y, grid, padding_mode="reflection", align_corners=False)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two images' pixels."""
    x, y = (v.astype(np.float64).ravel() - v.mean() for v in (a, b))
    return float((x * y).sum() / max(np.sqrt(np.square(x).sum() * np.square(y).sum()), 1e-12))
