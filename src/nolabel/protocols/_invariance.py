"""How features of changed images relate to those of the images, or of another encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nolabel.nn.knn import nearest

NEIGHBOURS = 10  # of an image, in `neighbours_kept`
FOLDS = 4  # of the images, in `turns_told`
PENALTY = 1e-2  # of ridge regression, relative to the mean of the Gram matrix's diagonal


def found(a: Tensor, b: Tensor, mean: Tensor | None = None) -> int:
    """Number of images whose feature in `a` is nearest to their own in `b`.

    Cosine similarity after subtracting a mean.

    Args:
        a, b: float [N, D].
        mean: float [D]; None: that of both.
    """
    mean = torch.cat([a, b]).mean(0) if mean is None else mean
    a, b = F.normalize(a - mean, dim=1), F.normalize(b - mean, dim=1)
    index = nearest(a, b, 1)[1][:, 0]
    return int((index == torch.arange(len(a))).sum())


def neighbours_kept(a: Tensor, b: Tensor, k: int = NEIGHBOURS) -> float:
    """Mean share of an image's k nearest other images in `a` that are among its k nearest in `b`.

    By chance k / (N - 1). Features that differ by a rotation have the same neighbours, so that two
    encoders can be compared.

    Args:
        a: float [N, D], of one kind of view or one encoder.
        b: float [N, E], of another.
        k: neighbours; at most N - 1.
    """
    k = min(k, len(a) - 1)
    mine, other = _neighbours(a, k), _neighbours(b, k)
    return float((mine[:, :, None] == other[:, None]).any(2).float().mean())


def _neighbours(z: Tensor, k: int) -> Tensor:
    """Numbers of the k nearest other rows, int64 [N, k], by cosine after subtracting the mean."""
    z = F.normalize(z - z.mean(0), dim=1)
    similarity = z @ z.T
    similarity.fill_diagonal_(-2.0)
    return similarity.topk(k, dim=1).indices


def turns_told(z: Tensor) -> float:
    """How often a linear classifier tells by how many quarter turns an image was turned.

    Ridge regression onto the four turns, on the images that it was not fitted to. Chance is 1 / 4;
    images without an up cannot be told. (Reed et al., "SelfAugment", 2021, arXiv 2009.07724: in
    choosing augmentations it agrees with the accuracy on labels.)

    Args:
        z: float [N, 4, D], the same image by 0, 1, 2 and 3 quarter turns.
    """
    n, turns, _ = z.shape
    fold = torch.arange(n) % FOLDS
    right = 0
    for held in range(FOLDS):
        fit = z[fold != held].double().flatten(0, 1)
        test = z[fold == held].double().flatten(0, 1)
        mean, std = fit.mean(0), fit.std(0) + 1e-6
        fit, test = (fit - mean) / std, (test - mean) / std
        target = torch.eye(turns, dtype=fit.dtype).repeat(len(fit) // turns, 1) - 1 / turns
        gram = fit.T @ fit
        gram += PENALTY * gram.diagonal().mean() * torch.eye(len(gram), dtype=fit.dtype)
        weights = torch.linalg.solve(gram, fit.T @ target)
        answer = (test @ weights).argmax(1)
        right += int((answer == torch.arange(turns).repeat(len(test) // turns)).sum())
    return right / (n * turns)
