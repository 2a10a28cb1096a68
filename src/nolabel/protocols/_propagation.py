"""Label propagation between frames by patch similarity, and the scores of the masks.

Jabri et al., "Space-Time Correspondence as a Contrastive Random Walk", 2020, in the form of Caron
et al., 2021; scores of Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video
Object Segmentation", 2016, and Pont-Tuset et al., "The 2017 DAVIS Challenge", 2017.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def propagate(
    target: Tensor, sources: Tensor, labels: Tensor, *, window: int, topk: int, temperature: float
) -> Tensor:
    """Propagates soft labels from earlier frames to a frame.

    Every patch takes the labels of its `topk` nearest neighbours among the patches of all source
    frames within `window` patches of its position, weighted by exp(similarity / temperature).

    Args:
        target: unit features of the frame, float [h, w, D].
        sources: unit features of the n source frames, float [n, h, w, D].
        labels: soft labels of the source frames, float [n, C, h, w].
        window: largest offset in patches along each axis; 0 or less is no limit.
        topk: number of neighbours.
        temperature: temperature of the softmax over similarities.

    Returns:
        float [C, h, w], summing to one over the classes where the labels do.
    """
    h, w, _ = target.shape
    n = len(sources)
    reach = window if window > 0 else max(h, w)
    columns = torch.arange(w, device=target.device)
    outside = (columns[:, None] - columns[None, :]).abs() > reach  # [w, w]
    out = []
    for y in range(h):  # row by row: a row needs only a few rows of the sources
        low, high = max(y - reach, 0), min(y + reach + 1, h)
        candidates = sources[:, low:high]  # [n, r, w, D]
        similarity = torch.einsum("xd,nrcd->xnrc", target[y], candidates) / temperature
        similarity = similarity.masked_fill(outside[:, None, None, :], -torch.inf)
        similarity = similarity.flatten(1)  # [w, n*r*w]
        threshold = similarity.topk(min(topk, similarity.shape[1]), dim=1).values[:, -1:]
        # As in the original, ties with the last neighbour are included.
        weights = similarity.masked_fill(similarity < threshold, -torch.inf).softmax(1)
        source_labels = labels[:, :, low:high].permute(0, 2, 3, 1).reshape(n * (high - low) * w, -1)
        out.append(weights.to(source_labels.dtype) @ source_labels)  # [w, C]
    return torch.stack(out).permute(2, 0, 1)


def jaccard(a: np.ndarray, b: np.ndarray, void: np.ndarray | None = None) -> float:
    """Intersection over union of two masks; 1 if both are empty.

    Args:
        a: bool [H, W].
        b: bool [H, W].
        void: bool [H, W], pixels to ignore; None ignores none.
    """
    if void is not None:
        a, b = a & ~void, b & ~void
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """Boundary of a mask: pixels whose right, lower or lower right neighbour differs.

    Args:
        mask: bool [H, W].

    Returns:
        bool [H, W].
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, lower, across = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    out = (mask != right) | (mask != lower)
    # Pixels of the last row and column have no lower right neighbour.
    out[:-1, :-1] |= (mask != across)[:-1, :-1]
    return out


def boundary_score(
    a: np.ndarray, b: np.ndarray, void: np.ndarray | None = None, tolerance: float = 0.008
) -> float:
    """F measure of the boundaries of two masks, with a tolerance in position.

    Args:
        a: predicted mask, bool [H, W].
        b: true mask, bool [H, W].
        void: bool [H, W], pixels to ignore; None ignores none.
        tolerance: fraction of the image diagonal, rounded up to whole pixels.
    """
    if void is not None:
        a, b = a & ~void, b & ~void
    reach = math.ceil(tolerance * math.hypot(*a.shape))
    guess, truth = boundary(a), boundary(b)
    guess_pixels, truth_pixels = int(guess.sum()), int(truth.sum())
    if not guess_pixels or not truth_pixels:
        return float(guess_pixels == truth_pixels)
    precision = (guess & _dilate(truth, reach)).sum() / guess_pixels
    recall = (truth & _dilate(guess, reach)).sum() / truth_pixels
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def _dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    """Dilates a non-empty mask bool [H, W] by `reach` pixels (Euclidean distance)."""
    return np.asarray(distance_transform_edt(~mask)) <= reach
