"""Masks: counts, shapes, and that every image is drawn by itself."""

from __future__ import annotations

import numpy as np
import torch

from nolabel.nn.keyed_random import KeyedRandom
from nolabel.nn.masks import block_masks, mask_noise, unit_masks


def test_blocks_hide_at_most_what_was_asked_and_mostly_all_of_it():
    masks = block_masks(np.full(200, 75), (14, 14), random=KeyedRandom(200, seed=0))
    counts = masks.sum(1)
    assert masks.shape == (200, 196) and masks.dtype == torch.bool
    assert counts.max() <= 75 and counts.float().mean() > 70


def test_blocks_with_exact_counts_fill_up():
    counts = np.array([0, 1, 30, 75, 196])
    masks = block_masks(counts, (14, 14), exact=True, random=KeyedRandom(5, seed=0))
    assert masks.sum(1).tolist() == counts.tolist()


def test_blocks_are_larger_than_single_patches():
    """Neighbours of a hidden patch are mostly hidden too, which at random they are not."""
    masks = block_masks(np.full(100, 78), (14, 14), random=KeyedRandom(100, seed=1))
    m = masks.view(-1, 14, 14).float()
    both = (m[:, :, 1:] * m[:, :, :-1]).sum() / m[:, :, :-1].sum()
    assert both > 0.7


def test_images_get_masks_of_their_own_and_a_seed_repeats_them():
    def draw(seed):
        torch.manual_seed(seed)
        return block_masks(np.full(8, 20), (8, 8), smallest=4)

    a = draw(0)
    assert torch.equal(a, draw(0)) and not torch.equal(a, draw(1))
    assert len({tuple(row.tolist()) for row in a}) == 8


def test_small_grids_with_blocks_larger_than_they_are_end():
    assert block_masks(np.full(3, 5), (3, 3), random=KeyedRandom(3, seed=0)).sum() <= 15
    assert block_masks(np.full(3, 5), (3, 3), exact=True).sum() == 15


def test_units_hide_whole_squares_in_the_exact_number():
    masks = unit_masks(mask_noise(5, 16), (4, 4), 0.6, scale=2)
    m = masks.view(5, 4, 2, 4, 2)
    assert (m.float().mean((2, 4)) % 1 == 0).all()
    assert masks.sum(1).tolist() == [4 * 10] * 5
