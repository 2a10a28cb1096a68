"""Video segmentation: the first frame's mask is carried through a video by similar patches.

The protocol of Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021,
after Jabri et al., 2020; nothing is trained. Patch tokens of the last layer, of unit length; the
first frame and the `context` frames before vote (see `propagate`); soft labels are handed on; at
the end they are enlarged bilinearly, stretched to 0..1 object by object, and the strongest wins.

J is the intersection over union, F the score of the boundary, both without the first and the last
frame, averaged over frames and then over objects (DAVIS-2017).

Differs from the original: masks of any size of images and patches; the mean and deviation are the
encoder's (the original's third deviation has a slip of the pen); pixels of no object (255) count
for neither side.
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
    context: int = 7  # frames before that vote, besides the first
    window: int = 12  # reach of a patch in patches; 0 is everywhere
    topk: int = 5  # patches that vote for a patch
    temperature: float = 0.1  # of the similarities

    def __post_init__(self) -> None:
        at_least(self, context=0, window=0, topk=1, side=1)
        if not self.temperature > 0:
            raise UsageError(f"temperature must be above 0, got {self.temperature}.")


def open_test(test: str | os.PathLike[str] | Clips, encoder: Encoder) -> Clips:
    """Videos with masks; creatures are drawn at twice the encoder's size below 96 px."""
    return open_clips(test, _side(encoder, None) if encoder.image_size < 96 else 2 * 224)


def _side(encoder: Encoder, given: int | None) -> int:
    return given or (2 * encoder.image_size if encoder.image_size < 96 else 480)


def run_video(
    encoder: Encoder,
    train: Source | None,
    test: Clips,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Judges an encoder by how well its patches follow objects.

    Args:
        encoder: one that takes images of any size.
        train: not used.
        test: `Clips`.
        features: not used.
        **options: fields of `Options`.

    Raises:
        UsageError: the encoder takes images of one size only, or gives no features of places.
        DataError: a video has no object in its first frame, or fewer than three frames.
    """
    o = build_options(Options, options)
    require(encoder.backbone, ["any_size", "patches"], "Video segmentation")
    side = _side(encoder, o.side)
    scores: dict[str, list[float]] = {"J": [], "F": [], "still J": [], "still F": []}
    total = sum(clip.length for clip in test.clips)
    with progress_bar(f"{encoder.name} on {test.name}", total, True) as advance:
        for clip in test.clips:
            for name, values in _one(encoder, clip, side, o, advance).items():
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


def _one(
    encoder: Encoder, clip: Clip, side: int, o: Options, advance: Callable[[int], None]
) -> dict[str, list[float]]:
    """Scores of each object of a video: means over its frames."""
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
            for i, number in enumerate(objects):
                pair = (mask == number, truth == number)
                out[f"{name}J"][i].append(jaccard(*pair, void))
                out[f"{name}F"][i].append(boundary_score(*pair, void))
    return {name: [float(np.mean(v)) for v in values] for name, values in out.items()}


def segment(encoder: Encoder, clip: Clip, side: int, o: Options) -> Iterator[np.ndarray]:
    """Yields the guessed mask uint8 [H, W] of every frame; the first is the truth."""
    truth = clip.mask(0)
    yield truth
    patches, size = frame_patches(encoder, clip.frame(0), side)
    h, w, _ = patches.shape
    small = np.array(Image.fromarray(truth).resize((w, h), Image.Resampling.NEAREST))
    classes = int(truth[truth != VOID].max(initial=0)) + 1
    label = torch.from_numpy(np.stack([small == c for c in range(classes)]).astype(np.float32)).to(
        patches.device
    )  # [C, h, w]
    memory: list[tuple[Tensor, Tensor]] = [(patches, label)]
    for t in range(1, clip.length):
        new, _ = frame_patches(encoder, clip.frame(t), side)
        guess = propagate(
            new, torch.stack([p for p, _ in memory]), torch.stack([s for _, s in memory]),
            window=o.window, topk=o.topk, temperature=o.temperature,
        )  # fmt: skip
        memory.append((new, guess))
        if len(memory) > 1 + o.context:
            del memory[1]  # the oldest but the first
        yield enlarged(guess, size, (truth.shape[0], truth.shape[1]))


def enlarged(soft: Tensor, size: tuple[int, int], native: tuple[int, int]) -> np.ndarray:
    """Soft labels [C, h, w] as a mask uint8 of the native size, by way of the network's input."""
    big = F.interpolate(soft[None], size=size, mode="bilinear", align_corners=False)[0]
    flat = big.flatten(1)
    low, high = flat.min(1).values, flat.max(1).values
    stretched = (flat - low[:, None]) / (high - low).clamp_min(1e-12)[:, None]
    stretched = torch.where(high[:, None] > 0, stretched, flat)
    mask = stretched.reshape(big.shape).argmax(0).to(torch.uint8).cpu().numpy()
    wide = Image.fromarray(mask).resize((native[1], native[0]), Image.Resampling.NEAREST)
    return np.array(wide)


def frame_patches(encoder: Encoder, frame: np.ndarray, side: int) -> tuple[Tensor, tuple[int, int]]:
    """Unit patch tokens [h, w, D] of a frame, and the size in pixels at which it was embedded.

    The shorter side becomes `side`, the longer one as it follows, rounded down to a multiple of 64
    (of the patch where that is no divisor of 64, or images are small).
    """
    p = encoder.backbone.patch_size
    step = 64 if 64 % p == 0 and side >= 256 else p
    h, w = frame.shape[:2]
    short, long = min(h, w), max(h, w)
    a = max(side // p, 1) * p
    b = max(int(long * a / short) // step * step, a)
    height, width = (a, b) if h <= w else (b, a)
    image = Image.fromarray(frame)
    if (height, width) != (h, w):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    x = encoder.normalise(np.array(image)[None])
    with encoder.evaluating():
        t = encoder.backbone.tokens(x)
        patches = F.normalize(t.patches[0].float(), dim=-1).unflatten(0, t.grid)
    return patches.clone(), (height, width)
