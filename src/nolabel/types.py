"""Data types that several packages share.

Shape letters of all docstrings and comments:
    B  images in a batch          V  views (crops) of one image      N  any number of images
    C  channels                   H, W  height, width in pixels      h, w  the patch grid
    P  patches = h * w            R  prefix tokens (class token first, then registers)
    D  width of a token           K  prototypes (or classes)         L  layers
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nolabel.limits import BelowOne, Factor, NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a source, with the ground truth that the source has."""

    image: np.ndarray  # uint8 [H, W, C], RGB, EXIF orientation applied
    label: int | None = None
    text: str | None = None
    mask: np.ndarray | None = None  # uint8 [H, W], 1 = figure
    parts: np.ndarray | None = None  # uint8 [H, W], 0 = ground, 1.. = parts
    keypoints: np.ndarray | None = None  # float32 [points, 3]: x, y in pixels, visible 0 or 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The input of a method's step. Views are a tensor axis, not chunks of the batch."""

    views: Mapping[str, Tensor]  # name -> float [V, B, C, H, W], normalised
    keys: Tensor | None = None  # int64 [B]: index of each image in its source
    labels: Tensor | None = None  # int64 [B]
    text: tuple[str, ...] | None = None
    masks: Tensor | None = None
    skipped: tuple[tuple[str, str], ...] = ()  # (path, reason) of files that were replaced

    @property
    def size(self) -> int:
        """Number of images B (not of views)."""
        return next(iter(self.views.values())).shape[1]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""

        def move(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device, non_blocking=True)

        views = {name: v.to(device, non_blocking=True) for name, v in self.views.items()}
        keys, labels, masks = move(self.keys), move(self.labels), move(self.masks)
        return dataclasses.replace(self, views=views, keys=keys, labels=labels, masks=masks)


@dataclass(frozen=True)
class Tokens:
    """A backbone's output."""

    pooled: Tensor  # [N, D]: the image's embedding
    patches: Tensor  # [N, P, D] (with `keep` only those), row by row
    grid: tuple[int, int]  # (h, w) of the full grid
    prefix: Tensor | None = None  # [N, R, D]: class token first, then registers


@dataclass(frozen=True)
class Step:
    """The result of a method's step."""

    loss: Tensor  # scalar
    logs: Mapping[str, Tensor | float] = field(default_factory=dict)  # scalars for metrics.jsonl
    features: Tensor | None = None  # [B, D] embedding of the evaluated branch, for the signals


@dataclass(frozen=True)
class Clock:
    """The position in training, in optimiser steps. Every schedule is a pure function of it."""

    step: int  # 0-based index of the next update
    total: int  # steps of the run
    steps_per_epoch: int
    began: int = 0  # step at which rate, decay and momentum began; above 0 if a run went on

    @property
    def epoch(self) -> int:
        """0-based epoch of this step."""
        return self.step // self.steps_per_epoch

    @property
    def since(self) -> int:
        """Steps since the schedules began."""
        return self.step - self.began

    @property
    def length(self) -> int:
        """Steps from the beginning of the schedules to the end of the run."""
        return self.total - self.began

    @property
    def epochs(self) -> float:
        """Length of the run in epochs."""
        return self.total / self.steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimiser of a run. Learning rates are used as given, not scaled by batch size."""

    name: str = "adamw"  # adamw | sgd | lars | larc
    lr: NotNegative = 5e-4  # peak learning rate
    lr_plain: NotNegative | None = None  # peak of 1-D tensors and biases; None = lr
    lr_start: NotNegative = 0.0  # at the first step of the warm-up
    lr_end: NotNegative = 1e-6  # at the end of the cosine
    warmup_epochs: NotNegative = 10.0  # epochs in which the rate rises linearly
    weight_decay: NotNegative = 0.04  # of matrices and tokens; 1-D tensors and biases have none
    decay_all: bool = False  # 1-D tensors and biases decay too (MoCo v3, SwAV)
    undecayed: tuple[str, ...] = ()  # ends of names of tensors without decay, such as pos_embed
    decayed: tuple[str, ...] = ()  # of 1-D tensors that decay all the same, such as mask_token
    weight_decay_end: NotNegative | None = None  # cosine from weight_decay to this; None = constant
    beta1: BelowOne = 0.9  # momentum of sgd and lars
    beta2: BelowOne = 0.999  # of adamw
    eps: Positive = 1e-8  # of adamw
    layer_decay: Factor = 1.0  # rate of a ViT's block i of L is lr * layer_decay^(L - i)
    lr_patch: NotNegative = 1.0  # factor of a ViT's patch projection (DINOv2: 0.2)
    clip: Positive | None = None  # largest gradient norm; None = no clipping
    clip_by: str = "global"  # one norm for all; tensor: for each (DINO); module: each net (DINOv2)
