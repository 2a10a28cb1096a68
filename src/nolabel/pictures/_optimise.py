"""Image optimisation by gradient descent: two parametrisations of an image, and the loop.

Both parametrisations act as a prior for natural images: a Fourier spectrum with the colour
correlations of the data (`Fourier`; Olah et al., "Feature Visualization", 2017), and a
convolutional network that produces the image from noise or from another image (`Generator`;
Ulyanov et al., "Deep Image Prior", 2018, arXiv 1711.10925). Several images are optimised at once,
independently of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nolabel.data.progress import progress_bar
from nolabel.encoders import Encoder
from nolabel.nn.pixels import to_pixels
from nolabel.nn.random_state import preserve_rng

PREVIEWS = 4  # number of previews kept, the final images included
# Callback with the step and the images, uint8 [N, H, W, 3]; it returns True to stop early.
OnPreview = Callable[[int, np.ndarray], object]


@dataclass
class Optimisation:
    """The record of an optimisation.

    Attributes:
        losses: loss terms of every step, float [steps, terms].
        previews: pairs of step and images, uint8 [N, H, W, 3]; the last are the final images.
        stopped: whether it was stopped early.
    """

    losses: list[list[float]] = field(default_factory=list)
    previews: list[tuple[int, np.ndarray]] = field(default_factory=list)
    stopped: bool = False

    @property
    def summary(self) -> str:
        """Number of steps, for captions."""
        early = ", stopped early" if self.stopped else ""
        return f"{len(self.losses):,} steps{early}"


def optimise(
    title: str,
    parameters: Sequence[Tensor],
    loss: Callable[[int], Sequence[Tensor]],
    draw: Callable[[], np.ndarray],
    *,
    steps: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    on_preview: OnPreview | None = None,
) -> Optimisation:
    """Minimises a loss by Adam, with a progress bar. Ctrl-C stops early and keeps the images.

    Args:
        title: of the progress bar.
        parameters: of the images; only these get gradients.
        loss: maps the step to loss terms, scalars whose sum is minimised.
        draw: returns the current images, uint8 [N, H, W, 3].
        steps: number of steps.
        lr: learning rate of Adam, constant.
        betas: of Adam.
        on_preview: called with each preview (`PREVIEWS`); True stops early.
    """
    out = Optimisation()
    optimiser = torch.optim.Adam(parameters, lr=lr, betas=betas)
    due = {round(steps / 2**i) for i in range(1, PREVIEWS)}  # a half, a quarter, an eighth
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
                    out.previews.append((step + 1, draw()))
                    if on_preview is not None and on_preview(*out.previews[-1]) is True:
                        out.stopped = True
                        break
    except KeyboardInterrupt:
        out.stopped = True
    out.previews.append((len(out.losses), draw()))
    if on_preview is not None:
        on_preview(*out.previews[-1])
    return out


class Fourier(nn.Module):
    """N images [N, C, S, S] in 0..1, parametrised by their Fourier spectra.

    The spectrum is scaled by 1 / frequency, so that all frequencies get gradients of similar size;
    a matrix correlates the channels as in the data; a sigmoid bounds the values.

    Args:
        count: number of images N.
        side: S in pixels.
        colours: float [C, C], correlates independent channels (`colour_mixing`).
        seed: of the initial spectrum.
        deviation: standard deviation of the initial spectrum.
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


def colour_mixing(pixels: np.ndarray) -> Tensor:
    """Square root of the colour covariance of uint8 [..., C], float32 [C, C], largest row norm 1.

    1e-3 is added to the diagonal, since the covariance of grey images is singular.
    """
    flat = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64) / 255
    values, vectors = np.linalg.eigh(np.cov(flat.T).reshape(flat.shape[1], -1) + 1e-3 * np.eye(
        flat.shape[1]))  # fmt: skip
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    return torch.from_numpy(root / np.linalg.norm(root, axis=1).max()).float()


class Generator(nn.Module):
    """`count` independent encoder-decoder networks with skip connections, as grouped convolutions.

    Maps [1 or count, inputs, S, S] to images [count, C, S, S] in 0..1. Instance normalisation keeps
    the networks independent of each other.

    Args:
        count: number of networks.
        side: S in pixels; limits the number of levels, each of which halves the size.
        inputs: channels of the input.
        outputs: channels C of the images.
        widths: channels of each level, shallow to deep.
        skip: channels of each skip connection.
        seed: of the weights; the global random state is left unchanged.
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
        levels = max(min(len(widths), int(math.log2(side)) - 2), 1)  # no feature map below 4 px
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

    def _concatenate(self, *maps: Tensor) -> Tensor:
        """Group by group: [1, count * a, h, w], [1, count * b, h, w] to
        [1, count * (a + b), h, w]."""
        return torch.cat([m.unflatten(1, (self.count, -1)) for m in maps], 2).flatten(1, 2)

    def _level(self, x: Tensor, i: int) -> Tensor:
        y = self.down[i](x)
        if i + 1 < self.depth:
            y = self._level(y, i + 1)
        y = F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.up[i](self._concatenate(y, self.around[i](x)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(self.count, -1, -1, -1).reshape(1, -1, *x.shape[-2:])
        return self.last(self._level(x, 0)).unflatten(1, (self.count, -1))[0].sigmoid()


def normalise(x: Tensor, encoder: Encoder) -> Tensor:
    """Images [N, C, H, W] in 0..1, normalised by the encoder's mean and deviation."""
    mean, std = (x.new_tensor(v).view(1, -1, 1, 1) for v in (encoder.mean, encoder.std))
    return (x - mean) / std


def unnormalise(x: Tensor, encoder: Encoder) -> Tensor:
    """The inverse of `normalise`: images [N, C, H, W] in 0..1."""
    mean, std = (x.new_tensor(v).view(1, -1, 1, 1) for v in (encoder.mean, encoder.std))
    return x * std + mean


def pixels_of(x: Tensor) -> np.ndarray:
    """Images [N, C, H, W] in 0..1 as uint8 [N, H, W, 3]."""
    c = x.shape[1]
    return to_pixels(x.detach().cpu().numpy(), [0.0] * c, [1.0] * c)


def random_warp(
    x: Tensor,
    generator: torch.Generator,
    *,
    turn: float = 10.0,
    scale: tuple[float, float] = (0.9, 1.1),
    shift: float = 0.06,
    flip: bool = False,
) -> Tensor:
    """A random affine transform of each image, differentiable, with reflection padding.

    Args:
        x: images, float [N, C, H, W].
        generator: of the random numbers, on the CPU.
        turn: largest rotation in degrees, either way.
        scale: range of the scale factor.
        shift: largest translation, either way, as a share of the side.
        flip: whether to mirror each image with probability 1/2.

    Returns:
        float [N, C, H, W].
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


def random_crops(
    x: Tensor,
    generator: torch.Generator,
    count: int,
    scale: tuple[float, float],
    *,
    flip: bool = False,
) -> Tensor:
    """Random square crops resized to full size, differentiable.

    Args:
        x: images, float [N, C, S, S].
        generator: of the random numbers, on the CPU.
        count: crops of each image.
        scale: range of the crop's side, as a share of S.
        flip: whether to mirror each crop with probability 1/2.

    Returns:
        float [count * N, C, S, S]; crop k of image n is row k * N + n.
    """
    y = x.repeat(count, 1, 1, 1)
    u = torch.rand(3, len(y), generator=generator).to(x.device)
    size = scale[0] + (scale[1] - scale[0]) * u[0]
    at = (1 - size) * (2 * u[1:] - 1)
    zero, across = torch.zeros_like(size), size
    if flip:
        mirrored = torch.rand(len(y), generator=generator).to(x.device) < 0.5
        across = torch.where(mirrored, -size, size)
    theta = torch.stack([torch.stack([across, zero, at[0]], -1),
                         torch.stack([zero, size, at[1]], -1)], 1)  # fmt: skip
    grid = F.affine_grid(theta, list(y.shape), align_corners=False)
    return F.grid_sample(y, grid, padding_mode="reflection", align_corners=False)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of the pixels of two images of the same shape."""
    x, y = (v.astype(np.float64).ravel() - v.mean() for v in (a, b))
    return float((x * y).sum() / max(np.sqrt(np.square(x).sum() * np.square(y).sum()), 1e-12))
