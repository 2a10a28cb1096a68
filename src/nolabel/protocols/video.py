"""Video object segmentation: propagates the first frame's mask by patch similarity.

The protocol of Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021,
after Jabri et al., 2020; nothing is trained. Patch tokens of the last layer, L2-normalised; labels
come from the first frame and the `context` frames before (see `propagate`) and stay soft; for the
mask they are upsampled bilinearly and stretched to 0..1 for each object, and the argmax is taken.

J is the intersection over union, F the score of the boundary, both averaged over frames, without
the first and the last one, and then over objects (DAVIS-2017).

Differs from the original: images and patches may have any size; mean and standard deviation are the
encoder's (the original has a slip in the first deviation, 0.228); void pixels (255) are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nolabel.backbones.base import require
from nolabel.data.progress import progress_bar
from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features
from nolabel.errors import DataError, UsageError
from nolabel.protocols._options import at_least, build_options
from nolabel.protocols._propagation import boundary_score, jaccard, propagate
from nolabel.protocols._ranking import row
from nolabel.protocols.data.davis import VOID, Clip, Clips, open_clips
from nolabel.protocols.report import Report


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the video protocol; defaults are DINO's."""

    side: int | None = None  # shorter side in pixels; default 480, twice the encoder's below 96 px
    context: int = 7  # preceding frames used besides the first
    window: int = 12  # largest offset of a neighbour in patches; 0 is no limit
    topk: int = 5  # nearest neighbours of a patch
    temperature: float = 0.1  # of the softmax over similarities

    def __post_init__(self) -> None:
        at_least(self, context=0, window=0, topk=1, side=1)
        if not self.temperature > 0:
            raise UsageError(f"temperature must be above 0, got {self.temperature}.")


def open_test(test: str | os.PathLike[str] | Clips, encoder: Encoder) -> Clips:
    """Opens videos with masks; raises as `open_clips`.

    Creatures are drawn at 448 px, or twice the encoder's image size below 96 px.
    """
    return open_clips(test, _shorter_side(encoder, None) if encoder.image_size < 96 else 2 * 224)


def _shorter_side(encoder: Encoder, side: int | None) -> int:
    return side or (2 * encoder.image_size if encoder.image_size < 96 else 480)


def run_video(
    encoder: Encoder,
    train: Source | None,
    test: Clips,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Evaluates an encoder by mask propagation through videos.

    Args:
        encoder: one that takes images of any size.
        train: not used.
        test: videos with masks.
        features: not used.
        **options: fields of `Options`.

    Raises:
        UsageError: the encoder takes images of one size only, or has no patch tokens.
        DataError: a video has no object in its first frame, or fewer than three frames.
    """
    o = build_options(Options, options)
    require(encoder.backbone, ["any_size", "patches"], "Video segmentation")
    side = _shorter_side(encoder, o.side)
    scores: dict[str, list[float]] = {"J": [], "F": [], "still J": [], "still F": []}
    total = sum(clip.length for clip in test.clips)
    with progress_bar(f"{encoder.name} on {test.name}", total, True) as advance:
        for clip in test.clips:
            for name, values in _score_clip(encoder, clip, side, o, advance).items():
                scores[name] += values
    j, f = (np.array(scores[k]) for k in ("J", "F"))
    still = (np.array(scores["still J"]) + np.array(scores["still F"])) / 2
    rows = [
        row("propagated", "J&F", (j + f) / 2), row("propagated", "J", j), row("propagated", "F", f),
        row("first mask, unmoved", "J&F", still),
    ]  # fmt: skip
    note = (
        f"{len(j)} objects in {len(test.clips)} videos, shorter side {side} px, {o.context} frames "
        f"of context, window {o.window}, top-{o.topk}, temperature {o.temperature:g}"
    )
    return Report(
        protocol="video", encoder=encoder.name, train="", test=test.name, rows=tuple(rows),
        best=rows[0], notes=(note,),
    )  # fmt: skip


def _score_clip(
    encoder: Encoder, clip: Clip, side: int, o: Options, advance: Callable[[int], None]
) -> dict[str, list[float]]:
    """Scores of each object of a video, averaged over frames: "J", "F", "still J", "still F"."""
    first = clip.mask(0)
    objects = [int(i) for i in np.unique(first) if i not in (0, VOID)]
    if not objects or clip.length < 3:
        raise DataError(
            f"The video {clip.name!r} has {len(objects)} objects in its first frame and "
            f"{clip.length} frames; one object and three frames are needed."
        )
    out: dict[str, list[list[float]]] = {k: [[] for _ in objects] for k in
                                         ("J", "F", "still J", "still F")}  # fmt: skip
    for t, guess in enumerate(segment(encoder, clip, side, o)):
        advance(1)
        if t in (0, clip.length - 1):
            continue
        truth = clip.mask(t)
        void = truth == VOID if (truth == VOID).any() else None
        for name, mask in (("", guess), ("still ", first)):
            for i, object_id in enumerate(objects):
                pair = (mask == object_id, truth == object_id)
                out[f"{name}J"][i].append(jaccard(*pair, void))
                out[f"{name}F"][i].append(boundary_score(*pair, void))
    return {name: [float(np.mean(v)) for v in values] for name, values in out.items()}


def segment(encoder: Encoder, clip: Clip, side: int, o: Options) -> Iterator[np.ndarray]:
    """Propagates the first mask through a video.

    Args:
        encoder: one that takes images of any size.
        clip: the video.
        side: shorter side in pixels at which frames are embedded.
        o: the protocol's options.

    Yields:
        Mask uint8 [H, W] of every frame; the first is the given one.
    """
    truth = clip.mask(0)
    yield truth
    patches, size = frame_patches(encoder, clip.frame(0), side)
    h, w, _ = patches.shape
    small = np.array(Image.fromarray(truth).resize((w, h), Image.Resampling.NEAREST))
    classes = int(truth[truth != VOID].max(initial=0)) + 1
    first_labels = torch.from_numpy(
        np.stack([small == c for c in range(classes)]).astype(np.float32)
    ).to(patches.device)  # [C, h, w]
    memory: list[tuple[Tensor, Tensor]] = [(patches, first_labels)]
    for t in range(1, clip.length):
        new, _ = frame_patches(encoder, clip.frame(t), side)
        guess = propagate(
            new, torch.stack([p for p, _ in memory]), torch.stack([s for _, s in memory]),
            window=o.window, topk=o.topk, temperature=o.temperature,
        )  # fmt: skip
        memory.append((new, guess))
        if len(memory) > 1 + o.context:
            del memory[1]  # the oldest frame except the first
        yield upsample_labels(guess, size, (truth.shape[0], truth.shape[1]))


def upsample_labels(soft: Tensor, size: tuple[int, int], native: tuple[int, int]) -> np.ndarray:
    """Upsamples soft labels to a mask, first to the size of the network's input.

    Args:
        soft: float [C, h, w].
        size: height and width of the network's input.
        native: height and width of the mask.

    Returns:
        uint8 [H, W], the class with the highest label after stretching each to 0..1.
    """
    upsampled = F.interpolate(soft[None], size=size, mode="bilinear", align_corners=False)[0]
    flat = upsampled.flatten(1)
    low, high = flat.min(1).values, flat.max(1).values
    stretched = (flat - low[:, None]) / (high - low).clamp_min(1e-12)[:, None]
    stretched = torch.where(high[:, None] > 0, stretched, flat)
    mask = stretched.reshape(upsampled.shape).argmax(0).to(torch.uint8).cpu().numpy()
    resized = Image.fromarray(mask).resize((native[1], native[0]), Image.Resampling.NEAREST)
    return np.array(resized)


def frame_patches(encoder: Encoder, frame: np.ndarray, side: int) -> tuple[Tensor, tuple[int, int]]:
    """L2-normalised patch tokens of a frame.

    Bilinear. The shorter side is resized to `side`, the longer one in proportion, rounded down to a
    multiple of 64 (of the patch size if that does not divide 64 or `side` is below 256).

    Args:
        encoder: one that takes images of any size.
        frame: uint8 [H, W, 3].
        side: shorter side in pixels.

    Returns:
        float32 [h, w, D] on the encoder's device, and height and width of the resized frame.
    """
    p = encoder.backbone.patch_size
    step = 64 if 64 % p == 0 and side >= 256 else p
    h, w = frame.shape[:2]
    shorter = max(side // p, 1) * p
    longer = max(int(max(h, w) * shorter / min(h, w)) // step * step, shorter)
    height, width = (shorter, longer) if h <= w else (longer, shorter)
    x = encoder.normalise(resize_bilinear(frame, height, width)[None])
    with encoder.evaluating():
        t = encoder.backbone.tokens(x)
        patches = F.normalize(t.patches[0].float(), dim=-1).unflatten(0, t.grid)
    return patches.clone(), (height, width)


def resize_bilinear(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 [H, W, C] by bilinear interpolation between pixel centres, without smoothing.

    That is OpenCV's default, with which the protocol's published numbers were made.
    """
    if frame.shape[:2] == (height, width):
        return frame
    x = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
    y = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)[0]
    return y.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
