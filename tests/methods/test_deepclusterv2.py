"""DeepCluster v2: naive computations, and the properties that must not be lost."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from nolabel.backbones import build
from nolabel.engine.optimiser import build_optimiser
from nolabel.engine.step import apply_update
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.methods.deepclusterv2 import DeepClusterV2
from nolabel.nn.assignment import spherical_kmeans
from nolabel.types import Batch, Clock, Optim


def make(**changes):
    torch.manual_seed(0)
    base = {"images": 12, "clusters": 3, "heads": 2, "hidden": 32, "projection": 8,
            "local_crops": 2, "local_size": 16}  # fmt: skip
    options = DeepClusterV2.Options(**{**base, **changes})
    return DeepClusterV2(build("resnet_nano", image_size=32), options)


def batch(seed=0, keys=range(6)):
    g = torch.Generator().manual_seed(seed)
    large, small = (torch.randn(2, len(keys), 3, s, s, generator=g) for s in (32, 16))
    return Batch(views={"global": large, "local": small}, keys=torch.tensor(list(keys)))


def epoch(m, number):
    """Two steps over the twelve images; k-means at the end."""
    for i in range(2):
        clock = Clock(2 * number + i, 20, 2)
        out = m.step(batch(i, range(6 * i, 6 * i + 6)), clock)
        m.after_update(clock)
    return out


def test_the_first_epoch_only_fills_the_memory():
    m = make()
    out = m.step(batch(), Clock(0, 20, 2))
    assert out.loss.item() == 0.0
    epoch(m, 0)
    torch.testing.assert_close(m.memory.norm(dim=-1), torch.ones(2, 12))
    assert (m.labels >= 0).all() and (m.labels < 3).all()
    assert m.step(batch(), Clock(2, 20, 2)).loss.item() > 0.0


@pytest.mark.parametrize("name", ["larc", "adamw", "sgd"])
def test_no_weight_moves_while_there_are_no_labels(name):
    """Weight decay must not act alone: with LARC it would shrink all weights to 18 %."""
    m = make()
    optim = Optim(name=name, lr=0.5, weight_decay=0.1, decay_all=True)
    optimiser = build_optimiser(m, optim)
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    for step in range(3):
        clock = Clock(step, 20, 2)
        m.step(batch(step % 2, range(6 * (step % 2), 6 * (step % 2) + 6)), clock).loss.backward()
        apply_update(m, optimiser, optim, clock)
        moved = [n for n, p in m.named_parameters() if not torch.equal(p, before[n])]
        assert bool(moved) is (step == 2), moved


def test_a_run_that_ends_with_the_first_epoch_is_refused():
    with pytest.raises(UsageError, match="--epochs 2"):
        make().step(batch(), Clock(0, 2, 2))
    make().step(batch(), Clock(0, 3, 2))


def test_memory_keeps_each_images_own_embedding():
    m = make().eval()
    data = batch(0, [7, 2, 5, 0, 11, 3])
    clock = Clock(0, 20, 2)
    m.step(data, clock)
    m.after_update(clock)
    for bank in range(2):
        z = F.normalize(m.projector(m.backbone(data.views["global"][bank])), dim=-1)
        torch.testing.assert_close(m.memory[bank, data.keys], z, rtol=1e-4, atol=1e-5)
    assert m.memory[:, [1, 4, 6, 8, 9, 10]].abs().sum() == 0


def test_loss_equals_the_naive_loops_over_heads_crops_and_images():
    m = make().eval()
    epoch(m, 0)
    m.labels[0, 4] = -100  # an image without a label is left out
    data = batch(5, range(6))
    z = []
    for views in data.views.values():
        z += [F.normalize(m.projector(m.backbone(v)), dim=-1) for v in views]
    heads = []
    for h in range(2):
        losses = []
        for crop in z:
            for image in range(6):
                y = int(m.labels[h, image])
                if y >= 0:
                    e = [math.exp((crop[image] @ c).item() / 0.1) for c in m.prototypes[h]]
                    losses.append(-math.log(e[y] / sum(e)))
        heads.append(sum(losses) / len(losses))
    ours = m.step(data, Clock(2, 20, 2)).loss.item()
    assert ours == pytest.approx(sum(heads) / 2, rel=1e-4)


def test_prototypes_are_the_centroids_and_are_never_trained():
    m = make()
    epoch(m, 0)
    assert "prototypes" not in dict(m.named_parameters())
    for h in range(2):
        z, y = m.memory[h % 2], m.labels[h]
        nearest = (z @ m.prototypes[h].T).argmax(1)
        assert torch.equal(nearest, y)


def test_heads_use_the_two_memories_in_turn():
    m = make(heads=2)
    epoch(m, 0)
    other = (m.memory[1] @ m.prototypes[0].T).argmax(1)
    assert not torch.equal(m.prototypes[0], m.prototypes[1]) or not torch.equal(other, m.labels[0])


def test_memory_labels_and_prototypes_survive_a_checkpoint():
    m, fresh = make(), make()
    epoch(m, 0)
    fresh.load_state_dict(m.state_dict())
    clock = Clock(2, 20, 2)
    assert m.step(batch(), clock).loss.item() == fresh.step(batch(), clock).loss.item()


def test_labels_change_only_when_an_epoch_ends():
    m = make()
    epoch(m, 0)
    before = m.prototypes.clone()
    m.step(batch(9), Clock(2, 20, 2))
    m.after_update(Clock(2, 20, 2))
    assert torch.equal(m.prototypes, before)
    m.step(batch(9, range(6, 12)), Clock(3, 20, 2))
    m.after_update(Clock(3, 20, 2))
    assert not torch.equal(m.prototypes, before)


def test_k_means_finds_well_separated_clusters():
    g = torch.Generator().manual_seed(0)
    true = torch.arange(60) % 3
    z = F.normalize(torch.eye(3, 8)[true] + 0.05 * torch.randn(60, 8, generator=g), dim=-1)
    centroids, label = spherical_kmeans(z, z[[0, 1, 2]], 10, chunk=7)
    assert torch.equal(label, true)
    for k in range(3):
        torch.testing.assert_close(centroids[k], F.normalize(z[true == k].sum(0), dim=0))


def test_a_centroid_without_vectors_stays():
    z = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1]]), dim=-1)
    far = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    centroids, label = spherical_kmeans(z, far, 5)
    assert torch.equal(centroids[1], far[1]) and label.tolist() == [0, 0]


def test_an_image_outside_the_memory_is_refused():
    with pytest.raises(UsageError, match="--images"):
        make().step(batch(0, range(7, 13)), Clock(0, 20, 2))


def test_more_clusters_than_images_are_refused():
    with pytest.raises(UsageError, match="--clusters"):
        make(clusters=13)


def test_paper_recipe_has_the_papers_numbers_and_the_datas_size():
    r = DeepClusterV2.paper_recipe(RecipeContext(image_size=224, images=50_000))
    o = r.options
    assert (o.images, o.clusters, o.heads, o.temperature) == (50_000, 3000, 3, 0.1)
    assert (r.optim.name, r.optim.lr) == ("larc", 4.8)
