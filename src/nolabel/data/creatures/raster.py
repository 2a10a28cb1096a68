"""Renders creatures: from arrays that describe scenes to pixels, parts and keypoints.

Many scenes are rendered at once. Lengths are in units of the image's side and become pixels last,
so that a scene looks the same at every size.
"""

from __future__ import annotations

import numpy as np

from nolabel.data.creatures.plans import KEYPOINTS, POSE, TONES, build

BLOBS = 4  # soft patches of another tint on each ground
MAX_PATTERN = 0.35  # largest darkening by stripes or spots
_CHUNK_PIXELS = 2**16  # pixels rendered at once; the working arrays fit the CPU cache

CREATURE = np.dtype(
    [
        ("kind", "i8"),  # index into KINDS
        ("colour", "i8"),  # index into COLOURS
        ("tones", "f8", (len(TONES), 3)),  # RGB in [0, 1] of each of TONES
        ("x", "f8"),  # position of the creature's origin, in image sides
        ("y", "f8"),
        ("size", "f8"),  # image sides per unit of the body plan
        ("angle", "f8"),  # radians, clockwise in the image
        ("flip", "?"),  # faces left
        ("pose", "f8", (POSE,)),  # pose numbers in [0, 1)
        (
            "skin",
            "f8",
            (5,),
        ),  # of the pattern, in [0, 1): strength, direction, frequency, phase, spots
    ]
)
GROUND = np.dtype(
    [
        ("colour", "i8"),  # index into COLOURS
        ("dark", "?"),
        ("base", "f8", (3,)),  # RGB in [0, 1] at one side of the gradient
        ("far", "f8", (3,)),  # RGB in [0, 1] at the other side
        ("angle", "f8"),  # direction of the gradient, radians
        ("blobs", "f8", (BLOBS, 3)),  # x, y, radius in image sides
        ("tints", "f8", (BLOBS, 3)),  # RGB added at the middle of each blob
    ]
)


def place(creatures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Builds creatures and moves them to their position, size and angle in the image.

    Args:
        creatures: [N] of dtype CREATURE.

    Returns:
        capsules: float64 [N, SLOTS, 6]: x0, y0, x1, y1, r0, r1 in image sides.
        parts: uint8 [N, SLOTS], indices into PARTS; 0 marks an unused slot.
        tones: uint8 [N, SLOTS], indices into TONES.
        keypoints: float64 [N, K, 3]: x, y in image sides and 1, or zeros where absent.
    """
    capsules, parts, tones, marks = build(creatures["kind"], creatures["pose"])
    mirror = np.where(creatures["flip"], -1.0, 1.0)[:, None]
    c, s = np.cos(creatures["angle"])[:, None], np.sin(creatures["angle"])[:, None]
    size, x, y = (creatures[name][:, None] for name in ("size", "x", "y"))

    def move(points: np.ndarray, i: int) -> None:
        px, py = points[..., i] * mirror, points[..., i + 1].copy()
        points[..., i] = x + size * (c * px - s * py)
        points[..., i + 1] = y + size * (s * px + c * py)

    move(capsules, 0)
    move(capsules, 2)
    capsules[..., 4:] *= size[..., None]
    move(marks, 0)
    marks[..., :2] *= marks[..., 2:]  # absent keypoints are all zero
    return capsules, parts, tones, marks


def _paint_grounds(grounds: np.ndarray, centres: np.ndarray) -> list[np.ndarray]:
    """Red, green and blue planes, each float32 [B, H, W] in [0, 1], of scenes without creatures.

    Args:
        grounds: [B] of dtype GROUND.
        centres: float32 [size], centres of the pixels in image sides.
    """
    g = {name: grounds[name].astype(np.float32) for name in ("base", "far", "blobs", "tints")}
    c, s = (f(grounds["angle"]).astype(np.float32)[:, None] for f in (np.cos, np.sin))
    ramp = (0.5 + 0.7 * s * (centres - 0.5))[:, :, None]
    ramp = ramp + (0.7 * c * (centres - 0.5))[:, None, :]
    base, step = g["base"], g["far"] - g["base"]
    planes = [base[:, i, None, None] + step[:, i, None, None] * ramp for i in range(3)]
    for k in range(BLOBS):
        x, y, r = (g["blobs"][:, k, i, None] for i in range(3))
        blob = (1 - ((centres - y) / r) ** 2)[:, :, None] - (((centres - x) / r) ** 2)[:, None, :]
        np.maximum(blob, 0, out=blob)
        blob *= blob
        for i, plane in enumerate(planes):
            plane += blob * g["tints"][:, k, i, None, None]
    return planes


def _pattern(creatures: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Darkening of each pixel by the skin's pattern: float32 [B, H, W] in [0, 1].

    Args:
        creatures: [B] of dtype CREATURE.
        centres: float32 [size], centres of the pixels in image sides.
    """
    strength, direction, frequency, phase, spots = creatures["skin"].T[..., None]
    angle = creatures["angle"][:, None] + np.pi * direction
    frequency = (1.2 + 1.6 * frequency) / creatures["size"][:, None]  # waves per image side

    def wave(angle: np.ndarray) -> np.ndarray:
        along = frequency * np.cos(angle) * (centres - creatures["x"][:, None]) + phase
        down = frequency * np.sin(angle) * (centres - creatures["y"][:, None])
        w = along.astype(np.float32)[:, None, :] + down.astype(np.float32)[:, :, None]
        w -= np.floor(w)
        w *= 1 - w
        w *= 4
        return w

    strength = np.where(strength < 0.3, 0, MAX_PATTERN * strength).astype(np.float32)[..., None]
    pattern = wave(angle)
    pattern *= np.where((spots < 0.5)[..., None], wave(angle + np.pi / 2), np.float32(1))
    return pattern * strength


def _render_chunk(
    creatures: np.ndarray, grounds: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 [B, H, W, 3], parts uint8 [B, H, W] and keypoints float32 [B, M * K, 3].

    Results must not depend on the batch. So pixels are computed with sums, products, roots and
    comparisons only, whose rounding does not depend on vectorisation; all other functions are
    evaluated per scene, in float64.
    """
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    n, number = creatures.shape
    planes = _paint_grounds(grounds, centres)
    parts = np.zeros((n, size, size), np.uint8)
    points = []
    for m in range(number):
        capsules, part_of, tones, marks = place(creatures[:, m])
        colours = creatures["tones"][:, m][np.arange(n)[:, None], tones].astype(np.float32)
        nearest = np.full(parts.shape, 1e3, np.float32)  # distance to the creature's outline
        for k in range(int((part_of > 0).sum(axis=1).max())):
            outside = _distance(capsules[:, k], part_of[:, k] > 0, centres)
            np.minimum(nearest, outside, out=nearest)
            cover = outside  # in place: the share of each pixel that the capsule covers
            cover *= -size
            cover += 0.5
            np.clip(cover, 0, 1, out=cover)
            for i, plane in enumerate(planes):
                change = colours[:, k, i, None, None] - plane
                change *= cover
                plane += change
            np.copyto(parts, part_of[:, k, None, None], where=cover > 0.5)
        # Shading: darker towards the outline, which also separates the creature from the ground.
        depth = np.clip(nearest * (-1 / 0.05), 0, 1)
        cover = np.clip(0.5 - nearest * size, 0, 1)
        shade = _pattern(creatures[:, m], centres)
        shade += 0.3 * (1 - depth) ** 2
        shade *= cover
        shade = 1 - shade
        for plane in planes:
            plane *= shade
        points.append(marks)
    images = np.empty((n, size, size, 3), np.uint8)
    for i, plane in enumerate(planes):
        plane *= 255
        plane += 0.5
        np.clip(plane, 0, 255, out=plane)
        images[..., i] = plane
    keypoints = np.concatenate(points, axis=1)
    keypoints[..., :2] *= size
    return images, parts, keypoints.astype(np.float32)


def _distance(capsule: np.ndarray, used: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Signed distance to one capsule per scene, negative inside: float32 [B, H, W] in image sides.

    Args:
        capsule: float64 [B, 6].
        used: bool [B]; an unused slot is far from every pixel.
        centres: float32 [size], centres of the pixels in image sides.
    """
    x0, y0, x1, y1, r0, r1 = capsule.T[..., None]  # each [B, 1]
    dx, dy = x1 - x0, y1 - y0
    square = np.maximum(dx * dx + dy * dy, 1e-12)
    r0 = np.where(used[:, None], r0, -1e3)  # an unused slot covers no pixel

    def single(a: np.ndarray) -> np.ndarray:
        return a.astype(np.float32)

    # t in [0, 1]: position on the segment of the point nearest to the pixel.
    t = single((centres - x0) * dx / square)[:, None, :]
    t = t + single((centres - y0) * dy / square)[:, :, None]
    np.clip(t, 0, 1, out=t)
    away = single(centres - x0)[:, None, :] - t * single(dx)[..., None]
    away *= away
    down = single(centres - y0)[:, :, None] - t * single(dy)[..., None]
    down *= down
    away += down
    np.sqrt(away, out=away)
    t *= single(r1 - r0)[..., None]
    away -= t
    away -= single(r0)[..., None]
    return away


def raster(
    creatures: np.ndarray, grounds: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renders scenes of M creatures each.

    Args:
        creatures: [N, M] of dtype CREATURE; later ones cover earlier ones.
        grounds: [N] of dtype GROUND.
        size: H = W, in pixels.

    Returns:
        images: uint8 [N, H, W, 3].
        parts: uint8 [N, H, W], indices into PARTS.
        keypoints: float32 [N, M * K, 3]: x, y in pixels from the top left corner and 1, or zeros
            where absent.
    """
    n = len(creatures)
    images = np.empty((n, size, size, 3), np.uint8)
    parts = np.empty((n, size, size), np.uint8)
    keypoints = np.empty((n, creatures.shape[1] * len(KEYPOINTS), 3), np.float32)
    # Creatures of the same kind have the same number of capsules: sorted, chunks skip the padding.
    order = np.argsort(creatures["kind"][:, 0], kind="stable")
    step = max(1, _CHUNK_PIXELS // size**2)
    for start in range(0, n, step):
        rows = order[start : start + step]
        chunk = _render_chunk(creatures[rows], grounds[rows], size)
        images[rows], parts[rows], keypoints[rows] = chunk
    return images, parts, keypoints
