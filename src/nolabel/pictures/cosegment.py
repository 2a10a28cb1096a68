"""Co-segmentation: pixel masks of the object that several images have in common.

Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021, arXiv 2112.05814, section 4.1:
patches of all images are clustered, salient clusters are the foreground (see `parts`), and the mask
of patches is refined along the edges of the image.

Differs from the original: masks are refined by a guided filter (He et al., "Guided Image
Filtering", 2010) instead of GrabCut, which needs another library; the numbers show its effect.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter

from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.pictures._dense import ImagesOrSamples, ground_truth
from nolabel.pictures._options import Facet, Help, Layer, Stride
from nolabel.pictures._tiles import TILE, Pictures, enlarge, sheet, tile_shape
from nolabel.pictures.parts import colour_descriptors, common_foreground, dense_with_saliency
from nolabel.pictures.picture import Picture


def cosegment(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    layer: Layer = -1,
    facet: Facet = "auto",
    stride: Stride = 0,
    refine: Annotated[
        bool, Help("whether outlines follow the edges of the image, else those of the patches")
    ] = True,
    smooth: Annotated[
        float,
        Help("variance of brightness, in 0..1, below which the guided filter sees no edge"),
    ] = 0.01,
    seed: Annotated[int, Help("seed of k-means")] = 0,
) -> Pictures:
    """The common foreground of each image, cut out, and its mask.

    Args:
        encoder: a ViT with a class token, whose attention indicates the foreground.
        images: two or more of what `Encoder.prepare` takes, or Samples.

    Raises:
        UsageError: fewer than two images, `smooth` is not above 0, or the encoder has no class
            token.
    """
    d, saliency = dense_with_saliency(encoder, images, layer=layer, facet=facet, stride=stride)
    if len(d.values) < 2:
        raise UsageError(f"Give two or more images, got {len(d.values)}.")
    if smooth <= 0:
        raise UsageError(f"smooth must be above 0, got {smooth}.")
    patch = d.nearest(d.pixels.shape[1:3])
    radius = max(d.pixels.shape[1] // d.grid[0], 1)

    def pixel_masks(front: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool [N, H, W] of foreground patches bool [N, P]: unrefined, and refined."""
        coarse = front[:, patch]
        fine = np.stack([guided(m.astype(float), i / 255, radius, smooth) > 0.5
                         for m, i in zip(coarse, d.pixels, strict=True)])  # fmt: skip
        return coarse, fine

    coarse, fine = pixel_masks(common_foreground(d.values, saliency, seed)[0])
    masks, shape = fine if refine else coarse, tile_shape(d.shown)
    rows = [
        [image, cut_out(image, mask, shape), np.repeat(mask[..., None] * np.uint8(255), 3, -1)]
        for image, mask in zip(d.shown, masks, strict=True)
    ]
    caption = (
        f"The foreground that {len(rows)} images have in common, by the {d.facet}s of "
        f"{encoder.name}, layer {layer}, {'refined along edges' if refine else 'as patches'}"
    )
    numbers: dict[str, float] = {}
    true_masks = ground_truth(images, "mask", d.pixels.shape[1:3])
    if true_masks is not None:
        by_colour = pixel_masks(common_foreground(colour_descriptors(d), saliency, seed)[0])
        by_saliency = pixel_masks((saliency > saliency.mean(1, keepdim=True)).numpy())
        figure = true_masks > 0
        pick = int(refine)
        numbers = {
            "iou": pixel_iou(masks, figure), "iou_patches": pixel_iou(coarse, figure),
            "iou_refined": pixel_iou(fine, figure),
            "iou_colour": pixel_iou(by_colour[pick], figure),
            "iou_saliency": pixel_iou(by_saliency[pick], figure),
            "iou_whole": pixel_iou(np.ones_like(figure), figure),
        }  # fmt: skip
        caption += (
            f". IoU with the true mask in pixels (higher is better) {numbers['iou']:.1%} (without "
            f"refinement {numbers['iou_patches']:.1%}, from colour instead of features "
            f"{numbers['iou_colour']:.1%}, from saliency alone {numbers['iou_saliency']:.1%}, the "
            f"whole image {numbers['iou_whole']:.1%})"
        )
    return Pictures(
        [Picture(name="cosegment", image=sheet(rows, ("image", "cut out", "mask"), shape),
                 caption=caption + ".", numbers=numbers, data={"masks": masks})]
    )  # fmt: skip


def pixel_iou(masks: np.ndarray, truth: np.ndarray) -> float:
    """Mean over images of the IoU of masks bool [N, H, W]; that of two empty masks is 1."""
    both, either = (masks & truth).sum((1, 2)), (masks | truth).sum((1, 2))
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0).mean())


def cut_out(
    image: np.ndarray, mask: np.ndarray, shape: tuple[int, int] = (TILE, TILE), square: int = 8
) -> np.ndarray:
    """The masked object on a checkerboard, enlarged.

    Args:
        image: uint8 [H, W, 3].
        mask: bool [h, w], of the same shape or a smaller one.
        shape: height and width of the result.
        square: side of the board's squares in pixels.

    Returns:
        uint8 [height, width, 3].
    """
    big = enlarge(image, shape)
    whole = Image.fromarray(mask.astype(np.uint8) * 255)
    smooth = Image.Resampling.NEAREST if min(mask.shape) <= TILE else Image.Resampling.BILINEAR
    inside = np.asarray(whole.resize(shape[::-1], smooth))[..., None] > 127
    rows, columns = (np.arange(n) // square for n in shape)
    board = np.where((rows[:, None] + columns[None]) % 2, 205, 240)[..., None]
    return np.where(inside, big, board).astype(np.uint8)


def guided(mask: np.ndarray, image: np.ndarray, radius: int, smooth: float) -> np.ndarray:
    """Guided filter: the mask as a local linear function of the image (He et al., 2010).

    Args:
        mask: the input, float [H, W].
        image: the guide, float [H, W, 3] in 0..1.
        radius: of the square windows, in pixels.
        smooth: the regularisation epsilon, added to the diagonal of the covariance.

    Returns:
        float [H, W].
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
