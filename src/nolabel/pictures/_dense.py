"""Dense descriptors: a vector for every patch of an image, on a grid as fine as asked for.

Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021, arXiv 2112.05814. Keys of a
layer, heads side by side; patches that overlap; optionally each with its neighbourhood in bins of
growing size. The saliency is the attention that the class token of the last layer pays.

Differs from the original: the saliency is the mean of all heads (there: four heads chosen for one
checkpoint).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nolabel.backbones.base import require
from nolabel.encoders import Encoder
from nolabel.encoders.encoder import Images
from nolabel.nn.pixels import to_pixels
from nolabel.types import Sample

ImagesOrSamples = Images | Sequence[Sample]
FACETS = ("auto", "key", "query", "value", "token")
_BATCH = 8  # images at once: fine grids have thousands of tokens


@dataclass(frozen=True)
class Dense:
    """Descriptors of N images.

    Attributes:
        values: float32 [N, P, D] on the CPU, patches row by row.
        grid: rows and columns (h, w), P = h * w.
        pixels: uint8 [N, H, W, 3], the images as the encoder saw them.
        centres: float [P, 2], x and y of each patch's middle in pixels.
        saliency: float32 [N, P] from 0 to 1, the class token's attention; None without one.
        facet: what they are.
    """

    values: Tensor
    grid: tuple[int, int]
    pixels: np.ndarray
    centres: np.ndarray
    saliency: Tensor | None
    facet: str

    def map(self, values: np.ndarray | Tensor) -> np.ndarray:
        """Numbers of the patches [..., P] on their grid [..., h, w]."""
        return np.asarray(values).reshape(*np.shape(values)[:-1], *self.grid)

    def by_colour(self) -> Dense:
        """The baseline that needs no network: the mean colour about each patch, grey at zero."""
        plain = colours(self.pixels, self.grid) - 0.5
        return replace(self, values=plain, saliency=None, facet="colour")

    def areas(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of figure (1) and of ground (0) of a mask [H, W] that are nearest to each patch,
        int [h, w] each, as `evaluate.attention.iou` takes them."""
        patch = self.nearest(mask.shape)
        inside, outside = (
            np.bincount(patch[mask == v], minlength=self.grid[0] * self.grid[1]) for v in (1, 0)
        )
        return inside.reshape(self.grid), outside.reshape(self.grid)

    def nearest(self, shape: tuple[int, ...]) -> np.ndarray:
        """The patch whose middle is nearest to each pixel, int [H, W]."""
        sides = []
        for size, count, axis in zip(shape, self.grid, (1, 0), strict=True):
            middles = np.unique(self.centres[:, axis])
            edges = (middles[1:] + middles[:-1]) / 2
            sides.append(np.searchsorted(edges, np.arange(size) + 0.5, side="right"))
            assert len(middles) == count  # noqa: S101
        return sides[0][:, None] * self.grid[1] + sides[1]

    def at(self, truth: np.ndarray) -> np.ndarray:
        """The pixel in the middle of each patch, [N, P], of maps [N, H, W]."""
        x, y = self.centres.astype(int).T
        return truth[:, y, x]


def dense(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    layer: int = -1,
    facet: str = "auto",
    stride: int = 0,
    bins: bool = False,
    salient: bool = True,
) -> Dense:
    """Describes every patch of some images.

    Args:
        encoder: does the work on its own device.
        images: anything `Encoder.prepare` takes, or Samples.
        layer: which layer; -1 is the last.
        facet: key, query, value or token; auto is key, or token of a network without keys.
        stride: pixels from patch to patch, a divisor of the patch; 0 is the patch itself.
        bins: whether each descriptor is joined by its neighbourhood's (`log_bins`): 17 times as
            long.
        salient: whether the saliency is wanted, which is another walk through the network.

    Raises:
        UsageError: no such layer or facet, or a network that cannot.
    """
    d = dense_layers(encoder, images, [layer], facet=facet, stride=stride, salient=salient)[0]
    return replace(d, values=log_bins(d.values, d.grid)) if bins else d


def dense_layers(
    encoder: Encoder,
    images: ImagesOrSamples,
    layers: Sequence[int],
    *,
    facet: str = "auto",
    stride: int = 0,
    salient: bool = True,
) -> list[Dense]:
    """As `dense`, for several layers in one walk through the network."""
    require(encoder.backbone, ["patches"], "A vector for each patch")
    x = encoder.prepare(images_of(images))
    b, p = encoder.backbone, encoder.backbone.patch_size
    keys = "attention" in b.can
    which = ("key" if keys else "token") if facet == "auto" else facet
    values: list[list[Tensor]] = [[] for _ in layers]
    saliency, grids = [], [(0, 0)] * len(layers)
    finer = b.with_stride(stride) if stride not in (0, p) else nullcontext()
    with encoder.evaluating(), finer:
        for some in x.split(_BATCH):
            found = b.facets_of(some, [(layer, which) for layer in layers])
            for i, t in enumerate(found):
                values[i].append(t.patches.float().cpu())
                grids[i] = t.grid
            prefix = found[0].prefix
            if salient and keys and prefix is not None and prefix.shape[1]:
                a = b.attention(some, -1, slice(0, 1))[:, :, 0].float().mean(1)
                saliency.append(a[:, prefix.shape[1] :].cpu())
    seen = torch.cat(saliency).clone() if saliency else None
    if seen is not None:
        low, high = seen.amin(1, keepdim=True), seen.amax(1, keepdim=True)
        seen = (seen - low) / (high - low).clamp_min(1e-12)
    pixels = to_pixels(x.cpu().numpy(), encoder.mean, encoder.std)
    steps = (stride or p, p) if keys else None
    return [
        Dense(torch.cat(v).clone(), g, pixels, _middles(g, x.shape[-2:], steps), seen, which)
        for v, g in zip(values, grids, strict=True)
    ]


def _middles(
    grid: tuple[int, int], shape: Sequence[int], steps: tuple[int, int] | None
) -> np.ndarray:
    """x and y of each patch's middle, float [P, 2]: cells that fill an image of this height and
    width, or patches of the second of `steps` pixels, cut every first of them."""
    sides = [steps or (n / g, n / g) for n, g in zip(shape, grid, strict=True)]
    rows, columns = (
        np.arange(g) * step + size / 2 for g, (step, size) in zip(grid, sides, strict=True)
    )
    return np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)


def samples_of(images: ImagesOrSamples) -> Sequence[Sample] | None:
    """The images if they are Samples, else None."""
    if not isinstance(images, Sequence) or isinstance(images, str):
        return None
    found = [image for image in images if isinstance(image, Sample)]
    return found if found and len(found) == len(images) else None


def images_of(images: ImagesOrSamples) -> Images:
    """The images of Samples; anything else as it is."""
    samples = samples_of(images)
    return cast(Images, images) if samples is None else [s.image for s in samples]


def truth(images: ImagesOrSamples, what: str, side: int) -> np.ndarray | None:
    """What Samples know ("mask" or "parts"), uint8 [N, side, side]; None if one does not, or not
    at this size."""
    found = [s.mask if what == "mask" else s.parts for s in samples_of(images) or ()]
    known = [f for f in found if f is not None and f.shape == (side, side)]
    return np.stack(known) if known and len(known) == len(found) else None


def colours(pixels: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """The mean colour about each patch, [N, P, 3] from 0 to 1."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return F.adaptive_avg_pool2d(x, grid).flatten(2).transpose(1, 2).contiguous()


def log_bins(values: Tensor, grid: tuple[int, int], levels: int = 2) -> Tensor:
    """Each descriptor with its neighbourhood, float [N, P, (1 + 8 * levels) * D].

    Level k averages squares of 3^k patches, 3^k patches apart: the nine around the patch at level
    0, the eight around those at level 1, and so on. Beyond the border the nearest inside counts.

    Args:
        values: float [N, P, D].
        grid: (h, w).
        levels: at least 1.
    """
    h, w = grid
    x = values.unflatten(1, grid).permute(0, 3, 1, 2)
    out = []
    for k in range(levels):
        side = 3**k
        mean = F.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)
        for dy in (-side, 0, side):
            for dx in (-side, 0, side):
                if k and not dy and not dx:
                    continue  # the middle is level 0's
                rows = (torch.arange(h) + dy).clamp(0, h - 1)
                columns = (torch.arange(w) + dx).clamp(0, w - 1)
                out.append(mean[:, :, rows][:, :, :, columns])
    return torch.cat(out, 1).flatten(2).transpose(1, 2).contiguous()
