"""The network of `--init`; loaded early, because other settings depend on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nolabel.backbones import at_size
from nolabel.backbones.base import Backbone
from nolabel.config import Settings
from nolabel.encoders import load
from nolabel.errors import UsageError


@dataclass(frozen=True)
class InitNetwork:
    """The network of --init; position embeddings are interpolated to the run's image size."""

    backbone: Backbone
    rng_state: Tensor  # torch's after loading; the new heads are drawn from it


def load_init(s: Settings) -> InitNetwork:
    """Loads the network of --init at the run's image size.

    Raises:
        UsageError: its number of channels is not the run's.
    """
    torch.manual_seed(s.seed)
    backbone = at_size(load(str(s.init), device="cpu").backbone, s.image_size or 0)
    if backbone.channels != s.channels:
        raise UsageError(
            f"{s.init!r} takes images of {backbone.channels} channels, the run has {s.channels}. "
            f"Use --channels {backbone.channels}."
        )
    return InitNetwork(backbone, torch.get_rng_state())
