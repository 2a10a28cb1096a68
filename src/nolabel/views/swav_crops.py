"""The crops of SwAV and DeepCluster v2, which share them in the official code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SwAVCrops:
    """Options of `multi_crop` as SwAV and DeepCluster v2 have them; defaults are theirs."""

    global_scale: tuple[float, float] = (0.14, 1.0)  # area of the two global crops, as share
    local_scale: tuple[float, float] = (0.05, 0.14)  # area of the local crops, as share
    local_crops: int = 6  # number of local crops; 0 = no multi-crop
    local_size: int = 96  # side of the local crops in pixels
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)  # b, c, s, hue; p 0.8
    grey: float = 0.2  # probability of a greyscale crop
    blur: float = 0.5  # probability of blur
    solarise: float = 0.0  # probability of solarising a global crop
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation, pixels
