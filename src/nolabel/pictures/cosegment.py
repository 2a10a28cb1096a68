"""The figure that several images have in common, to the pixel.

Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021, arXiv 2112.05814, section 4.1:
clusters of patches over all images, of which those are foreground that the class token looks at
(see `parts`), refined along the image's own edges.

Differs from the original: the edges come from a guided filter (He et al., "Guided Image Filtering",
2010) instead of GrabCut, which is another library's; the numbers say what it adds.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.pictures._dense import ImagesOrSamples, truth
from nolabel.pictures._tiles import Pictures, enlarge, sheet
from nolabel.pictures.parts import common, described, only_colours
from nolabel.pictures.picture import Picture


def cosegment(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    layer: int = -1,
    facet: str = "auto",
    stride: int = 0,
    refine: bool = True,
    smooth: float = 0.01,
    seed: int = 0,
) -> Pictures:
    """Cut-outs of what some images have in common.

    Args:
        encoder: a ViT with a class token, whose attention tells what is foreground.
        images: two or more of what `Encoder.prepare` takes, or Samples.
        layer: which layer; -1 is the last.
        facet: key, query, value or token; auto is key.
        stride: pixels from patch to patch; 0 is the patch itself.
        refine: whether outlines follow the image's edges, else the patches'.
        smooth: variance of brightness, of 0 to 1, below which the filter sees no edge.
        seed: of k-means.

    Raises:
        UsageError: fewer than two images, or an encoder without a class token.
    """
    d, saliency = described(encoder, images, layer=layer, facet=facet, stride=stride)
    if len(d.values) < 2:
        raise UsageError(f"Give two or more images, got {len(d.values)}.")
    if smooth <= 0:
        raise UsageError(f"smooth must be above 0, got {smooth}.")
    patch = d.nearest(d.pixels.shape[1:3])
    radius = max(d.pixels.shape[1] // d.grid[0], 1)

    def outlined(front: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool [N, H, W] of patches bool [N, P]: by the patches, and refined."""
        coarse = front[:, patch]
        fine = np.stack([guided(m.astype(float), i / 255, radius, smooth) > 0.5
                         for m, i in zip(coarse, d.pixels, strict=True)])  # fmt: skip
        return coarse, fine

    coarse, fine = outlined(common(d.values, saliency, seed)[0])
    masks = fine if refine else coarse
    rows = [
        [image, cut_out(image, mask), np.repeat(mask[..., None] * np.uint8(255), 3, -1)]
        for image, mask in zip(d.pixels, masks, strict=True)
    ]
    caption = (
        f"What {len(rows)} images have in common by {encoder.name} ({d.facet}s of layer {layer})"
    )
    numbers: dict[str, float] = {}
    own = truth(images, "mask", d.pixels.shape[1])
    if own is not None:
        by_colour = outlined(common(only_colours(d), saliency, seed)[0])
        looked = outlined((saliency > saliency.mean(1, keepdim=True)).numpy())
        figure = own > 0
        pick = int(refine)
        numbers = {
            "iou": pixel_iou(masks, figure), "iou_patches": pixel_iou(coarse, figure),
            "iou_refined": pixel_iou(fine, figure),
            "iou_colour": pixel_iou(by_colour[pick], figure),
            "iou_saliency": pixel_iou(looked[pick], figure),
            "iou_whole": pixel_iou(np.ones_like(figure), figure),
        }  # fmt: skip
        caption += (
            f". IoU with the true figures, by pixels, {numbers['iou']:.1%} (without the filter "
            f"{numbers['iou_patches']:.1%}, by colour {numbers['iou_colour']:.1%}, by saliency "
            f"alone {numbers['iou_saliency']:.1%}, the whole image {numbers['iou_whole']:.1%})"
        )
    return Pictures(
        [Picture(name="cosegment", image=sheet(rows, ("image", "cut out", "mask")),
                 caption=caption + ".", numbers=numbers, data={"masks": masks})]
    )  # fmt: skip


def pixel_iou(masks: np.ndarray, truth: np.ndarray) -> float:
    """Mean over images of the IoU of bool [N, H, W]; two empty masks agree."""
    both, either = (masks & truth).sum((1, 2)), (masks | truth).sum((1, 2))
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0).mean())


def cut_out(image: np.ndarray, mask: np.ndarray, square: int = 8) -> np.ndarray:
    """The figure on a chessboard, enlarged so that the board is fine."""
    big = enlarge(image)
    side = big.shape[0]
    inside = enlarge(np.repeat(mask[..., None] * np.uint8(255), 3, -1), side)[..., :1] > 0
    at = np.arange(side) // square
    board = np.where((at[:, None] + at[None]) % 2, 205, 240)[..., None]
    return np.where(inside, big, board).astype(np.uint8)


def guided(mask: np.ndarray, image: np.ndarray, radius: int, smooth: float) -> np.ndarray:
    """The mask as the best linear function of colour around each pixel (guided filter).

    Args:
        mask: float [H, W].
        image: float [H, W, 3] from 0 to 1, whose edges it follows.
        radius: of the squares, in pixels.
        smooth: added to the variances.
    """

    def mean(v: np.ndarray) -> np.ndarray:
        size = (2 * radius + 1, 2 * radius + 1) + (1,) * (v.ndim - 2)
        return uniform_filter(v, size, mode="nearest")

    m, p = mean(image), mean(mask)
    square = mean(image[..., :, None] * image[..., None, :]) - m[..., :, None] * m[..., None, :]
    both = mean(image * mask[..., None]) - m * p[..., None]
    a = np.linalg.solve(square + smooth * np.eye(3), both[..., None])[..., 0]
    b = p - (a * m).sum(-1)
    return (mean(a) * image).sum(-1) + mean(b)
