"""What a generative method rebuilds.

A method that `Inpaints` is shown as original, masked, prediction, pasted (MAE, figure 2), a sheet
for each ratio. One that `Reconstructs` is shown as original, prediction and mean colour.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nolabel.methods.capabilities import Inpaints, Reconstructs
from nolabel.nn.pixels import to_pixels
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture


def reconstruct(
    method: Inpaints | Reconstructs,
    x: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ratios: Sequence[float] = (0.75, 0.85, 0.95),
    seed: int = 0,
) -> Pictures:
    """One sheet a mask ratio, or one sheet for a method that hides nothing.

    Args:
        x: normalised images [N, C, H, W].
        ratios: shares of patches to hide; of no use to a method that hides nothing.
        seed: which patches.

    Returns:
        Pictures whose numbers are the PSNR in dB, of the prediction and of the image's mean
        colour (the trivial guess): on the hidden pixels alone, where there are any.
    """
    truth = to_pixels(x.numpy(), mean, std)
    if isinstance(method, Reconstructs):
        return _whole(method, x, truth, mean, std)
    out = []
    for ratio in ratios:
        generator = torch.Generator().manual_seed(seed)
        pred, mask = method.inpaint(x, ratio, generator)
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
        if method.knows_statistics:
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


def _whole(
    method: Reconstructs, x: Tensor, truth: np.ndarray, mean: Sequence[float], std: Sequence[float]
) -> Pictures:
    """The sheet of a method that has seen every pixel."""
    everywhere = np.ones((1, 1, 1, 1), dtype=bool)
    drawn = to_pixels(method.reconstruct(x).float().numpy(), mean, std)
    flat = np.broadcast_to(truth.mean((1, 2), keepdims=True), truth.shape)
    columns = {"original": truth, "prediction": drawn}
    numbers = {
        "psnr": _psnr(drawn, truth, everywhere),
        "psnr_mean_colour": _psnr(flat, truth, everywhere),
    }
    caption = f"Rebuilt from what the encoder kept; PSNR {numbers['psnr']:.1f} dB"
    caption += f" (mean colour {numbers['psnr_mean_colour']:.1f} dB)."
    swapped = method.swapped(x) if len(x) > 1 else None
    if swapped is not None:
        other = to_pixels(swapped.float().numpy(), mean, std)
        columns["another's code"] = other
        numbers["psnr_swapped"] = _psnr(other, truth, everywhere)
        caption += (
            f" With the code of another image {numbers['psnr_swapped']:.1f} dB: the closer to the "
            "first number, the less the code is used, and the less the embedding has to learn."
        )
    columns["mean colour"] = np.rint(flat).astype(np.uint8)
    rows = [list(r) for r in zip(*columns.values(), strict=True)]
    image = sheet(rows, tuple(columns))
    data = {"prediction": drawn}
    return Pictures(
        [Picture(name="reconstruct", image=image, caption=caption, data=data, numbers=numbers)]
    )


def _psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over the chosen pixels."""
    error = np.square(a.astype(np.float64) - b)[np.broadcast_to(where, b.shape)].mean()
    return float(10 * np.log10(255.0**2 / max(error, 1e-12)))
