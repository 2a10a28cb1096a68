"""The fast executor: makes the views of a whole batch, in data workers or on a GPU.

Crop, antialiased resize, flip and Gaussian blur are all linear and separable, so one view is

    out = My @ image @ Mx^T,    M = blur @ resize  (of the crop; rows of Mx reversed to flip)

with small matrices My [size, H] and Mx [size, W] per sample, built for the whole batch at once and
applied by two batched products; blur adds no cost. My with reversed rows turns it upside down; a
quarter turn exchanges both axes of the product. Brightness, contrast, saturation, hue, grey and
normalisation are affine in the colour of a pixel. They are composed into one 3x4 matrix per sample,
applied by a third product whose output is the result.

On the CPU, large images are processed one by one instead: a matrix over the side of a photograph is
slower than torch's uint8 resize of the crop, which skips pixels outside. See `MATRIX_COST`.

Parameters (`draw`) and operations are those of `ReferenceViews`, with these differences (in levels
of 255; measured by `benchmarks/views.py --deviations` on photographs, 32 px by matrices and 224 px
by crops):

* No rounding to 8 bits between operations or at the end: mean 0.27 levels by matrices.
  torchvision truncates after brightness, contrast, saturation and grey: 0.4 to 0.5 darker each.
* Clamping to 0..255 only at the end, not between operations nor between the axes of a bicubic
  resize by matrices: 99 % of values within 0.8 levels, largest 11 (crops: 0). Jitter without hue:
  mean 1.4 to 1.5 levels, of which 1.3 to 1.4 is the truncation above; 99 % within 10.
* Hue is rotated about the grey axis of RGB (which keeps r + g + b), not in HSV (which keeps the
  largest and smallest of r, g, b): for shifts up to 0.1, mean absolute difference 5 levels, bias
  0.3 to 0.6, and 2 to 3 % less variance. The often used rotation in YIQ differs more from HSV.
* Crops skip a blur with sigma below 0.22 pixels, where a neighbour's weight is below 1 / 30,000,
  and taps beyond 4.5 sigma. Blur in total: mean 0.2 to 0.3, from the rounding above.
* The threshold of solarising is half a level lower, which corresponds to 128 before rounding.

The same batch gives bitwise the same result, and the parameters of a sample never depend on its
batch. Its pixels did not either in our tests on CPUs, but BLAS libraries do not guarantee that.
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
from nolabel.views.colour import Colour, Effects
from nolabel.views.draw import Params, draw
from nolabel.views.executor import Executor
from nolabel.views.images import Images, image_list, key_array
from nolabel.views.plan import View, ViewPlan

# On the CPU, a view is made by matrices if it takes at most MATRIX_COST + MATRIX_COST_ONCE / size^2
# multiplications per pixel and channel of the output (it takes H * W / size + W), else by cropping
# first. The second term stands for the fixed cost of a crop. Measured at view sizes 16..224 and
# image sides 32..320, on one core.
MATRIX_COST, MATRIX_COST_ONCE = 200, 1_000_000
# Largest number of floats of a chunk of the batch. On the CPU a few megabytes, measured to be the
# best trade-off between call overhead and cache misses; on a GPU a small share of its memory.
_CPU_FLOATS, _DEVICE_FLOATS = 2**21, 2**28
_MIN_SIGMA = 0.22  # pixels; below, a neighbour's weight is under 1 / 30,000 and blur is skipped


class FastViews(Executor):
    """Makes the views of a plan, a batch at a time.

    Args:
        plan: the views.
        seed: seed of the run.
        device: device of the computation and of the result.
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
            images: uint8 [B, H, W, C], or B of uint8 or uint16 [H_i, W_i, C]; C as in the plan.
            keys: index of each image in its source, int [B]. The random parameters of an image
                depend on seed, epoch and key only.
            epoch: 0-based epoch.

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
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 is too coarse for pixels
            for view in self.plan.views:
                out[view.name] = result = self._empty(view, count)
                params = [drawn[view.name, v] for v in range(view.count)]
                maps = self._colour.maps(params)
                small = self._matrices_are_cheaper(heights, widths, view.size)
                index = np.flatnonzero(small)
                if len(index):
                    self._by_matrices(tensors, index, view, params, maps, result)
                if not small.all():
                    crops.append((_Crops(view, params, self._colour, maps, result), small))
            for i, image in enumerate(
                tensors
            ):  # all views of an image while it is in the CPU cache
                for make, small in crops:
                    if not small[i]:
                        make(image, i)
        return out

    def _empty(self, view: View, count: int) -> Tensor:
        """An uninitialised result, float32 [V, B, C, size, size]."""
        shape = (view.count, count, self.plan.channels, view.size, view.size)
        if self.device.type != "cpu":
            return torch.empty(shape, device=self.device)
        if self.shared:
            storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))
            strides = torch.empty(shape, device="meta").stride()
            return torch.empty(0).set_(storage, 0, shape, strides)
        return self._buffers.empty(shape)

    def _matrices_are_cheaper(
        self, heights: np.ndarray, widths: np.ndarray, size: int
    ) -> npt.NDArray[np.bool_]:
        """Which images are processed by matrices, bool [B].

        It depends on the size of the image only, not on the rest of the batch, so that an image
        always has the same views.
        """
        if self.device.type != "cpu":  # thousands of small kernels would be far slower on a GPU
            return np.ones(len(heights), dtype=bool)
        cost = heights * widths / size + widths
        return cost <= MATRIX_COST + MATRIX_COST_ONCE / size**2

    # -- matrices: many images at once -------------------------------------------------------

    def _by_matrices(
        self,
        tensors: list[Tensor],
        index: npt.NDArray[np.integer],
        view: View,
        params: list[Params],
        maps: tuple[Tensor, Tensor],
        result: Tensor,
    ) -> None:
        """Makes a view of the images in `index`, chunk by chunk.

        Args:
            tensors: B images [H_i, W_i, C].
            index: which of them, int [n], ascending.
            view: the view.
            params: V of `Params` over all B samples.
            maps: matrices A and Q of `Colour.maps`, [B, V, C, C] each.
            result: float32 [V, B, C, size, size], written at `index`.
        """
        s = view.size
        h = max(tensors[i].shape[0] for i in index)
        w = max(tensors[i].shape[1] for i in index)
        budget = _CPU_FLOATS if self.device.type == "cpu" else _DEVICE_FLOATS
        c = self.plan.channels
        per_image = 2 * c * h * w + view.count * s * (2 * c * h + 3 * w + 2 * c * s)
        step = max(budget // per_image, 1)
        for start in range(0, len(index), step):
            rows = index[start : start + step]
            chunk = [p[rows] for p in params]
            pixels = self._pixels(tensors, rows, h, w)  # [b, W, C, H]
            products, means = self._geometry(pixels, view, chunk)
            first, last = int(rows[0]), int(rows[-1]) + 1
            gaps = last - first != len(rows)  # images in between are made by crops
            where = torch.from_numpy(rows).to(self.device) if gaps else slice(first, last)
            for v, p in enumerate(chunk):
                matrix, pull = (m[where, v] for m in maps)
                offset = self._colour.offset(pull, means[:, v])
                target = result[v, where].flatten(2)  # a view of the result unless there are gaps
                # [b, C, C] @ [b, C, size * size]; the product also transposes to channels first.
                torch.baddbmm(offset, matrix, products[:, v].transpose(1, 2), out=target)
                self._colour.finish(target, Effects.of(p), target)
                if gaps:
                    result[v, where] = target.unflatten(2, (s, s))

    def _pixels(self, tensors: list[Tensor], rows: np.ndarray, h: int, w: int) -> Tensor:
        """The images `rows` as float32 [b, W, C, H]; padding of smaller ones has weight 0 later."""
        parts = [tensors[i] for i in rows]
        if any(t.shape[:2] != (h, w) for t in parts):
            parts = [F.pad(t, (0, 0, 0, w - t.shape[1], 0, h - t.shape[0])) for t in parts]
        batch = torch.stack(parts).to(self.device, non_blocking=True).permute(0, 2, 3, 1)
        # Transpose before converting to float32: bytes are a quarter of the memory traffic.
        return batch.contiguous().to(torch.float32)

    def _geometry(self, pixels: Tensor, view: View, params: list[Params]) -> tuple[Tensor, Tensor]:
        """Crops, resizes, flips, turns and blurs.

        Args:
            pixels: float32 [b, W, C, H].
            view: the view.
            params: V of `Params` over the b samples.

        Returns:
            float32 [b, V, size * size, C], and the channel means before the blur, [b, V, C].
        """
        b, w, c, h = pixels.shape
        v, s = view.count, view.size
        n = b * v
        box = [(p.top, p.height, p.rows, p.window_top) for p in params]
        box += [(p.left, p.width, p.columns, p.window_left) for p in params]
        packed = np.array(box, dtype=np.float32).reshape(2, v, 4, b).transpose(0, 2, 3, 1)
        y, x = torch.from_numpy(packed.reshape(2, 4, n)).to(self.device)
        flips = np.stack([p.symmetry for p in params], 2).reshape(3, n)  # of [3, b, V]
        reverse_x, reverse_y = torch.from_numpy(flips[:2]).to(self.device)
        my = resize_matrices(y, h, view, reverse_y)  # [n, s, H]
        mx = resize_matrices(x, w, view, reverse_x)  # [n, s, W]
        # The mean of the view is linear too: use the means of the rows of My and of Mx.
        lines = torch.bmm(mx.mean(1).view(b, v, w), pixels.view(b, w, c * h)).view(b, v, c, h)
        means = torch.einsum("bvch,bvh->bvc", lines, my.mean(1).view(b, v, h))
        blurred = np.stack([p.blur for p in params], 1).reshape(n)
        if blurred.any():
            where = torch.from_numpy(np.flatnonzero(blurred)).to(self.device)
            sigma = np.stack([p.sigma for p in params], 1).reshape(n)[blurred]
            kernels = blur_matrices(sigma, s, view.blur_radius, self.device)  # [., s, s]
            my[where] = torch.bmm(kernels, my[where])
            mx[where] = torch.bmm(kernels, mx[where])
        lines = torch.bmm(mx.view(b, v * s, w), pixels.view(b, w, c * h))  # [b, V s, C H]
        out = torch.bmm(my, lines.view(n, s * c, h).transpose(1, 2))  # [n, s, s * C]
        if flips[2].any():
            where = torch.from_numpy(np.flatnonzero(flips[2])).to(self.device)
            out[where] = out[where].view(-1, s, s, c).transpose(1, 2).reshape(-1, s, s * c)
        return out.view(b, v, s * s, c), means


class _Crops:
    """Makes the copies of a view of large images on the CPU, one image at a time.

    Args:
        view: the view, with V copies.
        params: V of `Params` over the B samples of the batch.
        colour: the colour operations.
        maps: matrices A and Q of `Colour.maps`, [B, V, C, C] each.
        result: float32 [V, B, C, size, size], written by each call.
    """

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
            + (p.window_top, p.window_left, *p.symmetry)
            for p in params
        ]
        self._boxes = np.array(boxes).transpose(2, 0, 1).tolist()  # [B][V][11]
        visible = np.stack([p.blur & (p.sigma > _MIN_SIGMA) for p in params], 1)  # [B, V]
        sigma = np.stack([p.sigma for p in params], 1)
        # For each image: copy that is blurred -> sigma.
        self._sigmas = [
            {int(v): float(sigma[i, v]) for v in np.flatnonzero(row)}
            for i, row in enumerate(visible)
        ]
        self._taps = torch.from_numpy(gaussian(sigma.ravel(), view.blur_radius))
        self._taps = self._taps.view(*sigma.shape, -1)  # [B, V, radius + 1]
        # Of each image, what follows the affine maps of its V copies.
        names = ("solarise", "noise", "noise_seed")
        fields = [np.stack([getattr(p, f) for p in params], 1) for f in names]  # [B, V] each
        self._effects = [Effects(*rows) for rows in zip(*fields, strict=True)]
        self._view, self._colour, self._maps, self._result = view, colour, maps, result
        self._pixels = torch.empty(view.count, view.size, view.size, result.shape[2])
        self._targets = [p[None].permute(0, 3, 1, 2) for p in self._pixels]  # [1, C, s, s] each

    def __call__(self, image: Tensor, i: int) -> None:
        """Makes the copies of image i, [H, W, C], and writes them to the result."""
        s, array, pixels = self._view.size, image.numpy()[None], self._pixels
        c = pixels.shape[3]
        for box, to in zip(self._boxes[i], self._targets, strict=True):
            self._cut(array, box, to)
        means = pixels.view(-1, s, s * c).mean(1).view(-1, s, c).mean(1)  # in two steps: faster
        # The product also makes it channels first. Colour is affine, so it may precede the blur.
        planes = torch.bmm(self._maps[0][i], pixels.view(-1, s * s, c).transpose(1, 2))
        if self._sigmas[i]:
            blur(planes.view(-1, c, s, s), self._sigmas[i], self._taps[i])
        planes += self._colour.offset(self._maps[1][i], means)
        self._colour.finish(planes, self._effects[i], self._result[:, i].flatten(2))

    def _cut(self, array: np.ndarray, box: list[int], to: Tensor) -> None:
        """Crops, resizes, flips and turns an image [1, H, W, C] into `to`, float32 [1, C, s, s]."""
        top, left, bottom, right, h, w, y, x, reverse_x, reverse_y, exchange = box
        # NumPy copies whole rows. With a batch axis before the permutation, torch recognises the
        # channels-last layout.
        crop = torch.from_numpy(array[:, top:bottom, left:right].copy()).permute(0, 3, 1, 2)
        crop = F.interpolate(crop, (h, w), mode=self._view.interpolation, antialias=True)
        if crop.shape != to.shape:
            crop = crop[:, :, y : y + to.shape[2], x : x + to.shape[3]]
        axes = [3] * reverse_x + [2] * reverse_y
        crop = crop.flip(axes) if axes else crop
        to.copy_(crop.transpose(2, 3) if exchange else crop)


def resize_matrices(box: Tensor, full: int, view: View, flip: Tensor | None = None) -> Tensor:
    """Matrices of crop and antialiased resize along one axis, as PIL and torch (antialias=True).

    Args:
        box: float32 [4, n], in pixels: start and length of the crop in the source, length of the
            resized crop, and start of the view in it.
        full: length of the source, padding included.
        view: the view; its size and interpolation are used.
        flip: bool [n], which outputs to reverse; None reverses none.

    Returns:
        float32 [n, size, full]; each row sums to one.
    """
    start, length, resized, window = box[:, :, None]  # [n, 1] each
    i = torch.arange(view.size, dtype=torch.float32, device=box.device)[None]
    if flip is not None:
        i = torch.where(flip[:, None], view.size - 1 - i, i)
    step = length / resized
    wide = step.clamp(min=1)  # antialiasing: the filter is wider when shrinking
    centre = ((i + window + 0.5) * step + start) / wide  # [n, size]
    j = torch.arange(full, dtype=torch.float32, device=box.device)[None]
    at = (j + 0.5) / wide  # [n, full]
    d = (at[:, None, :] - centre[:, :, None]).abs_()
    if view.interpolation == "bilinear":
        weights = d.neg_().add_(1).clamp_(min=0)
    else:
        # Keys' cubic with a = -0.5 in terms of q = max(2 - |d|, 0) and m = max(1 - |d|, 0):
        # q^2 (q - 1) / 2 + m^2 (3 - 2 q); for |d| >= 1 the second term is zero.
        q = d.neg_().add_(2).clamp_(min=0)
        m = (q - 1).clamp_(min=0)
        inner = torch.mul(q, -2).add_(3).mul_(m).mul_(m)
        weights = torch.mul(q, q).mul_(q.sub_(1)).mul_(0.5).add_(inner)
    inside = (j >= start) & (j < start + length)
    weights.mul_(inside[:, None, :])
    return weights.div_(weights.sum(2, keepdim=True))
