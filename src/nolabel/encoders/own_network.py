"""Encoders of a user's own network, whose code is copied to `code/` beside the encoder file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nolabel import _usercode
from nolabel.backbones import is_own
from nolabel.backbones.base import Backbone
from nolabel.backbones.own import build_own, register
from nolabel.encoders.header import MAX_SIDE, is_whole
from nolabel.errors import DataError, FileDamaged, UsageError

Network = nn.Module | type[nn.Module]


def copy_network_code(name: str, path: Path) -> dict[str, dict[str, str]]:
    """Copies the code of a user's backbone to the folder of its encoder file.

    Args:
        name: name of the backbone.
        path: path of the encoder file.

    Returns:
        Name of the copy -> {"sha256": hash}; empty for networks of timm.

    Raises:
        DataError: the copy cannot be written.
    """
    try:
        _usercode.copy_code(name, path.parent)
    except OSError as error:
        raise DataError(
            f"Cannot write the encoder's code beside {str(path)!r}: {error}. Check that the folder "
            "exists, may be written to, and has space."
        ) from error
    # The original path is left out: encoder files are shared, and it may be private.
    return {k: {"sha256": v["sha256"]} for k, v in _usercode.records(name).items()}


def build_own_network(header: Mapping[str, Any], path: Path, network: Network | None) -> Backbone:
    """Builds the network of an encoder file with random weights.

    Torch's random state is restored afterwards.

    Args:
        header: header of the file.
        path: path of the file.
        network: the network or its class, instead of the code beside the file.

    Raises:
        UntrustedCode: the code was never run here.
        UsageError: the code is missing, the network was given in Python, or it is one of timm's.
        FileDamaged: the code was changed, or the header has no valid image size.
    """
    name, kwargs = header["name"], header["kwargs"]
    if not is_own(name):
        raise UsageError(
            f"The encoder in {str(path)!r} is a {name!r}, which is built from its name. Leave "
            "backbone out."
        )
    size, channels = kwargs.get("image_size"), kwargs.get("in_chans", 3)
    if not is_whole(size, 1, MAX_SIDE) or not is_whole(channels, 1, 1_000):
        raise FileDamaged(f"The file {str(path)!r} has no valid image_size and in_chans.")
    if network is None:
        _usercode.admit(name, path.parent, header.get("code"))
    else:
        name = register(network)
    state = torch.get_rng_state()
    try:
        return build_own(name, size, channels, {})
    finally:
        torch.set_rng_state(state)
