"""Reconstructions of a generative method.

A method that `Inpaints` masked patches is shown as original, masked, prediction, and prediction
pasted into the visible patches, one sheet for each mask ratio (He et al., "Masked Autoencoders Are
Scalable Vision Learners", 2021, arXiv 2111.06377, figure 2). One that `Reconstructs` the image is
shown as original, prediction and mean colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from nolabel.methods.capabilities import Inpaints, Reconstructs
from nolabel.nn.pixels import to_pixels
from nolabel.pictures._options import Help
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture


def reconstruct(
    method: Inpaints | Reconstructs,
    x: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ratios: Annotated[
        Sequence[float],
        Help("shares of patches to mask; not used by a method that masks nothing"),
    ] = (0.75, 0.85, 0.95),
    seed: Annotated[int, Help("seed of the random masks")] = 0,
) -> Pictures:
    """One sheet for each mask ratio, or one sheet for a method that masks nothing.

    Args:
        method: a trained method.
        x: normalised images, float [N, C, H, W].
        mean: of each channel, to undo the normalisation.
        std: deviation of each channel.

    Returns:
        Pictures whose numbers are the PSNR in dB of the prediction, and of the mean colour of the
        visible pixels as the baseline; over the masked pixels, or over all if none is masked.
    """
    truth = to_pixels(x.numpy(), mean, std)
    if isinstance(method, Reconstructs):
        return _reconstruct_unmasked(method, x, truth, mean, std)
    out = []
    for ratio in ratios:
        generator = torch.Generator().manual_seed(seed)
        pred, mask = method.inpaint(x, ratio, generator)
        drawn = to_pixels(pred.float().numpy(), mean, std)
        size = x.shape[-1] // mask.shape[-1]
        masked = np.kron(mask.numpy(), np.ones((size, size), dtype=bool))[..., None]
        visible = np.where(masked, np.uint8(200), truth)
        pasted = np.where(masked, drawn, truth)
        flat = np.where(masked, 0, truth).sum((1, 2), keepdims=True)
        flat = flat / np.maximum((~masked).sum((1, 2), keepdims=True), 1)
        numbers = {
            "psnr": _psnr(drawn, truth, masked),
            "psnr_mean_colour": _psnr(np.broadcast_to(flat, truth.shape), truth, masked),
        }
        caption = (
            f"Reconstruction with {ratio:.0%} of the patches masked. PSNR of the masked pixels "
            f"(higher is better) {numbers['psnr']:.1f} dB (mean colour of the visible pixels "
            f"{numbers['psnr_mean_colour']:.1f} dB)."
        )
        if method.knows_statistics:
            caption += (
                " The training targets were normalised patch by patch: the prediction is drawn "
                "with each patch's true mean and deviation, which the network does not predict."
            )
        rows = [list(r) for r in zip(truth, visible, drawn, pasted, strict=True)]
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


def _reconstruct_unmasked(
    method: Reconstructs, x: Tensor, truth: np.ndarray, mean: Sequence[float], std: Sequence[float]
) -> Pictures:
    """The sheet of a method that masks nothing; `truth` are the images, uint8 [N, H, W, 3]."""
    everywhere = np.ones((1, 1, 1, 1), dtype=bool)
    drawn = to_pixels(method.reconstruct(x).float().numpy(), mean, std)
    flat = np.broadcast_to(truth.mean((1, 2), keepdims=True), truth.shape)
    columns = {"original": truth, "prediction": drawn}
    numbers = {
        "psnr": _psnr(drawn, truth, everywhere),
        "psnr_mean_colour": _psnr(flat, truth, everywhere),
    }
    caption = (
        f"Images decoded from their code. PSNR (higher is better) {numbers['psnr']:.1f} dB (mean "
        f"colour {numbers['psnr_mean_colour']:.1f} dB)."
    )
    swapped = method.swapped(x) if len(x) > 1 else None
    if swapped is not None:
        other = to_pixels(swapped.float().numpy(), mean, std)
        columns["another's code"] = other
        numbers["psnr_swapped"] = _psnr(other, truth, everywhere)
        caption += (
            f" With the code of another image {numbers['psnr_swapped']:.1f} dB: it should be far "
            "lower; if it is near, the decoder hardly uses the code."
        )
    columns["mean colour"] = np.rint(flat).astype(np.uint8)
    rows = [list(r) for r in zip(*columns.values(), strict=True)]
    image = sheet(rows, tuple(columns))
    data = {"prediction": drawn}
    return Pictures(
        [Picture(name="reconstruct", image=image, caption=caption, data=data, numbers=numbers)]
    )


def _psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images [N, H, W, 3] over the pixels `where`."""
    error = np.square(a.astype(np.float64) - b)[np.broadcast_to(where, b.shape)].mean()
    return float(10 * np.log10(255.0**2 / max(error, 1e-12)))
