"""The views, a batch at a time: the ordinary path, on CPU workers or on a device.

Crop, antialiased resize, flip and Gaussian blur are all linear and separable, so one view is

    out = My @ image @ Mx^T,    M = blur @ resize  (of the crop; rows of Mx reversed to flip)

with small matrices My [size, H] and Mx [size, W] per sample, built for the whole batch at once and
applied by two batched products; blur costs nothing extra.  Brightness, contrast, saturation, hue,
grey and the normalisation are affine in the colour of a pixel, so they are composed into one 3x4
matrix per sample, applied by a third product straight into the result.

Large images on the CPU go one by one instead: a matrix over a photograph's side costs more than
torch's uint8 resize of the crop, which skips what is outside.  See `MATRIX_COST`.

Same parameters as `ReferenceViews` (`draw`), same operations, except (levels are of 255; measured
by `benchmarks/views.py --deviations` on photographs, 32 px by matrices and 224 px by crops):

* No rounding to 8 bits between operations or at the end: mean 0.27 levels by matrices.
  torchvision truncates after brightness, contrast, saturation and grey: 0.4 to 0.5 darker each.
* No clamping to 0..255 but at the end, nor between the axes of a bicubic resize by matrices:
  99 % of values within 0.8 levels, largest 11 (crops: 0).  Of a whole jitter without hue: mean
  1.4 to 1.5 levels, of which 1.3 to 1.4 is the truncation above; 99 % within 10.
* Hue turns about the grey axis of RGB (keeping r + g + b) and not in HSV (keeping the largest and
  smallest of r, g, b): for shifts up to 0.1, mean 5 levels, little of it drift (0.3 to 0.6), and
  2 to 3 % less spread.  The same turn in YIQ, as often used, is further from HSV.
* Solarising's threshold is half a level lower, which is what 128 means before rounding.

The same batch gives the same bits again, and what is drawn for a sample never depends on its batch.
Nor did its bits in our tests on CPUs, but the libraries' products do not promise that.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from nolabel.views.draw import Params, draw
from nolabel.views.plan import SOLARISE_THRESHOLD, View, ViewPlan
from nolabel.views.reference import Images, image_list, key_array

# On the CPU a view is made by matrices up to this many multiplications per pixel and channel of
# the output (H * W / size + W of them); beyond, by cropping first.  The second term is what the
# fixed cost of a crop is worth: measured at sizes 16..224 and sides 32..320, one core.
MATRIX_COST, MATRIX_COST_ONCE = 200, 1_000_000
# Floats that a chunk of the batch may occupy: a few megabytes, measured best between the cost of
# calls and that of cache misses; on a device, a modest share of its memory.
_CPU_FLOATS, _DEVICE_FLOATS = 2**21, 2**28
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of grey
_BAND = 32  # rows of one block of the banded blur


class FastViews:
    """Makes the views of a plan.

    Args:
        plan: The views.
        seed: Seed of the run.
        device: Where the work is done and the result lies.
    """

    def __init__(self, plan: ViewPlan, seed: int = 0, device: torch.device | str = "cpu"):
        self.plan = plan
        self.seed = seed
        self.device = torch.device(device)
        mean, std = torch.tensor(plan.mean), torch.tensor(plan.std)
        # Pixels are in 0..255 until the colour matrix normalises them.
        self._scale = (1 / (255 * std)).to(self.device)  # [3]
        self._shift = (-mean / std).to(self.device)  # [3]
        pairs = zip(plan.mean, plan.std, strict=True)
        self._bounds = [(-m / s, (1 - m) / s) for m, s in pairs]  # black and white
        self._bases: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, images: Images, keys: npt.ArrayLike | Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Makes all views of a batch.

        Args:
            images: uint8 [B, H, W, 3], or B of uint8 [H_i, W_i, 3]; RGB.
            keys: Index of each image in its source, integers [B]; with seed and epoch, it alone
                decides what is drawn.
            epoch: Epoch.

        Returns:
            Name of the view -> float32 [V, B, 3, size, size], normalised, on the device.
        """
        tensors = image_list(images)
        count = len(tensors)
        heights = np.array([t.shape[0] for t in tensors], dtype=np.int64)
        widths = np.array([t.shape[1] for t in tensors], dtype=np.int64)
        drawn = draw(self.plan, heights, widths, key_array(keys, count), self.seed, epoch)
        out: dict[str, Tensor] = {}
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 would show in the pixels
            for view in self.plan.views:
                shape = (view.count, count, 3, view.size, view.size)
                out[view.name] = result = torch.empty(shape, device=self.device)
                params = [drawn[view.name, v] for v in range(view.count)]
                colour = self._colour(view, params)
                small = self._by_matrices_is_cheaper(heights, widths, view.size)
                index = np.flatnonzero(small)
                if len(index):
                    self._by_matrices(tensors, index, view, params, colour, result)
                for i in np.flatnonzero(~small):
                    self._by_crop(tensors[i], view, params, colour, int(i), result)
        return out

    def _by_matrices_is_cheaper(
        self, heights: np.ndarray, widths: np.ndarray, size: int
    ) -> npt.NDArray[np.bool_]:
        """Which images go by matrices.  By an image's own size: never by what else is there."""
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
        colour: tuple[Tensor, Tensor],
        result: Tensor,
    ) -> None:
        """Makes a view of the images in `index`, chunk by chunk, into `result`."""
        s = view.size
        h = max(tensors[i].shape[0] for i in index)
        w = max(tensors[i].shape[1] for i in index)
        budget = _CPU_FLOATS if self.device.type == "cpu" else _DEVICE_FLOATS
        step = max(budget // (6 * h * w + view.count * s * (6 * h + 3 * w + 6 * s)), 1)
        for start in range(0, len(index), step):
            rows = index[start : start + step]
            some = [p[rows] for p in params]
            pixels = self._pixels(tensors, rows, h, w)  # [b, W, 3, H]
            products, means = self._geometry(pixels, view, some)
            first, last = int(rows[0]), int(rows[-1]) + 1
            gaps = last - first != len(rows)  # other images in between went the other way
            where = torch.from_numpy(rows).to(self.device) if gaps else slice(first, last)
            for v, p in enumerate(some):
                matrix, offset = self._at_means(colour, v, where, means[:, v])
                target = result[v, where].flatten(2)  # a view of the result unless there are gaps
                # [b, 3, 3] @ [b, 3, size * size]; the product also moves the channels first.
                torch.baddbmm(offset, matrix, products[:, v].transpose(1, 2), out=target)
                self._finish(target, p.solarise)
                if gaps:
                    result[v, where] = target.unflatten(2, (s, s))

    def _pixels(self, tensors: list[Tensor], rows: np.ndarray, h: int, w: int) -> Tensor:
        """float32 [b, W, 3, H]; smaller images are padded, and the matrices ignore the padding."""
        parts = [tensors[i] for i in rows]
        if any(t.shape[:2] != (h, w) for t in parts):
            parts = [F.pad(t, (0, 0, 0, w - t.shape[1], 0, h - t.shape[0])) for t in parts]
        batch = torch.stack(parts).to(self.device, non_blocking=True).permute(0, 2, 3, 1)
        # Copying while still one byte per value moves a quarter of the memory.
        return batch.contiguous().to(torch.float32)

    def _geometry(self, pixels: Tensor, view: View, params: list[Params]) -> tuple[Tensor, Tensor]:
        """Crop, resize, flip and blur.

        Args:
            pixels: float32 [b, W, 3, H].
            view: The view.
            params: V of `Params` over the b samples.

        Returns:
            [b, V, size * size, 3], and the means of the channels before the blur [b, V, 3].
        """
        b, w, _, h = pixels.shape
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
        lines = torch.bmm(mx.mean(1).view(b, v, w), pixels.view(b, w, 3 * h)).view(b, v, 3, h)
        means = torch.einsum("bvch,bvh->bvc", lines, my.mean(1).view(b, v, h))
        blurred = np.stack([p.blur for p in params], 1).reshape(n)
        if blurred.any():
            where = torch.from_numpy(np.flatnonzero(blurred)).to(self.device)
            sigma = np.stack([p.sigma for p in params], 1).reshape(n)[blurred]
            blur = self._blur_matrices(view, sigma)  # [., s, s]
            my[where] = torch.bmm(blur, my[where])
            mx[where] = torch.bmm(blur, mx[where])
        lines = torch.bmm(mx.view(b, v * s, w), pixels.view(b, w, 3 * h))  # [b, V s, 3 H]
        out = torch.bmm(my, lines.view(n, s * 3, h).transpose(1, 2))  # [n, s, s * 3]
        return out.view(b, v, s * s, 3), means

    def _blur_matrices(self, view: View, sigma: npt.NDArray[np.floating]) -> Tensor:
        """Toeplitz matrices of the blur with reflected borders, [n, size, size]."""
        s, r = view.size, view.blur_radius
        if view.name not in self._bases:
            basis = torch.zeros(r + 1, s, s)
            i = torch.arange(s)
            for d in range(-r, r + 1):
                j = _reflect(i + d, s)
                basis[abs(d)].index_put_((i, j), torch.ones(()), accumulate=True)
            self._bases[view.name] = basis.view(r + 1, s * s).to(self.device)
        taps = torch.from_numpy(gaussian(sigma, r)).to(self.device)
        return (taps @ self._bases[view.name]).view(-1, s, s)

    # -- one by one --------------------------------------------------------------------------

    def _by_crop(
        self,
        image: Tensor,
        view: View,
        params: list[Params],
        colour: tuple[Tensor, Tensor],
        i: int,
        result: Tensor,
    ) -> None:
        """Makes a view of one large image uint8 [H, W, 3], into `result`[:, i]."""
        s = view.size
        for v, p in enumerate(params):
            top, left = int(p.top[i]), int(p.left[i])
            bottom, right = top + int(p.height[i]), left + int(p.width[i])
            x = image[top:bottom, left:right].permute(2, 0, 1)[None]  # channels last in memory
            size = [int(p.rows[i]), int(p.columns[i])]
            x = F.interpolate(x, size, mode=view.interpolation, antialias=True)
            top, left = int(p.window_top[i]), int(p.window_left[i])
            x = x[0, :, top : top + s, left : left + s]
            x = x.flip(2) if p.flip[i] else x
            pixels = x.contiguous().to(torch.float32)
            matrix, offset = self._at_means(colour, v, slice(i, i + 1), pixels.mean((1, 2))[None])
            if p.blur[i]:
                # Beyond 4.5 sigma the taps sum to less than a hundredth of a level.
                r = min(view.blur_radius, math.ceil(4.5 * float(p.sigma[i])))
                pixels = _blur(pixels, torch.from_numpy(gaussian(p.sigma[i : i + 1], r)[0]))
            target = result[v, i : i + 1].flatten(2)
            torch.baddbmm(offset, matrix, pixels.flatten(1)[None], out=target)
            self._finish(target, p.solarise[i : i + 1])

    # -- colour ------------------------------------------------------------------------------

    def _colour(self, view: View, params: list[Params]) -> tuple[Tensor, Tensor]:
        """`colour_matrices` of the copies, normalising, on the device: two of [V, B, 3, 3]."""
        maps = np.stack([colour_matrices(p) for p in params])  # [V, B, 2, 3, 3]
        both = torch.from_numpy(maps.astype(np.float32)).to(self.device) * self._scale[:, None]
        return both[:, :, 0].contiguous(), both[:, :, 1].contiguous()

    def _at_means(
        self, colour: tuple[Tensor, Tensor], v: int, where: slice | Tensor, means: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Matrix [b, 3, 3] and offset [b, 3, 1] of views whose channels have means [b, 3]."""
        matrix, pull = (m[v, where] for m in colour)
        return matrix, (pull * means[:, None, :]).sum(2, keepdim=True) + self._shift[:, None]

    def _finish(self, target: Tensor, solarise: npt.NDArray[np.bool_]) -> None:
        """Clamps normalised [b, 3, pixels] to black..white and solarises, in place."""
        for c, (low, high) in enumerate(self._bounds):
            target[:, c].clamp_(low, high)
        if solarise.any():
            where = torch.from_numpy(np.flatnonzero(solarise)).to(self.device)
            x = target[where]
            level = ((SOLARISE_THRESHOLD - 0.5) * self._scale + self._shift)[:, None]
            inverted = (255 * self._scale + 2 * self._shift)[:, None] - x
            target[where] = torch.where(x >= level, inverted, x)


def resize_matrices(box: Tensor, full: int, view: View, flip: Tensor | None = None) -> Tensor:
    """Rows of antialiased resize weights, as PIL and torch (antialias=True) compute them.

    Args:
        box: float32 [4, n]: start and length of the crop in the source, length of the resized
            crop, and start of the view in that; pixels.
        full: Length of the source, padding included.
        view: Gives size and interpolation.
        flip: bool [n]: reverse the output?

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


def colour_matrices(p: Params) -> npt.NDArray[np.float64]:
    """Jitter and grey as one map per sample, value = A pixel + Q mean.

    Contrast blends with the mean grey of the view as the operations before it left it, which is
    linear in the means of the view's channels; so all is known before a pixel is read.

    Args:
        p: Parameters of B samples.

    Returns:
        A and Q, float64 [B, 2, 3, 3].
    """
    n = len(p.grey)
    state = np.zeros((n, 2, 3, 3))
    state[:, 0] = np.eye(3)
    luma = np.array(_LUMA)
    if p.jitter.any():
        on = p.jitter[:, None]
        scale = np.where(on, p.factors[:, :3], 1.0)
        turn = _hue_matrices(np.where(p.jitter, p.factors[:, 3], 0.0))
        for op in p.order.T:  # op [n]: which operation comes now
            # Brightness scales; contrast and saturation blend with a grey, of the whole view or
            # of the pixel; hue rotates.
            f = np.where(op < 3, np.take_along_axis(scale, op.clip(max=2)[:, None], 1)[:, 0], 1.0)
            grey = luma @ state  # [n, 2, 3]
            mean = grey.sum(1)  # [n, 3]: the mean colour's grey
            rest = (1 - f)[:, None]
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


def gaussian(sigma: npt.NDArray[np.floating], radius: int) -> npt.NDArray[np.float32]:
    """Taps 0..radius of sampled Gaussians [n, radius + 1]; the whole kernel sums to one."""
    taps = np.exp(-0.5 * (np.arange(radius + 1) / sigma[:, None]) ** 2)
    return (taps / (2 * taps.sum(1, keepdims=True) - 1)).astype(np.float32)


def _reflect(i: Tensor, size: int) -> Tensor:
    """Indices mirrored into 0..size-1 without repeating the border."""
    i = i.abs()
    return torch.where(i >= size, 2 * (size - 1) - i, i)


def _blur(x: Tensor, half: Tensor) -> Tensor:
    """Blurs [3, s, s] on the CPU: on each axis, products of one small band matrix with blocks."""
    s, r = x.shape[2], len(half) - 1
    padded, distance = _band(s, r)
    band = F.pad(half, (0, 1))[distance][None]  # zero beyond r
    blocks, reach = -(-s // _BAND), _BAND + 2 * r
    rows = x.transpose(0, 1)[padded]  # [padded, 3, s]; the blocks are overlapping views of it
    rows = rows.as_strided((blocks, reach, 3 * s), (_BAND * 3 * s, 3 * s, 1))
    x = torch.bmm(band.expand(blocks, -1, -1), rows).view(-1, s)[: 3 * s]  # [s * 3, s]
    columns = x.index_select(1, padded)
    columns = columns.as_strided((blocks, 3 * s, reach), (_BAND, len(padded), 1))
    x = torch.bmm(columns, band.transpose(1, 2).expand(blocks, -1, -1))  # [blocks, s * 3, BAND]
    return x.view(blocks, s, 3, _BAND).permute(2, 1, 0, 3).reshape(3, s, -1)[..., :s].contiguous()


@functools.lru_cache(maxsize=64)
def _band(s: int, r: int) -> tuple[Tensor, Tensor]:
    """Indices of the reflected axis in whole blocks, and the tap [BAND, BAND + 2 r] of each entry.

    Block k of BAND outputs reads entries k * BAND .. (k + 1) * BAND + 2 r of the reflected axis.
    """
    blocks = -(-s // _BAND)
    padded = _reflect(torch.arange(-r, blocks * _BAND + r).clamp(max=s - 1 + r), s)
    distance = (torch.arange(_BAND)[:, None] + r - torch.arange(_BAND + 2 * r)).abs()
    return padded, distance.clamp(max=r + 1)
