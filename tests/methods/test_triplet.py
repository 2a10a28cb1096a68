"""Triplet: the loss against naive loops, and the properties that must not be lost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from nolabel.backbones import build
from nolabel.errors import UsageError
from nolabel.methods.triplet import Triplet
from nolabel.methods.triplet import triplet_loss as loss_of_distances
from nolabel.nn.contrastive import distances, view_distances
from nolabel.types import Batch, Clock

CLOCK = Clock(0, 10, 2)


def views(n=6, d=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(2 * n, d, generator=g).double(), dim=-1)
    return z, torch.arange(n).repeat(2)


def triplet_loss(z, image, all_z, all_image, margin, mining):
    same = image[:, None] == all_image[None]
    return loss_of_distances(distances(z, all_z), same, margin, mining)


def naive(z, image, margin, mining):
    """Every anchor, its one positive, its negatives, one by one."""
    losses = []
    for a in range(len(z)):
        distance = [float((z[a] - z[j]).norm()) for j in range(len(z))]
        (p,) = (j for j in range(len(z)) if j != a and image[j] == image[a])
        negatives = [distance[j] for j in range(len(z)) if image[j] != image[a]]
        if mining == "hard":
            negatives = [min(negatives)]
        elif mining == "semi-hard":
            farther = [d for d in negatives if d > distance[p]]
            negatives = [min(farther) if farther else max(negatives)]
        losses += [max(0.0, distance[p] - d + margin) for d in negatives]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("mining", ["all", "semi-hard", "hard"])
@pytest.mark.parametrize("margin", [0.05, 0.3, 1.0])
def test_loss_equals_the_naive_loops(mining, margin):
    z, image = views()
    ours = triplet_loss(z, image, z, image, margin, mining)
    assert ours.item() == pytest.approx(naive(z, image, margin, mining), rel=1e-6)


def test_a_semi_hard_negative_is_farther_than_the_positive_where_there_is_one():
    """Three images on a circle: the nearest negative is nearer than the positive."""
    angle = torch.tensor([0.0, 0.2, 2.0, 0.5, 0.9, 3.0], dtype=torch.float64)
    z = torch.stack([angle.cos(), angle.sin()], 1)
    image = torch.arange(3).repeat(2)
    hard, semi = (triplet_loss(z, image, z, image, 0.1, m) for m in ("hard", "semi-hard"))
    assert semi < hard
    assert semi.item() == pytest.approx(naive(z, image, 0.1, "semi-hard"), rel=1e-6)


def test_coinciding_views_have_a_finite_gradient():
    z = F.normalize(torch.ones(8, 4), dim=-1).requires_grad_()
    image = torch.arange(4).repeat(2)
    triplet_loss(z, image, z, image, 0.2, "all").backward()
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(distances(z, z)).all()


def test_two_processes_together_have_the_loss_of_the_whole_batch():
    z, image = views(8)
    mine = [torch.tensor([0, 1, 2, 3, 8, 9, 10, 11]), torch.tensor([4, 5, 6, 7, 12, 13, 14, 15])]
    parts = [triplet_loss(z[i], image[i], z, image, 0.3, "semi-hard") for i in mine]
    whole = triplet_loss(z, image, z, image, 0.3, "semi-hard")
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_a_process_knows_its_own_images_among_those_of_all(as_process):
    z, image = views(8)
    mine = [torch.tensor([0, 1, 2, 3, 8, 9, 10, 11]), torch.tensor([4, 5, 6, 7, 12, 13, 14, 15])]
    order = torch.cat(mine)  # the rows of all, process by process
    for rank, rows in enumerate(mine):
        with as_process(rank, (z[rows], z[order]), (image[rows], image[order])):
            d, same = view_distances(z[rows].unflatten(0, (2, 4)))
        torch.testing.assert_close(d, distances(z[rows], z[order]))
        assert torch.equal(same, image[rows][:, None] == image[order][None])


def test_gradient_reaches_backbone_and_head():
    torch.manual_seed(0)
    m = Triplet(build("resnet_nano", image_size=32), Triplet.Options(hidden=16, projection=8))
    m.step(Batch(views={"view": torch.randn(2, 4, 3, 32, 32)}), CLOCK).loss.backward()
    assert [n for n, p in m.named_parameters() if p.grad is None] == []


def test_unknown_mining_is_refused():
    with pytest.raises(UsageError, match="semi-hard"):
        Triplet(build("resnet_nano", image_size=32), Triplet.Options(mining="semi"))
