"""The views, a batch at a time: the ordinary path, on CPU workers or on a device.

Crop, antialiased resize, flip and Gaussian blur are all linear and separable, so one view is

    out = My @ image @ Mx^T,    M = blur @ resize  (of the crop; rows of Mx reversed to flip)

with small matrices My [size, H] and Mx [size, W] per sample, built for the whole batch at once and
applied by two batched products; blur costs nothing extra. Brightness, contrast, saturation, hue,
grey and the normalisation are affine in the colour of a pixel, so they are composed into one 3x4
matrix per sample, applied by a third product straight into the result.

Large images on the CPU go one by one instead: a matrix over a photograph's side costs more than
torch's uint8 resize of the crop, which skips what is outside. See `MATRIX_COST`.

Same parameters as `ReferenceViews` (`draw`), same operations, except (levels are of 255; measured
by `benchmarks/views.py --deviations` on photographs, 32 px by matrices and 224 px by crops):

* No rounding to 8 bits between operations or at the end: mean 0.27 levels by matrices.
  torchvision truncates after brightness, contrast, saturation and grey: 0.4 to 0.5 darker each.
* No clamping to 0..255 but at the end, nor between the axes of a bicubic resize by matrices:
  99 % of values within 0.8 levels, largest 11 (crops: 0). Of a whole jitter without hue: mean
  1.4 to 1.5 levels, of which 1.3 to 1.4 is the truncation above; 99 % within 10.
* Hue turns about the grey axis of RGB (keeping r + g + b) and not in HSV (keeping the largest and
  smallest of r, g, b): for shifts up to 0.1, mean 5 levels, little of it drift (0.3 to 0.6), and
  2 to 3 % less spread. The same turn in YIQ, as often used, is further from HSV.
* Crops leave out a blur below 0.22 pixels, where a neighbour weighs less than 1 in 30,000, and
  taps beyond 4.5 sigma. Blur as a whole: mean 0.2 to 0.3, which is the rounding above.
* Solarising's threshold is half a level lower, which is what 128 means before rounding.

The same batch gives the same bits again, and what is drawn for a sample never depends on its batch.
Nor did its bits in our tests on CPUs, but the libraries' products do not promise that.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from nolabel.views.blur import blur, blur_matrices, gaussian
from nolabel.views.buffers import BufferPool
from nolabel.views.colour import Colour
from nolabel.views.draw import Params, draw
from nolabel.views.executor import Executor
from nolabel.views.images import Images, image_list, key_array
from nolabel.views.plan import View, ViewPlan

# On the CPU a view is made by matrices up to this many multiplications per pixel and channel of
# the output (H * W / size + W of them); beyond, by cropping first. The second term is what the
# fixed cost of a crop is worth: measured at sizes 16..224 and sides 32..320, one core.
MATRIX_COST, MATRIX_COST_ONCE = 200, 1_000_000
# Floats that a chunk of the batch may occupy: a few megabytes, measured best between the cost of
# calls and that of cache misses; on a device, a modest share of its memory.
_CPU_FLOATS, _DEVICE_FLOATS = 2**21, 2**28
# Below it a neighbour weighs less than 1 in 30,000: the blur is left out.
_LEAST_SIGMA = 0.22


class FastViews(Executor):
    """Makes the views of a plan.

    Args:
        plan: the views.
        seed: seed of the run.
        device: where the work is done and the result lies.
    """

    plan: ViewPlan
    device: torch.device

    def __init__(self, plan: ViewPlan, seed: int = 0, device: torch.device | str = "cpu"):
        self.plan = plan
        self.seed = seed
        self.device = torch.device(device)
        self._colour = Colour(plan, self.device)
        self._buffers = BufferPool()

    @torch.no_grad()
    def __call__(
        self, images: Images, keys: npt.ArrayLike | Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Makes all views of a batch.

        Args:
            images: uint8 [B, H, W, C], or B of uint8 or uint16 [H_i, W_i, C]; RGB, or what the
                plan's channels are.
            keys: index of each image in its source, integers [B]; with seed and epoch, it alone
                decides what is drawn.
            epoch: epoch.

        Returns:
            Name of the view -> float32 [V, B, C, size, size], normalised, on the device.
        """
        tensors = image_list(images, self.plan.channels)
        count = len(tensors)
        heights = np.array([t.shape[0] for t in tensors], dtype=np.int64)
        widths = np.array([t.shape[1] for t in tensors], dtype=np.int64)
        drawn = draw(self.plan, heights, widths, key_array(keys, count), self.seed, epoch)
        out: dict[str, Tensor] = {}
        crops: list[tuple[_Crops, npt.NDArray[np.bool_]]] = []
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 would show in the pixels
            for view in self.plan.views:
                out[view.name] = result = self._empty(view, count)
                params = [drawn[view.name, v] for v in range(view.count)]
                maps = self._colour.maps(params)
                small = self._by_matrices_is_cheaper(heights, widths, view.size)
                index = np.flatnonzero(small)
                if len(index):
                    self._by_matrices(tensors, index, view, params, maps, result)
                if not small.all():
                    crops.append((_Crops(view, params, self._colour, maps, result), small))
            for i, image in enumerate(tensors):  # all views of one, while it is in the cache
                for make, small in crops:
                    if not small[i]:
                        make(image, i)
        return out

    def _empty(self, view: View, count: int) -> Tensor:
        """Memory for a result, float32 [V, B, C, size, size]; its values are undefined."""
        shape = (view.count, count, self.plan.channels, view.size, view.size)
        if self.device.type != "cpu":
            return torch.empty(shape, device=self.device)
        if self.shared:
            storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))
            lines = torch.empty(shape, device="meta").stride()
            return torch.empty(0).set_(storage, 0, shape, lines)
        return self._buffers.empty(shape)

    def _by_matrices_is_cheaper(
        self, heights: np.ndarray, widths: np.ndarray, size: int
    ) -> npt.NDArray[np.bool_]:
        """Which images go by matrices. By an image's own size: never by what else is there."""
        if self.device.type != "cpu":  # thousands of small calls cost a device far more
            return np.ones(len(heights), dtype=bool)
        cost = heights * widths / size + widths
        return cost <= MATRIX_COST + MATRIX_COST_ONCE / size**2

    # -- many at once ------------------------------------------------------------------------

    def _by_matrices(
        self,
        tensors: list[Tensor],
        index: npt.NDArray[np.integer],
        view: View,
        params: list[Params],
        maps: tuple[Tensor, Tensor],
        result: Tensor,
    ) -> None:
        """Makes a view of the images in `index`, chunk by chunk, into `result`."""
        s = view.size
        h = max(tensors[i].shape[0] for i in index)
        w = max(tensors[i].shape[1] for i in index)
        budget = _CPU_FLOATS if self.device.type == "cpu" else _DEVICE_FLOATS
        c = self.plan.channels
        each = 2 * c * h * w + view.count * s * (2 * c * h + 3 * w + 2 * c * s)
        step = max(budget // each, 1)
        for start in range(0, len(index), step):
            rows = index[start : start + step]
            some = [p[rows] for p in params]
            pixels = self._pixels(tensors, rows, h, w)  # [b, W, C, H]
            products, means = self._geometry(pixels, view, some)
            first, last = int(rows[0]), int(rows[-1]) + 1
            gaps = last - first != len(rows)  # other images in between went the other way
            where = torch.from_numpy(rows).to(self.device) if gaps else slice(first, last)
            for v, p in enumerate(some):
                matrix, pull = (m[where, v] for m in maps)
                offset = self._colour.offset(pull, means[:, v])
                target = result[v, where].flatten(2)  # a view of the result unless there are gaps
                # [b, C, C] @ [b, C, size * size]; the product also moves the channels first.
                torch.baddbmm(offset, matrix, products[:, v].transpose(1, 2), out=target)
                self._colour.finish(target, p.solarise, target)
                if gaps:
                    result[v, where] = target.unflatten(2, (s, s))

    def _pixels(self, tensors: list[Tensor], rows: np.ndarray, h: int, w: int) -> Tensor:
        """float32 [b, W, C, H]; smaller images are padded, and the matrices ignore the padding."""
        parts = [tensors[i] for i in rows]
        if any(t.shape[:2] != (h, w) for t in parts):
            parts = [F.pad(t, (0, 0, 0, w - t.shape[1], 0, h - t.shape[0])) for t in parts]
        batch = torch.stack(parts).to(self.device, non_blocking=True).permute(0, 2, 3, 1)
        # Copying while still one byte per value moves a quarter of the memory.
        return batch.contiguous().to(torch.float32)

    def _geometry(self, pixels: Tensor, view: View, params: list[Params]) -> tuple[Tensor, Tensor]:
        """Crop, resize, flip and blur.

        Args:
            pixels: float32 [b, W, C, H].
            view: the view.
            params: V of `Params` over the b samples.

        Returns:
            [b, V, size * size, C], and the means of the channels before the blur [b, V, C].
        """
        b, w, c, h = pixels.shape
        v, s = view.count, view.size
        n = b * v
        box = [(p.top, p.height, p.rows, p.window_top) for p in params]
        box += [(p.left, p.width, p.columns, p.window_left) for p in params]
        packed = np.array(box, dtype=np.float32).reshape(2, v, 4, b).transpose(0, 2, 3, 1)
        y, x = torch.from_numpy(packed.reshape(2, 4, n)).to(self.device)
        flip = torch.from_numpy(np.stack([p.flip for p in params], 1).reshape(n)).to(self.device)
        my = resize_matrices(y, h, view)  # [n, s, H]
        mx = resize_matrices(x, w, view, flip)  # [n, s, W]
        # The mean of the view is linear too: the mean of the rows of My and of Mx.
        lines = torch.bmm(mx.mean(1).view(b, v, w), pixels.view(b, w, c * h)).view(b, v, c, h)
        means = torch.einsum("bvch,bvh->bvc", lines, my.mean(1).view(b, v, h))
        blurred = np.stack([p.blur for p in params], 1).reshape(n)
        if blurred.any():
            where = torch.from_numpy(np.flatnonzero(blurred)).to(self.device)
            sigma = np.stack([p.sigma for p in params], 1).reshape(n)[blurred]
            spread = blur_matrices(sigma, s, view.blur_radius, self.device)  # [., s, s]
            my[where] = torch.bmm(spread, my[where])
            mx[where] = torch.bmm(spread, mx[where])
        lines = torch.bmm(mx.view(b, v * s, w), pixels.view(b, w, c * h))  # [b, V s, C H]
        out = torch.bmm(my, lines.view(n, s * c, h).transpose(1, 2))  # [n, s, s * C]
        return out.view(b, v, s * s, c), means


class _Crops:
    """Makes the copies of a view of large images, one image after the other, on the CPU."""

    def __init__(
        self,
        view: View,
        params: list[Params],
        colour: Colour,
        maps: tuple[Tensor, Tensor],
        result: Tensor,
    ):
        boxes = [
            (p.top, p.left, p.top + p.height, p.left + p.width, p.rows, p.columns)
            + (p.window_top, p.window_left, p.flip)
            for p in params
        ]
        self._boxes = np.array(boxes).transpose(2, 0, 1).tolist()  # [B][V][9]
        seen = np.stack([p.blur & (p.sigma > _LEAST_SIGMA) for p in params], 1)  # [B, V]
        sigma = np.stack([p.sigma for p in params], 1)
        # Of each image: which copies are blurred, and by how much.
        self._sigmas = [
            {int(v): float(sigma[i, v]) for v in np.flatnonzero(row)} for i, row in enumerate(seen)
        ]
        self._taps = torch.from_numpy(gaussian(sigma.ravel(), view.blur_radius))
        self._taps = self._taps.view(*sigma.shape, -1)  # [B, V, radius + 1]
        self._solarise = np.stack([p.solarise for p in params], 1)  # [B, V]
        self._view, self._colour, self._maps, self._result = view, colour, maps, result
        self._pixels = torch.empty(view.count, view.size, view.size, result.shape[2])
        self._places = [p[None].permute(0, 3, 1, 2) for p in self._pixels]

    def __call__(self, image: Tensor, i: int) -> None:
        """Makes the copies of image i, [H, W, C], into their place in the result."""
        s, array, pixels = self._view.size, image.numpy()[None], self._pixels
        c = pixels.shape[3]
        for box, to in zip(self._boxes[i], self._places, strict=True):
            self._cut(array, box, to)
        means = pixels.view(-1, s, s * c).mean(1).view(-1, s, c).mean(1)  # fast: by lines
        # The product also moves the channels first. Colour is affine, so blur may follow it.
        planes = torch.bmm(self._maps[0][i], pixels.view(-1, s * s, c).transpose(1, 2))
        if self._sigmas[i]:
            blur(planes.view(-1, c, s, s), self._sigmas[i], self._taps[i])
        planes += self._colour.offset(self._maps[1][i], means)
        self._colour.finish(planes, self._solarise[i], self._result[:, i].flatten(2))

    def _cut(self, array: np.ndarray, box: list[int], to: Tensor) -> None:
        """Crops [1, H, W, C], resizes and flips, into float32 [1, C, s, s]."""
        top, left, bottom, right, h, w, y, x, flip = box
        # numpy copies lines at once; and torch keeps the channels last where the batch axis was
        # there before they moved.
        cut = torch.from_numpy(array[:, top:bottom, left:right].copy()).permute(0, 3, 1, 2)
        cut = F.interpolate(cut, (h, w), mode=self._view.interpolation, antialias=True)
        if cut.shape != to.shape:
            cut = cut[:, :, y : y + to.shape[2], x : x + to.shape[3]]
        to.copy_(cut.flip(3) if flip else cut)


def resize_matrices(box: Tensor, full: int, view: View, flip: Tensor | None = None) -> Tensor:
    """Rows of antialiased resize weights, as PIL and torch (antialias=True) compute them.

    Args:
        box: float32 [4, n]: start and length of the crop in the source, length of the resized
            crop, and start of the view in that; pixels.
        full: length of the source, padding included.
        view: gives size and interpolation.
        flip: bool [n], whether each output is reversed.

    Returns:
        float32 [n, size, full]; each row sums to one.
    """
    start, length, resized, window = box[:, :, None]  # [n, 1] each
    i = torch.arange(view.size, dtype=torch.float32, device=box.device)[None]
    if flip is not None:
        i = torch.where(flip[:, None], view.size - 1 - i, i)
    step = length / resized
    wide = step.clamp(min=1)  # the filter widens when shrinking: that is the antialiasing
    centre = ((i + window + 0.5) * step + start) / wide  # [n, size]
    j = torch.arange(full, dtype=torch.float32, device=box.device)[None]
    at = (j + 0.5) / wide  # [n, full]
    d = (at[:, None, :] - centre[:, :, None]).abs_()
    if view.interpolation == "bilinear":
        weights = d.neg_().add_(1).clamp_(min=0)
    else:
        # Keys' cubic with a = -0.5 in terms of q = max(2 - |d|, 0) and m = max(1 - |d|, 0):
        # q^2 (q - 1) / 2 + m^2 (3 - 2 q); the first term alone is its outer branch.
        q = d.neg_().add_(2).clamp_(min=0)
        m = (q - 1).clamp_(min=0)
        inner = torch.mul(q, -2).add_(3).mul_(m).mul_(m)
        weights = torch.mul(q, q).mul_(q.sub_(1)).mul_(0.5).add_(inner)
    inside = (j >= start) & (j < start + length)
    weights.mul_(inside[:, None, :])
    return weights.div_(weights.sum(2, keepdim=True))
