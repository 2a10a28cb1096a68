"""Short videos of moving creatures, with a mask of every creature in every frame.

The first frame is a scene (`draw_scene`). Its creatures then move, rotate and swing their limbs
along smooth closed paths, occlude each other, and the ground drifts. A video is a pure function of
(seed, split, index); nothing is stored.
"""

from __future__ import annotations

import numpy as np

from nolabel.data.creatures.plans import POSE
from nolabel.data.creatures.raster import raster
from nolabel.data.creatures.sampling import draw_scene, keyed_uniform
from nolabel.data.creatures.world import check_size
from nolabel.errors import UsageError

FRAMES = 24  # period of the motion, and default length
_STREAM = 40  # first stream of `keyed_uniform`; scenes use lower ones
_MOVE = 0.16  # largest amplitude of the position, in image sides
_SWAY = 0.25  # largest amplitude of the angle, in radians
_LIMBS = 0.2  # largest amplitude of the pose numbers


def draw_video(
    index: int,
    *,
    frames: int = FRAMES,
    size: int = 64,
    creatures: int = 2,
    split: str = "test",
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a video and its ground truth.

    Args:
        index: number of the video, 0 or more.
        frames: number of frames T, 2 or more.
        size: height and width in pixels, 16 or more.
        creatures: number of creatures, 1 to 4.
        split: "train" or "test".
        seed: seed of all scenes.

    Returns:
        Frames uint8 [T, size, size, 3], and masks uint8 [T, size, size]: 0 is ground, 1.. are the
        creatures (the visible one where they overlap).

    Raises:
        UsageError: an argument out of range.
    """
    check_size(size)
    if frames < 2:
        raise UsageError(f"A video has 2 frames or more, not {frames}.")
    scene = draw_scene(index, split=split, seed=seed, creatures=creatures)
    moving = np.repeat(scene.creatures[None], frames, 0)  # [T, M]
    ground = np.repeat(scene.ground[None], frames)
    time = 2 * np.pi * np.arange(frames) / FRAMES  # one period in FRAMES frames
    for m in range(creatures):
        u = keyed_uniform(seed, split, np.array([index]), _STREAM + m, 8 + 2 * POSE)[0]
        wave = np.sin(time[:, None] + 2 * np.pi * u[:4]) - np.sin(2 * np.pi * u[:4])  # 0 in frame 0
        moving["x"][:, m] += _MOVE * (0.4 + 0.6 * u[4]) * wave[:, 0]
        moving["y"][:, m] += _MOVE * (0.4 + 0.6 * u[5]) * wave[:, 1]
        moving["angle"][:, m] += _SWAY * u[6] * wave[:, 2]
        limbs = np.sin(2 * time[:, None] + 2 * np.pi * u[8 : 8 + POSE])
        pose = moving["pose"][:, m] + _LIMBS * u[8 + POSE :] * limbs
        moving["pose"][:, m] = 1 - np.abs(1 - np.abs(pose) % 2)  # reflected into [0, 1]
    drift = keyed_uniform(seed, split, np.array([index]), _STREAM + 8, 2)[0]
    ground["blobs"][:, :, 0] += 0.1 * (drift[0] - 0.5) * np.sin(time)[:, None]
    ground["blobs"][:, :, 1] += 0.1 * (drift[1] - 0.5) * np.sin(time)[:, None]
    images = raster(moving, ground, size)[0]
    masks = np.zeros((frames, size, size), np.uint8)
    for m in range(creatures):
        masks[raster(moving[:, m : m + 1], ground, size)[1] > 0] = m + 1
    return images, masks
