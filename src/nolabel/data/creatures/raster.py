"""Rendering of creatures: from arrays of scenes to pixels, parts and keypoints.

Scenes are rendered many at once. Every length is in sides of the image until the last moment, so
the same scene comes out alike at every size.
"""

from __future__ import annotations

import numpy as np

from nolabel.data.creatures.plans import KEYPOINTS, POSE, TONES, build

BLOBS = 4  # soft patches of another tint on the ground
MAX_PATTERN = 0.35  # largest darkening by stripes or spots
RENDERED = 2**16  # pixels rendered at once: the working arrays stay in the processor's cache

CREATURE = np.dtype(
    [
        ("kind", "i8"),  # index into KINDS
        ("colour", "i8"),  # index into COLOURS
        ("tones", "f8", (len(TONES), 3)),  # RGB in [0, 1] of each of TONES
        ("x", "f8"),  # place of the creature's origin, in image sides
        ("y", "f8"),
        ("size", "f8"),  # image sides per unit of the body plan
        ("angle", "f8"),  # radians, clockwise as seen
        ("flip", "?"),  # looks to the left
        ("pose", "f8", (POSE,)),  # numbers in [0, 1) for the body plan
        ("skin", "f8", (5,)),  # strength, direction, frequency, phase and spottedness of a pattern
    ]
)
GROUND = np.dtype(
    [
        ("colour", "i8"),  # index into COLOURS
        ("dark", "?"),
        ("base", "f8", (3,)),  # RGB in [0, 1] at one side of the gradient
        ("far", "f8", (3,)),  # and at the other
        ("angle", "f8"),  # direction of the gradient, radians
        ("blobs", "f8", (BLOBS, 3)),  # x, y, radius in image sides
        ("tints", "f8", (BLOBS, 3)),  # RGB added at the middle of each blob
    ]
)


def placed(creatures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Capsules [N, S, 6], parts [N, S], tones [N, S] and keypoints [N, K, 3] in image sides."""
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
    marks[..., :2] *= marks[..., 2:]  # absent points are all zero
    return capsules, parts, tones, marks


def _paint_grounds(grounds: np.ndarray, at: np.ndarray) -> list[np.ndarray]:
    """Red, green and blue planes, each float32 [B, H, W], of empty scenes."""
    g = {name: grounds[name].astype(np.float32) for name in ("base", "far", "blobs", "tints")}
    c, s = (f(grounds["angle"]).astype(np.float32)[:, None] for f in (np.cos, np.sin))
    ramp = (0.5 + 0.7 * s * (at - 0.5))[:, :, None] + (0.7 * c * (at - 0.5))[:, None, :]
    base, step = g["base"], g["far"] - g["base"]
    planes = [base[:, i, None, None] + step[:, i, None, None] * ramp for i in range(3)]
    for k in range(BLOBS):
        x, y, r = (g["blobs"][:, k, i, None] for i in range(3))
        fall = (1 - ((at - y) / r) ** 2)[:, :, None] - (((at - x) / r) ** 2)[:, None, :]
        np.maximum(fall, 0, out=fall)
        fall *= fall
        for i, plane in enumerate(planes):
            plane += fall * g["tints"][:, k, i, None, None]
    return planes


def _pattern(creatures: np.ndarray, at: np.ndarray) -> np.ndarray:
    """How much the skin's pattern darkens each pixel: float32 [B, H, W] in [0, 1]."""
    strength, way, pitch, phase, spots = creatures["skin"].T[..., None]
    angle = creatures["angle"][:, None] + np.pi * way
    pitch = (1.2 + 1.6 * pitch) / creatures["size"][:, None]  # waves per image side

    def wave(angle: np.ndarray) -> np.ndarray:
        along = pitch * np.cos(angle) * (at - creatures["x"][:, None]) + phase
        down = pitch * np.sin(angle) * (at - creatures["y"][:, None])
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

    Per pixel there are only sums, products, roots and comparisons, which round alike in every
    batch; anything finer is computed per scene, in float64.
    """
    at = ((np.arange(size) + 0.5) / size).astype(np.float32)
    n, number = creatures.shape
    planes = _paint_grounds(grounds, at)
    parts = np.zeros((n, size, size), np.uint8)
    points = []
    for m in range(number):
        capsules, kinds, tones, marks = placed(creatures[:, m])
        colours = creatures["tones"][:, m][np.arange(n)[:, None], tones].astype(np.float32)
        nearest = np.full(parts.shape, 1e3, np.float32)  # distance to the creature's outline
        for k in range(int((kinds > 0).sum(axis=1).max())):
            outside = _distance(capsules[:, k], kinds[:, k] > 0, at)
            np.minimum(nearest, outside, out=nearest)
            cover = outside  # from here on, the share of each pixel that the capsule covers
            cover *= -size
            cover += 0.5
            np.clip(cover, 0, 1, out=cover)
            for i, plane in enumerate(planes):
                change = colours[:, k, i, None, None] - plane
                change *= cover
                plane += change
            np.copyto(parts, kinds[:, k, None, None], where=cover > 0.5)
        # Rounded bodies: darker towards the outline, which also sets them off from the ground.
        depth = np.clip(nearest * (-1 / 0.05), 0, 1)
        cover = np.clip(0.5 - nearest * size, 0, 1)
        shade = _pattern(creatures[:, m], at)
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


def _distance(capsule: np.ndarray, used: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Signed distance to one capsule a scene, negative inside: float32 [B, H, W]."""
    x0, y0, x1, y1, r0, r1 = capsule.T[..., None]  # each [B, 1]
    dx, dy = x1 - x0, y1 - y0
    square = np.maximum(dx * dx + dy * dy, 1e-12)
    r0 = np.where(used[:, None], r0, -1e3)  # an unused slot covers nothing

    def grid(a: np.ndarray) -> np.ndarray:
        return a.astype(np.float32)

    # t: where along the segment, 0 to 1, the point nearest to the pixel lies.
    t = grid((at - x0) * dx / square)[:, None, :] + grid((at - y0) * dy / square)[:, :, None]
    np.clip(t, 0, 1, out=t)
    away = grid(at - x0)[:, None, :] - t * grid(dx)[..., None]
    away *= away
    down = grid(at - y0)[:, :, None] - t * grid(dy)[..., None]
    down *= down
    away += down
    np.sqrt(away, out=away)
    t *= grid(r1 - r0)[..., None]
    away -= t
    away -= grid(r0)[..., None]
    return away


def raster(
    creatures: np.ndarray, grounds: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renders scenes of M creatures each.

    Args:
        creatures: [N, M] of dtype CREATURE; the last of a scene is the nearest.
        grounds: [N] of dtype GROUND.
        size: H = W, in pixels.

    Returns:
        images: uint8 [N, H, W, 3].
        parts: uint8 [N, H, W], indices into PARTS.
        keypoints: float32 [N, M * K, 3]: x, y in pixels from the corner, and 1 where present.
    """
    n = len(creatures)
    images = np.empty((n, size, size, 3), np.uint8)
    parts = np.empty((n, size, size), np.uint8)
    keypoints = np.empty((n, creatures.shape[1] * len(KEYPOINTS), 3), np.float32)
    # Creatures of equal kind have equally many capsules: together they need no padding.
    order = np.argsort(creatures["kind"][:, 0], kind="stable")
    step = max(1, RENDERED // size**2)
    for start in range(0, n, step):
        rows = order[start : start + step]
        chunk = _render_chunk(creatures[rows], grounds[rows], size)
        images[rows], parts[rows], keypoints[rows] = chunk
    return images, parts, keypoints
