"""The random state is read, set, and preserved."""

from __future__ import annotations

import pytest
import torch

from nolabel.nn.random_state import preserve_rng, rng_state, set_rng_state


def test_the_random_state_returns():
    before = rng_state()
    a = torch.rand(5)
    set_rng_state(before)
    assert torch.equal(torch.rand(5), a)


def test_what_is_drawn_inside_does_not_move_the_state_outside():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with preserve_rng():
        torch.manual_seed(7)
        torch.rand(5)
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(3)
    with pytest.raises(ValueError, match="inside"), preserve_rng():
        torch.rand(5)
        raise ValueError("inside")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpus_state_is_preserved_too():
    torch.zeros(1, device="cuda")
    before = torch.cuda.get_rng_state()
    with preserve_rng():
        torch.rand(5, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
