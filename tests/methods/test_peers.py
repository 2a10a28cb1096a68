"""Losses against independent packages: pytorch-metric-learning and vector-quantize-pytorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import NTXentLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from vector_quantize_pytorch import VectorQuantize

from nolabel.methods.triplet import triplet_loss
from nolabel.nn.codebook import Codebook
from nolabel.nn.contrastive import distances, nt_xent


def two_views(b=9, d=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(b, d, generator=g, dtype=torch.float64)
    return a, a + 0.7 * torch.randn(b, d, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent_and_its_gradient_are_pytorch_metric_learnings(temperature):
    z = torch.cat(two_views()).requires_grad_()
    image = torch.arange(9).repeat(2)
    theirs = NTXentLoss(temperature=temperature)(z, image)
    a, b = F.normalize(z, dim=-1).chunk(2)
    ours = nt_xent(a, b, temperature)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    mine, other = (torch.autograd.grad(x, z, retain_graph=True)[0] for x in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mining", ["all", "hard"])
def test_triplet_loss_and_its_gradient_are_pytorch_metric_learnings(mining):
    z = torch.cat(two_views(seed=1)).requires_grad_()
    image = torch.arange(9).repeat(2)
    distance = LpDistance(normalize_embeddings=True, p=2, power=1)
    pairs = BatchHardMiner(distance=distance)(z, image) if mining == "hard" else None
    theirs = TripletMarginLoss(margin=0.3, distance=distance, reducer=MeanReducer())(
        z, image, pairs
    )
    unit = F.normalize(z, dim=-1)
    ours = triplet_loss(distances(unit, unit), image[:, None] == image[None], 0.3, mining)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    mine, other = (torch.autograd.grad(x, z, retain_graph=True)[0] for x in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)


def test_codes_and_their_moving_averages_are_vector_quantize_pytorchs():
    torch.manual_seed(0)
    theirs = VectorQuantize(dim=5, codebook_size=7, decay=0.9, eps=1e-5, commitment_weight=0.25,
                            threshold_ema_dead_code=0, rotation_trick=False)  # fmt: skip
    theirs.train()
    book = theirs._codebook
    ours = Codebook(7, 5, ema=True, decay=0.9, revive=0.0)
    ours.codes.copy_(book.embed[0])
    ours.count.copy_(book.cluster_size[0])
    ours.total.copy_(book.embed_avg[0])
    for step in range(3):
        z = torch.randn(4, 11, 5)
        ids = ours.nearest(z)
        quantised, their_ids, commitment = theirs(z)
        assert torch.equal(ids, their_ids)
        torch.testing.assert_close(quantised, z + (ours.codes[ids] - z))
        torch.testing.assert_close(commitment.sum(), 0.25 * F.mse_loss(z, ours.codes[ids]))
        ours.observe(z, ids, step)
        ours.update()
        torch.testing.assert_close(ours.count, book.cluster_size[0])
        torch.testing.assert_close(ours.codes, book.embed[0], rtol=1e-4, atol=1e-5)
