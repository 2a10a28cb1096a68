"""What a masked autoencoder imagines: original, masked, prediction, pasted (MAE, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nolabel.pictures.paint import Pictures, sheet, to_pixels
from nolabel.types import Picture


class Reconstructs(Protocol):
    """A method that can draw what it predicts."""

    options: Any

    def reconstruct(
        self, x: Tensor, ratio: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predicted images [N, C, H, W] and removed patches bool [N, h, w]."""
        ...


def reconstruct(
    method: Reconstructs,
    x: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ratios: Sequence[float] = (0.75, 0.85, 0.95),
    seed: int = 0,
) -> Pictures:
    """One sheet a mask ratio.

    Args:
        x: normalised images [N, C, H, W].
        ratios: shares of patches to remove.
        seed: which patches.

    Returns:
        Pictures whose numbers are the PSNR in dB on removed pixels, of the prediction and of the
        image's mean colour (the trivial guess).
    """
    out = []
    truth = to_pixels(x.numpy(), mean, std)
    for ratio in ratios:
        generator = torch.Generator().manual_seed(seed)
        pred, mask = method.reconstruct(x, ratio, generator)
        drawn = to_pixels(pred.float().numpy(), mean, std)
        size = x.shape[-1] // mask.shape[-1]
        gone = np.kron(mask.numpy(), np.ones((size, size), dtype=bool))[..., None]
        hidden = np.where(gone, np.uint8(200), truth)
        pasted = np.where(gone, drawn, truth)  # visible pixels stay as they are
        flat = np.where(gone, 0, truth).sum((1, 2), keepdims=True)
        flat = flat / np.maximum((~gone).sum((1, 2), keepdims=True), 1)
        numbers = {
            "psnr": _psnr(drawn, truth, gone),
            "psnr_mean_colour": _psnr(np.broadcast_to(flat, truth.shape), truth, gone),
        }
        caption = f"{ratio:.0%} of the patches removed; PSNR on them {numbers['psnr']:.1f} dB"
        caption += f" (mean colour {numbers['psnr_mean_colour']:.1f} dB)."
        if getattr(method.options, "norm_pix", False):
            caption += (
                " The targets were normalised: the prediction is drawn with each patch's true "
                "mean and deviation, so the picture knows more than the network."
            )
        rows = [list(r) for r in zip(truth, hidden, drawn, pasted, strict=True)]
        out.append(
            Picture(
                name=f"reconstruct-{round(ratio * 100)}",
                image=sheet(rows, ("original", "masked", "prediction", "pasted")),
                caption=caption,
                data={"prediction": drawn, "mask": mask.numpy()},
                numbers=numbers,
            )
        )
    return Pictures(out)


def _psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over the chosen pixels."""
    error = np.square(a.astype(np.float64) - b)[np.broadcast_to(where, b.shape)].mean()
    return float(10 * np.log10(255.0**2 / max(error, 1e-12)))
