"""One picture, with its measured numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture with its caption and numbers; `Pictures.save` writes it.

    Attributes:
        name: file stem.
        image: uint8 [H, W, 3].
        caption: what is shown, and the number with its baselines, in whole sentences.
        data: arrays of any shape, saved beside it as .npz.
        texts: files of text that belong to it, content by name.
        numbers: the numbers by name, written to numbers.json.
        frames: uint8 [T, H, W, 3], if it is also a video.
        video: format of the video: webp or mp4.
    """

    name: str
    image: np.ndarray
    caption: str
    data: Mapping[str, np.ndarray] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    frames: np.ndarray | None = None
    video: str = ""
