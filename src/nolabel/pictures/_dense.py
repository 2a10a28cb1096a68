"""Dense descriptors: one feature vector for every patch of an image.

Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021, arXiv 2112.05814. The
descriptor is the key of a layer (heads concatenated). A stride below the patch size gives
overlapping patches and a finer grid. Log bins append the descriptors of the neighbourhood. The
saliency is the attention of the class token in the last layer.

Differs from the original: the saliency is the mean over all heads (there: over four heads chosen
for one checkpoint).
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
from nolabel.pictures._whole import prepare_whole
from nolabel.types import Sample

ImagesOrSamples = Images | Sequence[Sample]
FACETS = ("auto", "key", "query", "value", "token")
_BATCH = 8  # images at once; a fine grid has thousands of tokens


@dataclass(frozen=True)
class Dense:
    """Descriptors of the P patches of N images.

    Attributes:
        values: float32 [N, P, D] on the CPU, patches in row-major order.
        grid: rows and columns (h, w), P = h * w.
        pixels: uint8 [N, H, W, 3], the images after resizing to the encoder's input, which has
            their own shape where the network can take it (`prepare_whole`).
        centres: float [P, 2], x and y of the centre of each patch in pixels.
        saliency: float32 [N, P], attention of the class token scaled to 0..1 for each image; None
            for a network without a class token.
        facet: what the descriptors are: key, query, value, token or colour.
        large: uint8 [N, H', W', 3], the images as they are drawn, at their own resolution; None:
            as `pixels`.
    """

    values: Tensor
    grid: tuple[int, int]
    pixels: np.ndarray
    centres: np.ndarray
    saliency: Tensor | None
    facet: str
    large: np.ndarray | None = None

    @property
    def shown(self) -> np.ndarray:
        """The images as they are drawn, uint8 [N, H', W', 3]."""
        return self.pixels if self.large is None else self.large

    def map(self, values: np.ndarray | Tensor) -> np.ndarray:
        """Reshapes values of the patches [..., P] to their grid [..., h, w]."""
        return np.asarray(values).reshape(*np.shape(values)[:-1], *self.grid)

    def by_colour(self) -> Dense:
        """The baseline without a network: mean colour of each patch, float [N, P, 3], minus 0.5."""
        colours = mean_colours(self.pixels, self.grid) - 0.5
        return replace(self, values=colours, saliency=None, facet="colour")

    def areas(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each patch, how many of its nearest pixels are foreground and background.

        Args:
            mask: uint8 [H, W]: 1 is foreground, 0 background, other values are ignored.

        Returns:
            Two int [h, w], the arguments of `protocols.attention.iou`.
        """
        patch = self.nearest(mask.shape)
        inside, outside = (
            np.bincount(patch[mask == v], minlength=self.grid[0] * self.grid[1]) for v in (1, 0)
        )
        return inside.reshape(self.grid), outside.reshape(self.grid)

    def nearest(self, shape: tuple[int, ...]) -> np.ndarray:
        """Index of the patch whose centre is nearest to each pixel of an image of `shape` (H, W):
        int [H, W]."""
        sides = []
        for size, count, axis in zip(shape, self.grid, (1, 0), strict=True):
            centres = np.unique(self.centres[:, axis])
            edges = (centres[1:] + centres[:-1]) / 2
            sides.append(np.searchsorted(edges, np.arange(size) + 0.5, side="right"))
            assert len(centres) == count  # noqa: S101
        return sides[0][:, None] * self.grid[1] + sides[1]

    def at_centres(self, maps: np.ndarray) -> np.ndarray:
        """Samples maps [N, H, W] at the centre of each patch: [N, P]."""
        x, y = self.centres.astype(int).T
        return maps[:, y, x]


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
    """Dense descriptors of images.

    Args:
        encoder: the encoder; it runs on its own device.
        images: N images, anything `Encoder.prepare` takes, or Samples.
        layer: which layer; -1 is the last.
        facet: key, query, value or token; auto is key, or token of a network without keys.
        stride: pixels between neighbouring patches, a divisor of the patch size; 0 is the patch
            size.
        bins: whether to append the neighbourhood (`log_bins`), which makes descriptors 17 times as
            long.
        salient: whether to compute the saliency, which costs another forward pass.

    Raises:
        UsageError: there is no such layer or facet, the stride does not divide the patch size, or
            the network has no patch features.
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
    """As `dense` without bins, for several layers in one forward pass: one `Dense` a layer."""
    require(encoder.backbone, ["patches"], "A vector for each patch")
    x, shown = prepare_whole(encoder, images_of(images))
    b, p = encoder.backbone, encoder.backbone.patch_size
    has_keys = "attention" in b.can
    facet = ("key" if has_keys else "token") if facet == "auto" else facet
    values: list[list[Tensor]] = [[] for _ in layers]
    saliency, grids = [], [(0, 0)] * len(layers)
    overlapping = b.with_stride(stride) if stride not in (0, p) else nullcontext()
    with encoder.evaluating(), overlapping:
        for batch in x.split(_BATCH):
            tokens = b.facets_of(batch, [(layer, facet) for layer in layers])
            for i, t in enumerate(tokens):
                values[i].append(t.patches.float().cpu())
                grids[i] = t.grid
            prefix = tokens[0].prefix
            if salient and has_keys and prefix is not None and prefix.shape[1]:
                a = b.attention(batch, -1, slice(0, 1))[:, :, 0].float().mean(1)
                saliency.append(a[:, prefix.shape[1] :].cpu())
    scaled = torch.cat(saliency).clone() if saliency else None
    if scaled is not None:
        low, high = scaled.amin(1, keepdim=True), scaled.amax(1, keepdim=True)
        scaled = (scaled - low) / (high - low).clamp_min(1e-12)
    pixels = to_pixels(x.cpu().numpy(), encoder.mean, encoder.std)
    patching = (stride or p, p) if has_keys else None
    return [
        Dense(
            torch.cat(v).clone(),
            g,
            pixels,
            _centres(g, x.shape[-2:], patching),
            scaled,
            facet,
            shown,
        )
        for v, g in zip(values, grids, strict=True)
    ]


def _centres(
    grid: tuple[int, int], shape: Sequence[int], patching: tuple[int, int] | None
) -> np.ndarray:
    """x and y of the centre of each patch in pixels, float [P, 2].

    Args:
        grid: rows and columns of patches.
        shape: height and width of the image.
        patching: stride and size of square patches; None: cells that tile the image.
    """
    cells = [patching or (n / g, n / g) for n, g in zip(shape, grid, strict=True)]
    rows, columns = (
        np.arange(g) * step + size / 2 for g, (step, size) in zip(grid, cells, strict=True)
    )
    return np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)


def samples_of(images: ImagesOrSamples) -> Sequence[Sample] | None:
    """The images if all are Samples, else None."""
    if not isinstance(images, Sequence) or isinstance(images, str):
        return None
    samples = [image for image in images if isinstance(image, Sample)]
    return samples if samples and len(samples) == len(images) else None


def images_of(images: ImagesOrSamples) -> Images:
    """The images of Samples; anything else unchanged."""
    samples = samples_of(images)
    return cast(Images, images) if samples is None else [s.image for s in samples]


def ground_truth(
    images: ImagesOrSamples, what: str, shape: int | tuple[int, ...]
) -> np.ndarray | None:
    """The masks or part maps of Samples.

    Args:
        images: the images.
        what: "mask" or "parts".
        shape: height and width of the encoder's input in pixels, or its side.

    Returns:
        uint8 [N, H, W]; None if an image has none, or one of another size.
    """
    maps = [s.mask if what == "mask" else s.parts for s in samples_of(images) or ()]
    shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
    usable = [m for m in maps if m is not None and m.shape == shape]
    return np.stack(usable) if usable and len(usable) == len(maps) else None


def mean_colours(pixels: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Mean colour of each patch, float32 [N, P, 3] in 0..1, of uint8 [N, H, W, 3]."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return F.adaptive_avg_pool2d(x, grid).flatten(2).transpose(1, 2).contiguous()


def log_bins(values: Tensor, grid: tuple[int, int], levels: int = 2) -> Tensor:
    """Appends to each descriptor those of its neighbourhood, in log-spaced bins.

    Level k averages squares of 3^k x 3^k patches whose centres are 3^k patches apart: the patch and
    its eight neighbours at level 0, the eight squares around those at level 1, and so on. Positions
    beyond the border are clamped to it.

    Args:
        values: float [N, P, D].
        grid: (h, w).
        levels: number of levels, at least 1.

    Returns:
        float [N, P, (1 + 8 * levels) * D].
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
                    continue  # the centre is a bin of level 0 only
                rows = (torch.arange(h) + dy).clamp(0, h - 1)
                columns = (torch.arange(w) + dx).clamp(0, w - 1)
                out.append(mean[:, :, rows][:, :, :, columns])
    return torch.cat(out, 1).flatten(2).transpose(1, 2).contiguous()
