"""One picture, with the numbers behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture: pixels, what it shows, and the numbers behind it. Never writes itself."""

    name: str  # file stem
    image: np.ndarray  # uint8 [H, W, 3]
    caption: str
    data: Mapping[str, np.ndarray] = field(default_factory=dict)  # saved beside it as .npz
    numbers: Mapping[str, float] = field(default_factory=dict)
    frames: np.ndarray | None = None  # uint8 [T, H, W, 3]: the same as a film
    film: str = ""  # how a film is saved: webp or mp4
