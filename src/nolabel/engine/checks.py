"""Checks of the shared settings, before any data are opened."""

from __future__ import annotations

from pathlib import Path

import torch

from nolabel import limits, recipes
from nolabel.config import CHOICES, LENGTHS, Settings, field_values
from nolabel.errors import UsageError, unknown


def check_settings(s: Settings) -> None:
    """Checks the shared settings before any data are opened.

    Raises:
        UsageError: an impossible value or combination.
    """
    if not s.data:
        raise UsageError("No data given. Use --data with a folder of images, or --data creatures.")
    values = field_values(s)
    lengths = [k for k in LENGTHS if values[k] is not None]
    if len(lengths) > 1:
        raise UsageError(f"Give one of --epochs, --steps, --minutes; got {' and '.join(lengths)}.")
    limits.check(s)
    for key, allowed in CHOICES.items():
        if values[key] not in allowed:
            raise unknown(key.replace("_", "-"), values[key], allowed)
    if s.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but torch finds no CUDA device. Use --device cpu.")
    if (s.mean is None) != (s.std is None):
        raise UsageError("--mean and --std belong together: give both or neither.")
    if s.mean is not None and not len(s.mean) == len(s.std or ()) == s.channels:
        raise UsageError(f"--mean and --std need one number for each of {s.channels} channels.")
    if s.shard and s.init_guard == "rollback":
        raise UsageError("--shard and --init-guard rollback exclude each other. Use one of them.")
    if s.shard_layers and not s.shard:
        raise UsageError("--shard-layers is for runs with --shard. Use both, or none.")
    if s.warm_heads is not None and (s.warm_heads < 0 or (s.warm_heads and not s.init)):
        what = "without --init" if not s.init else "below 0"
        raise UsageError(f"--warm-heads is {s.warm_heads} {what}; it is for runs with --init.")
    if not 0 <= s.max_bad <= 1:
        raise UsageError(f"--max-bad is {s.max_bad}; it is a share between 0 and 1.")
    if not recipes.is_name(s.recipe) and not Path(s.recipe).is_file():
        raise unknown("recipe", s.recipe, recipes.NAMES, "Or the path of a config.yaml.")
