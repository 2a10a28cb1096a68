"""Creatures in motion: short videos with a mask of every creature in every frame.

A video begins as a scene (`draw_scene`) whose creatures then walk, turn and move their limbs along
smooth closed paths, in front of a ground that drifts; they pass in front of each other. Everything
follows from (seed, split, index), so that nothing is stored.
"""

from __future__ import annotations

import numpy as np

from nolabel.data.creatures.plans import POSE
from nolabel.data.creatures.raster import raster
from nolabel.data.creatures.world import _check_size, _uniform, draw_scene
from nolabel.errors import UsageError

FRAMES = 24
_STREAM = 40  # of random numbers, beyond those of scenes
_STEP = 0.16  # of a path, at most, in image sides
_SWAY = 0.25  # of the angle, radians
_LIMBS = 0.2  # of pose numbers


def draw_video(
    index: int,
    *,
    frames: int = FRAMES,
    size: int = 64,
    creatures: int = 2,
    split: str = "test",
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """A video and the truth about it.

    Args:
        index: 0 or more.
        frames: T, 2 or more.
        size: of the frames in pixels.
        creatures: 1 to 4.
        split: "train" or "test".
        seed: of the whole world.

    Returns:
        uint8 [T, size, size, 3], and uint8 [T, size, size]: 0 is ground, 1.. are the creatures,
        the nearest where they overlap.
    """
    _check_size(size)
    if frames < 2:
        raise UsageError(f"A video has 2 frames or more, not {frames}.")
    scene = draw_scene(index, split=split, seed=seed, creatures=creatures)
    moving = np.repeat(scene.creatures[None], frames, 0)  # [T, M]
    ground = np.repeat(scene.ground[None], frames)
    time = 2 * np.pi * np.arange(frames) / FRAMES  # a round in FRAMES frames
    for m in range(creatures):
        u = _uniform(seed, split, np.array([index]), _STREAM + m, 8 + 2 * POSE)[0]
        wave = np.sin(time[:, None] + 2 * np.pi * u[:4]) - np.sin(2 * np.pi * u[:4])  # 0 at first
        moving["x"][:, m] += _STEP * (0.4 + 0.6 * u[4]) * wave[:, 0]
        moving["y"][:, m] += _STEP * (0.4 + 0.6 * u[5]) * wave[:, 1]
        moving["angle"][:, m] += _SWAY * u[6] * wave[:, 2]
        limbs = np.sin(2 * time[:, None] + 2 * np.pi * u[8 : 8 + POSE])
        pose = moving["pose"][:, m] + _LIMBS * u[8 + POSE :] * limbs
        moving["pose"][:, m] = 1 - np.abs(1 - np.abs(pose) % 2)  # reflected into 0..1
    drift = _uniform(seed, split, np.array([index]), _STREAM + 8, 2)[0]
    ground["blobs"][:, :, 0] += 0.1 * (drift[0] - 0.5) * np.sin(time)[:, None]
    ground["blobs"][:, :, 1] += 0.1 * (drift[1] - 0.5) * np.sin(time)[:, None]
    images = raster(moving, ground, size)[0]
    masks = np.zeros((frames, size, size), np.uint8)
    for m in range(creatures):
        masks[raster(moving[:, m : m + 1], ground, size)[1] > 0] = m + 1
    return images, masks
