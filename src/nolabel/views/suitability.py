"""Which operations of the views suit a set of images, measured on a sample without labels.

Two questions are asked of each operation.

A flip or a turn: can turned images be distinguished from unturned ones? A small classifier and the
nearest neighbours answer, on the images that they were not fitted to. At chance (one half) the set
has no "up" (or no "left"), and the operation makes images that might be in the set.

A change of colours or of sharpness: how far does it move an image from itself, compared with its
distance from the other images? At 1, a changed image is as far from its original as from any other
one: what the images differ by is destroyed. The strength is then reduced until the ratio is at most
`MOST_MOVED`.

And of the set: do two crops of an image find each other among other images by colour alone? If so,
colour is a shortcut, and strong changes of it are needed. If not, images share colours, which may
be what tells kinds apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nolabel.views.fast import FastViews
from nolabel.views.plan import ViewPlan
from nolabel.views.view import View

SIDE = 64  # pixels of a side of the sample's images
LEAST_IMAGES = 32  # fewer say nothing
LEAST_COLOUR = 0.02  # of the range; JPEG files of grey images reach about 0.01
LEAST_FOR_DETECTION = 200  # fewer images do not show that there is no up
# Accuracy up to which turned images count as undetected. By chance the best of the
# three classifiers tells 0.53 (256 images) to 0.55 (128) of random textures, seldom more than this.
MOST_DETECTED = 0.59
MOST_MOVED = 0.7  # distance from itself over distance from others
STRENGTHS = (1.0, 0.75, 0.5, 0.25)  # of the usual one; the largest that suits is taken, or 0

# The strongest of the recipes. Grey and solarise are on or off; blur is in pixels at 224 pixels.
USUAL = {
    "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.4, "grey": 1.0, "blur": 2.0,
    "solarise": 1.0, "noise": 0.1,
}  # fmt: skip
JITTER = ("brightness", "contrast", "saturation", "hue")
# `colour_matches`: area of the crops, their side in pixels (fine patterns of colour are averaged,
# whatever the size of the images), and how many others there are.
CROPS, CROP_SIDE, AMONG = (0.3, 1.0), 16, 30
EQUAL = 1e-6  # largest difference of the cosines of equal colours
BINS = 6  # of a channel's share of a pixel's brightness: coarse, weak changes hide less than that
OF_COLOUR = ("saturation", "hue", "grey")
SWITCHED = ("grey", "solarise")
ORIENTATIONS = ("flip", "vertical_flip", "quarter_turns")

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Operations:
    """What operations do to the images of a set.

    Attributes:
        images: size of the sample.
        colour: root mean square of the pixels' differences from grey, as a share of the range.
        colour_spread: share of the squared distance between images that is colour, 0..1.
        detected: for each of `ORIENTATIONS`, the accuracy of detecting that an image was flipped
            or turned, 0.5 (chance) to 1.
        moved: for each of `USUAL` that applies, the median distance of a changed image from its
            original over that from the other images; at the usual strength.
        strength: for each of these, the share of the usual strength that suits the set, 0..1.
        colour_matches: how often a crop is more like the other crop of its image than like those of
            `AMONG` other images by its colours alone, 0..1; 1 for runs that did not measure it.
    """

    images: int
    colour: float
    colour_spread: float
    detected: Mapping[str, float]
    moved: Mapping[str, float]
    strength: Mapping[str, float]
    colour_matches: float = 1.0

    @property
    def colourful(self) -> bool:
        """Whether the images hold colour: files in RGB may be grey."""
        return self.colour >= LEAST_COLOUR

    def tolerated(self, orientation: str) -> bool:
        """Whether images that were flipped or turned cannot be detected; see `ORIENTATIONS`.

        A quarter turn is also a turn upside down half the time.
        """
        names = ("vertical_flip", "quarter_turns") if orientation == "quarter_turns" else ()
        undetected = all(self.detected[name] <= MOST_DETECTED for name in (*names, orientation))
        return undetected and self.images >= LEAST_FOR_DETECTION


def measure_operations(
    images: Pixels, details: Pixels | None = None, *, blur_sigma: float = 2.0
) -> Operations | None:
    """Measures all operations on a sample.

    Args:
        images: whole images, shrunk: uint8 [N, S, S, C].
        details: parts of the same images at the scale of the network's input, on which blur is
            measured: uint8 [N, S, S, C]; None: the images.
        blur_sigma: usual standard deviation of the blur in pixels of `details`.

    Returns:
        None for a sample of fewer than `LEAST_IMAGES` images, or of equal images.
    """
    if len(images) < LEAST_IMAGES or not np.ptp(images, axis=0).any():
        return None
    colour, spread = _colour(images)
    moved, strength = {}, {}
    for name in USUAL:
        if name in OF_COLOUR and (images.shape[3] != 3 or colour < LEAST_COLOUR):
            continue
        of = details if name == "blur" and details is not None else images
        usual = blur_sigma if name == "blur" else USUAL[name]
        most = _moved(of, operation(name, usual))
        moved[name] = round(most, 3)
        shares = STRENGTHS[:1] if name in SWITCHED else STRENGTHS
        found = (s for s in shares if (most if s == 1 else _moved(of, operation(name, s * usual)))
                 <= MOST_MOVED)  # fmt: skip
        strength[name] = next(found, 0.0)
    return Operations(
        images=len(images), colour=round(colour, 4), colour_spread=round(spread, 4),
        detected=_all_detected(images), moved=moved, strength=strength,
        colour_matches=round(colour_matches(images), 3),
    )  # fmt: skip


def operation(name: str, strength: float) -> View:
    """A view that does one of `USUAL` to the whole image, always, and nothing else."""
    changes: dict[str, Any] = {"grey": {"grey": 1.0}, "solarise": {"solarise": (1.0,)},
        "noise": {"noise": 1.0, "noise_sigma": (strength, strength)},
        "blur": {"blur": (1.0,), "blur_sigma": (strength, strength)},
    }.get(name) or {"jitter": tuple(strength if name == n else 0.0 for n in JITTER)}  # fmt: skip
    return View(name=name, size=SIDE, scale=None, flip=0.0, jitter_p=1.0, **changes)


def changed(images: Pixels, view: View) -> Values:
    """A view of each whole image, in 0..1.

    Args:
        images: uint8 [N, S, S, C].
        view: of `operation`.

    Returns:
        float32 [N, C, S, S].
    """
    channels = images.shape[3]
    view = dataclasses.replace(view, size=images.shape[1])
    plan = ViewPlan(views=(view,), mean=(0.0,) * channels, std=(1.0,) * channels)
    return FastViews(plan)(images, np.arange(len(images)), 0)[view.name][0].numpy()


def _colour(images: Pixels) -> tuple[float, float]:
    """`colour` and `colour_spread` of `Operations`."""
    if images.shape[3] != 3:
        return 0.0, 0.0
    x = images.astype(np.float32) / 255
    chroma = x - x.mean(3, keepdims=True)
    between = x - x.mean(0)
    grey = between.mean(3, keepdims=True)
    whole = float((between**2).sum())
    share = float(((between - grey) ** 2).sum()) / whole if whole else 0.0
    return float(np.sqrt((chroma**2).mean())), share


def colour_matches(images: Pixels) -> float:
    """`colour_matches` of `Operations`; 0 for other than three channels.

    Colours are shares of a pixel's brightness, so that light and shadow do not count.

    Args:
        images: uint8 [N, S, S, C].
    """
    n, channels = len(images), images.shape[3]
    if channels != 3:
        return 0.0
    view = View(name="crop", size=CROP_SIDE, scale=CROPS)
    make = FastViews(ViewPlan(views=(view,), mean=(0.0,) * 3, std=(1.0,) * 3))
    a, b = (_colours(make(images, np.arange(n), epoch)["crop"][0].numpy()) for epoch in (0, 1))
    alike = a @ b.T
    own = np.diagonal(alike)[:, None]
    equal = (np.abs(alike - own) < EQUAL).sum(1) - 1  # as of images without colour
    nearer = ((alike > own + EQUAL).sum(1) + equal / 2) / (n - 1)
    return float(((1 - nearer) ** AMONG).mean())


def _colours(crops: Values) -> Values:
    """Histograms of the hue and saturation of pixels, of unit length: [N, `BINS`**2].

    Args:
        crops: float [N, 3, S, S] in 0..1.
    """
    shares = crops / (crops.sum(1, keepdims=True) + 3e-3)
    bins = np.minimum((shares[:, :2] * BINS).astype(int), BINS - 1)
    codes = (bins[:, 0] * BINS + bins[:, 1]).reshape(len(crops), -1)
    counts = np.stack([np.bincount(c, minlength=BINS**2) for c in codes])
    return np.sqrt(counts / counts.sum(1, keepdims=True))


def _moved(images: Pixels, view: View) -> float:
    """Median distance of a changed image from its original, over that from the other images."""
    images = images[:: max(len(images) // 128, 1)]
    n = len(images)
    own, other = images.astype(np.float32) / 255, changed(images, view).transpose(0, 2, 3, 1)
    if view.solarise[0]:  # inverts on purpose: what is destroyed are edges
        own, other = _gradients(own)[0], _gradients(other)[0]
    distances = _distances(other.reshape(n, -1), own.reshape(n, -1))
    itself = np.diagonal(distances).copy()
    others = np.median(distances[~np.eye(n, dtype=bool)].reshape(n, n - 1), axis=1)
    return float(np.median(itself / np.maximum(others, 1e-6)))


def _all_detected(images: Pixels) -> dict[str, float]:
    """`detected` of `Operations`: for each orientation, by the best of three classifiers."""
    if images.shape[1] >= SIDE:  # half the side is enough, and a quarter of the work
        n, side, _, channels = images.shape
        blocks = images[:, : side // 2 * 2, : side // 2 * 2].reshape(
            n, side // 2, 2, side // 2, 2, channels
        )
        images = blocks.mean((2, 4)).round().astype(np.uint8)
    here = _features(images)
    out = {}
    for name in ORIENTATIONS:
        found = [0.5]
        beside = _features(turned(images, name))
        for a, b in zip(here, beside, strict=True):
            both = np.concatenate([a, b])
            both = (both - both.mean(0)) / (both.std(0) + 1e-3)
            pair = both[: len(a)], both[len(a) :]
            found.append(_neighbours(*pair))
            if b is beside[0]:  # of the frame, a linear rule tells little
                found.append(_linear(*pair))
        out[name] = round(max(found), 3)
    return out


def turned(images: Pixels, orientation: str) -> Pixels:
    """The images flipped, or by quarter turns to the left and to the right in alternation.

    Args:
        images: uint8 [N, S, S, C].
        orientation: one of `ORIENTATIONS`.
    """
    if orientation == "flip":
        return images[:, :, ::-1]
    if orientation == "vertical_flip":
        return images[:, ::-1]
    out = np.rot90(images, 1, (1, 2)).copy()
    out[1::2] = np.rot90(images[1::2], 3, (1, 2))
    return out


def _features(images: Pixels) -> tuple[Values, Values]:
    """Features of the whole image and of the framed object, float [N, D] each."""
    x = images.astype(np.float32) / 255
    gradients = _gradients(x)
    return _whole(x, *gradients), _framed(*gradients)


def _whole(x: Values, size: Values, angle: Values) -> Values:
    """Coarse intensities and colours, and directions of the gradient, over the image: [N, D]."""
    n, side = len(x), x.shape[1]
    grey = x.mean(3)
    grid, fine = _cells(side, 4), _cells(side, 8)
    parts = [_pooled(grey, fine, fine)]
    if x.shape[3] == 3:
        parts += [_pooled(x[..., c] - grey, grid, grid) for c in (0, 1)]
    parts += _by_direction(size, angle, 8, grid, grid)
    return np.concatenate([p.reshape(n, -1) for p in parts], axis=1)


def _framed(size: Values, angle: Values) -> Values:
    """Edges in a frame around the object, wherever it is and however large: float [N, D].

    The frame is centred on the mean position of the edges, and its side is four of its standard
    deviations.
    """
    size = size / (size.mean((1, 2), keepdims=True) + 1e-3)
    energy = size**2 + 1e-6
    (y, sy), (x, sx) = (_centre(energy.sum(axis)) for axis in (2, 1))
    reach = 2 * np.sqrt((sy**2 + sx**2) / 2) + 2
    side, n = size.shape[1], len(size)
    ends = [(c - reach, c + reach) for c in (y, x)]
    fine, coarse = ([_cells(side, cells, *end) for end in ends] for cells in (6, 4))
    rows, columns = coarse
    parts = [_pooled(size, *fine), *_by_direction(size, angle % np.pi, 4, rows, columns, np.pi)]
    parts += _by_direction(size, angle, 8, rows, columns)
    return np.sqrt(np.concatenate([p.reshape(n, -1) for p in parts], axis=1))


def _centre(weights: Values) -> tuple[Values, Values]:
    """Mean position and standard deviation along an axis, [N] each, of weights [N, S]."""
    at = np.arange(weights.shape[1]) + 0.5
    share = weights / weights.sum(1, keepdims=True)
    mean = (share * at).sum(1)
    return mean, np.sqrt((share * (at - mean[:, None]) ** 2).sum(1))


def _gradients(x: Values) -> tuple[Values, Values]:
    """Length and angle of the gradient of the channel where it is longest: [N, S, S] each."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    dy, dx = x[:, 2:, 1:-1] - x[:, :-2, 1:-1], x[:, 1:-1, 2:] - x[:, 1:-1, :-2]
    squared = dy**2 + dx**2
    best = squared.argmax(3)[..., None]
    dy, dx, squared = (np.take_along_axis(v, best, 3)[..., 0] for v in (dy, dx, squared))
    return np.sqrt(squared), np.arctan2(dy, dx)


def _by_direction(
    size: Values, angle: Values, bins: int, rows: Values, columns: Values, turn: float = 2 * np.pi
) -> list[Values]:
    """Lengths of the gradient, pooled for each of some directions."""
    direction = (angle / turn * bins).round() % bins
    return [np.sqrt(_pooled(np.where(direction == d, size, 0), rows, columns)) for d in range(bins)]


def _cells(side: int, cells: int, start: Any = 0.0, end: Any = None) -> Values:
    """Weights of pixels in equal cells from `start` to `end`, float [n, cells, side].

    A pixel on an edge belongs to both cells by its shares, so that the cells of a mirrored image
    are those of the image, mirrored.
    """
    low, high = np.atleast_1d(start), np.atleast_1d(side if end is None else end)
    edges = low[:, None] + np.linspace(0, 1, cells + 1) * (high - low)[:, None]
    at = np.arange(side)
    first, last = edges[:, :-1, None], edges[:, 1:, None]
    inside = np.clip(np.minimum(at + 1, last) - np.maximum(at, first), 0, None)
    return (inside / np.maximum(last - first, 1e-6)).astype(np.float32)


def _pooled(x: Values, rows: Values, columns: Values) -> Values:
    """Means over the cells, [N, S, S] to [N, cells, cells]."""
    return rows @ x @ columns.transpose(0, 2, 1)


def _linear(here: Values, there: Values) -> float:
    """How often ridge regression tells which of the two is the turned one; by four folds."""
    fold = np.arange(len(here)) % 4
    right = 0.0
    for k in range(4):
        fit, held = fold != k, fold == k
        x = np.concatenate([here[fit], there[fit]])
        y = np.repeat([1.0, -1.0], fit.sum())
        kernel = x @ x.T / x.shape[1]
        alpha = np.linalg.solve(kernel + 0.3 * np.eye(len(x)), y)
        direction = alpha @ x
        difference = (here[held] - there[held]) @ direction
        right += float((difference > 0).sum()) + 0.5 * float((difference == 0).sum())
    return right / len(here)


def _neighbours(here: Values, there: Values) -> float:
    """How often the nearest of the other images, in both states, is in the image's own state."""
    same, other = _distances(here, here), _distances(here, there)
    own = np.eye(len(here), dtype=bool)
    same[own] = other[own] = np.inf
    near, far = same.min(1), other.min(1)
    return float((near < far).mean() + 0.5 * (near == far).mean())


def _distances(a: Values, b: Values) -> Values:
    """Euclidean distances of the rows, float [len(a), len(b)]."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squared, 0))
