"""Attention of the class token, head by head, and the patches that hold most of it.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (DINO), 2021, arXiv
2104.14294, figure 1: the last block's attention, thresholded so that the largest patches that sum
to 60 % of the mass remain. Measured, where masks are known, by the IoU of these patches with the
mask.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from nolabel.backbones.base import require
from nolabel.encoders import Encoder
from nolabel.errors import UsageError, unknown
from nolabel.nn.patches import mass_mask
from nolabel.pictures._dense import ImagesOrSamples, ground_truth, images_of
from nolabel.pictures._options import Help, Layer
from nolabel.pictures._tiles import (
    HEAD_COLOURS,
    VIDEO_FORMATS,
    Pictures,
    draw_points,
    enlarge,
    heat,
    on_image,
    sheet,
    tile_shape,
)
from nolabel.pictures._whole import prepare_whole
from nolabel.pictures.picture import Picture
from nolabel.protocols.attention import areas, ceiling, iou

MAX_ROWS = 24  # of the sheet; a video has a frame for every image


def attention(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    layer: Layer = -1,
    mass: Annotated[float, Help("share of the attention that the thresholded maps keep")] = 0.6,
    point: Annotated[
        tuple[float, float] | None,
        Help("x and y, from 0 to 1, of the patch that is the query; default: the class token"),
    ] = None,
    video: Annotated[
        str,
        Help("webp or mp4 (an extra): images that are a video's frames are also saved as a video"),
    ] = "",
    masks: np.ndarray | None = None,
) -> Pictures:
    """The mean of the heads, all heads in one image, and each head with its thresholded map.

    Args:
        encoder: one whose backbone has a class token, or any ViT if a point is given.
        images: N images, anything `Encoder.prepare` takes, or Samples.
        masks: true masks at the encoder's input size, uint8 or bool [N, H, W]; default: those of
            the Samples, if they have some. With masks the numbers have the IoU.

    Raises:
        UsageError: the backbone has no attention, the point is outside the image, or the kind of
            video is unknown.
    """
    if video not in ("", *VIDEO_FORMATS):
        raise unknown("video", video, VIDEO_FORMATS)
    require(encoder.backbone, {"attention"}, "show attention")
    x, shown = prepare_whole(encoder, images_of(images))
    if masks is None:
        masks = ground_truth(images, "mask", tuple(x.shape[-2:]))
    h, w = (s // encoder.backbone.patch_size for s in x.shape[-2:])
    patch = None if point is None else patch_at(point, (h, w))
    a = encoder.attention(x, layer, patch=patch)  # [N, heads, P]
    maps = a.unflatten(-1, (h, w)).numpy()
    kept = mass_mask(a, mass).unflatten(-1, (h, w)).numpy()
    shape = tile_shape(shown, 96, 192)
    heads = maps.shape[1]
    rows = []
    for image, m, k in zip(shown, maps, kept, strict=True):
        first = image
        if patch is not None:
            centre = (np.array([[patch % w, patch // w]]) + 0.5) * encoder.backbone.patch_size
            first = draw_points(image, centre, tile_shape(shown, 192), (x.shape[-2], x.shape[-1]))
        rows.append([first, on_image(image, heat(m.mean(0))), _heads_in_colour(image, m, k)])
        rows[-1] += [on_image(image, heat(head)) for head in m]
        rows[-1] += [_dim_outside(image, head) for head in k]
    big = tile_shape(shown)
    frames = np.stack([np.concatenate([enlarge(t, big) for t in r[:3]], 1) for r in rows])
    titles = ["image", "mean of heads", "heads in colour"]
    titles += [f"head {i}" for i in range(heads)] + [f"head {i}, {mass:.0%}" for i in range(heads)]
    p = maps.reshape(*maps.shape[:2], -1) + 1e-12
    p = p / p.sum(-1, keepdims=True)
    numbers = {"entropy_share": float((-(p * np.log(p)).sum(-1) / np.log(h * w)).mean())}
    query = "the class token" if patch is None else f"patch {patch}"
    caption = (
        f"Attention of {query} of {encoder.name}, layer {layer}: mean of the heads, heads in "
        f"colour, each head, and the patches that hold {mass:.0%} of each head's attention. Mean "
        f"entropy {numbers['entropy_share']:.0%} of that of uniform attention"
    )
    if masks is not None:
        numbers |= _overlap(kept, mass_mask(a.mean(1), mass).unflatten(-1, (h, w)).numpy(), masks)
        caption += (
            f". IoU of these patches with the true mask (higher is better): mean of the heads "
            f"{numbers['iou_head_mean']:.1%}; best head of each image, chosen by the mask, "
            f"{numbers['iou_best_head']:.1%}; best possible on the {h} x {w} grid "
            f"{numbers['iou_ceiling']:.1%}"
        )
    data = {"attention": maps, "kept": kept}
    return Pictures(
        [Picture(name="attention", image=sheet(rows[:MAX_ROWS], titles, shape),
                 caption=caption + ".", data=data, numbers=numbers,
                 frames=frames if video else None, video=video)]
    )  # fmt: skip


def patch_at(point: tuple[float, float], grid: tuple[int, int]) -> int:
    """Index of the patch at x and y, in 0..1, on a grid (h, w).

    Raises:
        UsageError: the point is outside the image.
    """
    if min(point) < 0 or max(point) > 1:
        raise UsageError(f"A point is x and y, both from 0 to 1, got {point}.")
    h, w = grid
    return min(int(point[1] * h), h - 1) * w + min(int(point[0] * w), w - 1)


def _dim_outside(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The image uint8 [H, W, 3], dimmed outside the patches kept, bool [h, w]."""
    mask = np.repeat(kept[..., None] * np.uint8(255), 3, -1)
    inside = enlarge(mask, image.shape[:2])[..., :1] > 0
    return np.where(inside, image, image // 4 + 150).astype(np.uint8)


def _heads_in_colour(image: np.ndarray, maps: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Each patch in the colour of its strongest head, over the grey image.

    Args:
        image: uint8 [H, W, 3].
        maps: attention, float [heads, h, w].
        kept: thresholded attention, bool [heads, h, w].
    """
    scaled = maps * kept / np.maximum(maps.max((1, 2), keepdims=True), 1e-12)
    strongest, strength = scaled.argmax(0), scaled.max(0)
    colour = HEAD_COLOURS[strongest % len(HEAD_COLOURS)]
    opacity = np.sqrt(np.where(strength < 0.2, 0.0, strength))[..., None]
    side = image.shape[:2]
    big = enlarge(colour.astype(np.uint8), side).astype(np.float32)
    alpha = enlarge(np.repeat((opacity * 255).astype(np.uint8), 3, -1), side)[..., :1] / 255.0
    grey = image.mean(-1, keepdims=True) * 0.5 + 60
    return (grey * (1 - alpha) + big * alpha).clip(0, 255).astype(np.uint8)


def _overlap(kept: np.ndarray, mean: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """IoU with masks [N, H, W] of thresholded heads [N, heads, h, w] and their mean [N, h, w]."""
    cells = [areas(mask.astype(np.uint8), masks.shape[-1] // kept.shape[-1]) for mask in masks]
    return {
        "iou_head_mean": float(np.mean([iou(m, *c) for m, c in zip(mean, cells, strict=True)])),
        "iou_best_head": float(
            np.mean([iou(k, *c).max() for k, c in zip(kept, cells, strict=True)])
        ),
        "iou_ceiling": float(np.mean([ceiling(*c) for c in cells])),
    }
