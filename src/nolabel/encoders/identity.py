"""Which encoder it is, as a digest: names and widths do not tell."""

from __future__ import annotations

import hashlib

import torch

from nolabel.encoders.encoder import Encoder


def encoder_digest(encoder: Encoder) -> str:
    """SHA-256 of weights, normalisation and image size: of what decides the features.

    Where the encoder comes from does not count: a run's folder and its encoder file are equal.

    Returns:
        64 hexadecimal digits.
    """
    b = encoder.backbone
    about = (b.name.split(".")[0], encoder.size, encoder.resize, encoder.mean, encoder.std)
    digest = hashlib.sha256(repr(about).encode())
    for name, tensor in sorted(b.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
