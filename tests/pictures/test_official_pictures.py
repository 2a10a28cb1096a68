"""Parts, best buddies, components, appearance transfer and inversion: the official numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from nolabel.pictures.correspond import best_buddies
from nolabel.pictures.invert import noise_deviation
from nolabel.pictures.parts import common_parts, foreground_clusters
from nolabel.pictures.pca import principal, to_colours
from nolabel.pictures.transfer import loss_weights, relative_error, self_similarity

ORACLES = Path(__file__).parents[1] / "oracles"


def official(name):
    return load_file(ORACLES / f"{name}.safetensors")


def by_image(o, name):
    """An array of all patches, cut into images."""
    return np.split(o[name].numpy(), o["grids"].prod(1).cumsum(0)[:-1].tolist())


@pytest.mark.parametrize("percent", [50, 75, 100])
def test_all_images_vote_on_a_cluster(percent):
    o = official("cosegment_votes")
    labels, saliency = by_image(o, "labels"), by_image(o, "saliency")
    found = foreground_clusters(labels, saliency, [0.065] * len(labels), percent / 100)
    assert found.tolist() == o[f"salient.{percent}"].nonzero()[:, 0].tolist()
    mask = np.isin(np.concatenate(labels), found)
    assert np.array_equal(mask, o[f"mask.{percent}"].numpy())


def test_common_parts_are_in_every_image():
    o = official("cosegment_votes")
    expected = o["part_common"].nonzero()[:, 0].tolist()
    assert common_parts(by_image(o, "part_labels")).tolist() == expected


def test_best_buddies_are_sought_among_all_patches_and_both_ends_are_salient():
    o = official("best_buddies")
    a, b = (F.normalize(o[f"{k}.descriptors"], dim=1) for k in ("one", "two"))
    rows, columns, cosines = best_buddies(a, b)
    assert sorted(rows.tolist()) == o["mutual"].nonzero()[:, 0].tolist()
    torch.testing.assert_close(cosines, o["similarity"][rows, columns], atol=1e-6, rtol=1e-5)
    salient_a, salient_b = (o[f"{k}.saliency"] > 0.05 for k in ("one", "two"))
    rows, columns, _ = best_buddies(a, b, salient_a, salient_b)
    assert sorted(rows.tolist()) == o["both_salient_pairs"].nonzero()[:, 0].tolist()
    assert torch.equal(columns, o["nearest_of_one"][rows])


def test_a_salient_patch_whose_nearest_is_ground_has_no_pair():
    a = F.normalize(torch.tensor([[1.0, 0.1], [0.0, 1.0]]), dim=1)
    b = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.5]]), dim=1)
    assert best_buddies(a, b)[1][0] == 0  # the first two are each other's nearest
    rows, _, _ = best_buddies(a, b, torch.tensor([True, False]), torch.tensor([False, True]))
    assert not len(rows)


def test_four_components_and_the_colours_of_the_last_three():
    o = official("pca")
    parts = by_image(o, "descriptors")
    scores, share = principal(np.concatenate(parts), 4)
    expected = o["together.components"].numpy()
    signs = np.sign((scores * expected).sum(0))
    np.testing.assert_allclose(scores * signs, expected, atol=1e-4)
    variance = o["together.variance"][0].numpy()
    np.testing.assert_allclose(share / share[0], variance / variance[0], rtol=1e-5)
    flat = torch.from_numpy(scores * signs).numpy()[:, 1:]
    cuts = np.cumsum([len(p) for p in parts])[:-1]
    for mine, rgb in zip(np.split(flat, cuts), by_image(o, "rgb"), strict=True):
        found = to_colours(mine[None, None], each=True)[0, 0]
        assert np.abs(found / 255 - rgb).max() < 1 / 255 + 1e-6
    for part, axes in zip(parts, by_image(o, "separate.components"), strict=True):
        alone = principal(part, 4)[0]
        np.testing.assert_allclose(np.abs(alone), np.abs(axes), atol=1e-4)


def test_transfer_compares_what_the_official_losses_compare():
    o = official("splice_losses")
    # Ours are relative to the squared norm of the target; theirs are means over the entries.
    keys = {k: o[f"qkv.{k}"].chunk(3, -1)[1] for k in
            ("structure", "generated", "identity", "appearance")}  # fmt: skip
    target = self_similarity(keys["structure"])
    torch.testing.assert_close(target, o["self_similarity.structure"], atol=1e-6, rtol=1e-5)

    def mean_error(x, y):
        """The official loss by ours, and its gradient with respect to x."""
        each = [relative_error(x[i : i + 1], y[i : i + 1]) * y[i].square().mean() for i in (0, 1)]
        return torch.stack(each).sum()

    qkv = o["qkv.generated"].requires_grad_(True)
    structure = mean_error(self_similarity(qkv.chunk(3, -1)[1]), target)
    torch.testing.assert_close(structure.detach(), o["structure_loss"])
    structure.backward()
    torch.testing.assert_close(qkv.grad, o["structure_loss_grad"], atol=1e-6, rtol=1e-4)
    token = o["tokens.generated"][:, 0].requires_grad_(True)
    appearance = mean_error(token, o["tokens.appearance"][:, 0])
    torch.testing.assert_close(appearance.detach(), o["appearance_loss"])
    appearance.backward()
    torch.testing.assert_close(token.grad, o["appearance_loss_grad"][:, 0])
    identity = mean_error(keys["identity"], keys["appearance"])
    torch.testing.assert_close(identity, o["identity_loss"])


def test_weights_of_the_transfer_by_step():
    expected = official("splice_losses")["weights"]
    found = torch.tensor([loss_weights(step, (10, 1, 1)) for step in range(len(expected))])
    assert torch.equal(found, expected)


def test_noise_of_the_inversion_by_step():
    path = ORACLES / "splice_inversion_noise.safetensors"
    with safe_open(path, "pt") as file:
        steps, expected = int(file.metadata()["iterations"]), file.get_tensor("deviation.cls")
    assert [noise_deviation(s, steps) for s in range(steps)] == expected.tolist()
    stages = [noise_deviation(s, 20_000) for s in (0, 9_999, 10_000, 14_999, 15_000)]
    assert stages == [10, 10, 2, 2, 0.5]
