"""Last-block attention of the class token, per head and thresholded by mass (DINO, figure 1)."""

from __future__ import annotations

import numpy as np

from nolabel.backbones.base import require
from nolabel.encoders import Encoder
from nolabel.errors import UsageError, unknown
from nolabel.nn.patches import mass_mask
from nolabel.nn.pixels import to_pixels
from nolabel.pictures._dense import ImagesOrSamples, images_of, truth
from nolabel.pictures._tiles import FILMS, HEAD_COLOURS, Pictures, dots, enlarge, heat, sheet
from nolabel.pictures.picture import Picture
from nolabel.protocols.attention import areas, ceiling, iou

MOST = 24  # rows of the sheet; a film may have more


def attention(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    layer: int = -1,
    mass: float = 0.6,
    point: tuple[float, float] | None = None,
    film: str = "",
    masks: np.ndarray | None = None,
) -> Pictures:
    """Head mean, every head, its mass-thresholded map, and all heads in colour.

    Args:
        encoder: one whose backbone has a class token, or any ViT where a point is given.
        images: up to 8 or so, anything `Encoder.prepare` takes, or Samples.
        layer: block looked at; -1 is the last.
        mass: share of the attention that a thresholded map keeps.
        point: x and y, from 0 to 1, of the patch that looks; by default the class token does.
        film: webp or mp4 (an extra), for frames of a video in order: they are also saved as a film.
        masks: uint8 or bool [N, H, W], the true figures at the prepared size; adds IoU.

    Raises:
        UsageError: the backbone shows no attention, a point outside the image, or an unknown kind
            of film.
    """
    if film not in ("", *FILMS):
        raise unknown("film", film, FILMS)
    require(encoder.backbone, {"attention"}, "show attention")
    x = encoder.prepare(images_of(images))
    if masks is None:
        masks = truth(images, "mask", x.shape[-1])
    h, w = (s // encoder.backbone.patch_size for s in x.shape[-2:])
    patch = None if point is None else patch_at(point, (h, w))
    a = encoder.attention(x, layer, patch=patch)  # [N, heads, P]
    maps = a.unflatten(-1, (h, w)).numpy()
    kept = mass_mask(a, mass).unflatten(-1, (h, w)).numpy()
    pixels = to_pixels(x.numpy(), encoder.mean, encoder.std)
    heads = maps.shape[1]
    rows = []
    for image, m, k in zip(pixels, maps, kept, strict=True):
        shown = image
        if patch is not None:
            middle = (np.array([[patch % w, patch // w]]) + 0.5) * encoder.backbone.patch_size
            shown = dots(image, middle)
        rows.append([shown, heat(m.mean(0)), _coloured(image, m, k)])
        rows[-1] += [heat(one) for one in m]
        rows[-1] += [_cut_out(image, one) for one in k]
    frames = np.stack([np.concatenate([enlarge(t) for t in r[:3]], 1) for r in rows])
    shown_rows = rows[:MOST]
    titles = ["image", "mean of heads", "heads in colour"]
    titles += [f"head {i}" for i in range(heads)] + [f"head {i}, {mass:.0%}" for i in range(heads)]
    p = maps.reshape(*maps.shape[:2], -1) + 1e-12
    p = p / p.sum(-1, keepdims=True)
    numbers = {"entropy_share": float((-(p * np.log(p)).sum(-1) / np.log(h * w)).mean())}
    looks = "the class token" if patch is None else f"patch {patch}"
    caption = f"Attention of {looks}, layer {layer}, {encoder.name}"
    if masks is not None:
        numbers |= _overlap(kept, mass_mask(a.mean(1), mass).unflatten(-1, (h, w)).numpy(), masks)
        caption += (
            f". IoU with the true figures: head mean {numbers['iou_head_mean']:.1%}, best head of "
            f"each image (chosen with the truth) {numbers['iou_best_head']:.1%}, most that the "
            f"{h} x {w} grid allows {numbers['iou_ceiling']:.1%}"
        )
    data = {"attention": maps, "kept": kept}
    return Pictures(
        [Picture(name="attention", image=sheet(shown_rows, titles, 96), caption=caption + ".",
                 data=data, numbers=numbers, frames=frames if film else None, film=film)]
    )  # fmt: skip


def patch_at(point: tuple[float, float], grid: tuple[int, int]) -> int:
    """Number of the patch at x and y from 0 to 1, on a grid (h, w).

    Raises:
        UsageError: outside.
    """
    if min(point) < 0 or max(point) > 1:
        raise UsageError(f"A point is x and y from 0 to 1, got {point}.")
    h, w = grid
    return min(int(point[1] * h), h - 1) * w + min(int(point[0] * w), w - 1)


def _cut_out(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The image where the head looks, dimmed elsewhere."""
    big = enlarge(np.repeat(kept[..., None] * np.uint8(255), 3, -1), image.shape[0])[..., :1] > 0
    return np.where(big, image, image // 4 + 150).astype(np.uint8)


def _coloured(image: np.ndarray, maps: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Each patch in the colour of its strongest thresholded head, over a grey image."""
    scaled = maps * kept / np.maximum(maps.max((1, 2), keepdims=True), 1e-12)
    strongest, strength = scaled.argmax(0), scaled.max(0)
    colour = HEAD_COLOURS[strongest % len(HEAD_COLOURS)]
    opacity = np.sqrt(np.where(strength < 0.2, 0.0, strength))[..., None]
    side = image.shape[0]
    big = enlarge(colour.astype(np.uint8), side).astype(np.float32)
    alpha = enlarge(np.repeat((opacity * 255).astype(np.uint8), 3, -1), side)[..., :1] / 255.0
    grey = image.mean(-1, keepdims=True) * 0.5 + 60
    return (grey * (1 - alpha) + big * alpha).clip(0, 255).astype(np.uint8)


def _overlap(kept: np.ndarray, mean: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    cells = [areas(mask.astype(np.uint8), masks.shape[-1] // kept.shape[-1]) for mask in masks]
    return {
        "iou_head_mean": float(np.mean([iou(m, *c) for m, c in zip(mean, cells, strict=True)])),
        "iou_best_head": float(
            np.mean([iou(k, *c).max() for k, c in zip(kept, cells, strict=True)])
        ),
        "iou_ceiling": float(np.mean([ceiling(*c) for c in cells])),
    }
