"""Labels handed from frame to frame by the similarity of patches, and how well they arrive.

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
    """Soft labels of a frame, from those of frames before it.

    Every patch takes the labels of the `topk` most similar patches among those of all source frames
    that lie within `window` patches of its place, weighted by exp(similarity / temperature).

    Args:
        target: features [h, w, D].
        sources: features [n, h, w, D].
        labels: of the sources, [n, C, h, w].
        window: reach in patches along both axes; 0 or less is everywhere.
        topk: patches that vote.
        temperature: smaller gives the most similar more weight.

    Returns:
        [C, h, w], summing to one over the classes where the labels do.
    """
    h, w, _ = target.shape
    n = len(sources)
    reach = window if window > 0 else max(h, w)
    columns = torch.arange(w, device=target.device)
    far = (columns[:, None] - columns[None, :]).abs() > reach  # [w, w]
    out = []
    for y in range(h):  # rows of the target by themselves, since they see few rows of the sources
        low, high = max(y - reach, 0), min(y + reach + 1, h)
        near = sources[:, low:high]  # [n, r, w, D]
        similar = torch.einsum("xd,nrcd->xnrc", target[y], near) / temperature
        similar = similar.masked_fill(far[:, None, None, :], -torch.inf).flatten(1)  # [w, n*r*w]
        least = similar.topk(min(topk, similar.shape[1]), dim=1).values[:, -1:]
        # Those as similar as the last of them vote as well, as in the original.
        weights = similar.masked_fill(similar < least, -torch.inf).softmax(1)
        known = labels[:, :, low:high].permute(0, 2, 3, 1).reshape(n * (high - low) * w, -1)
        out.append(weights.to(known.dtype) @ known)  # [w, C]
    return torch.stack(out).permute(2, 0, 1)


def jaccard(a: np.ndarray, b: np.ndarray, void: np.ndarray | None = None) -> float:
    """Intersection over union of two masks bool [H, W]; two empty ones agree."""
    if void is not None:
        a, b = a & ~void, b & ~void
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels whose right, lower or lower right neighbour is on the other side: bool [H, W]."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, lower, across = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    out = (mask != right) | (mask != lower)
    # Beyond the border there is no corner: it is asked of inner pixels alone.
    out[:-1, :-1] |= (mask != across)[:-1, :-1]
    return out


def boundary_score(
    a: np.ndarray, b: np.ndarray, void: np.ndarray | None = None, tolerance: float = 0.008
) -> float:
    """F measure of boundaries that may be off by `tolerance` of the image's diagonal.

    Args:
        a: the guess, bool [H, W].
        b: the truth, bool [H, W].
        void: bool [H, W], what counts for neither.
        tolerance: share of the diagonal, rounded up to whole pixels.
    """
    if void is not None:
        a, b = a & ~void, b & ~void
    reach = math.ceil(tolerance * math.hypot(*a.shape))
    mine, true = boundary(a), boundary(b)
    found, wanted = int(mine.sum()), int(true.sum())
    if not found or not wanted:
        return float(found == wanted)
    precision = (mine & _near(true, reach)).sum() / found
    recall = (true & _near(mine, reach)).sum() / wanted
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def _near(mask: np.ndarray, reach: int) -> np.ndarray:
    """Pixels within `reach` of one of the mask, which must not be empty."""
    return np.asarray(distance_transform_edt(~mask)) <= reach
