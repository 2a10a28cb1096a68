"""DINO's head: the start of its prototypes."""

from __future__ import annotations

import pytest
import torch

from nolabel.nn.heads import PrototypeHead


@pytest.mark.parametrize("dim", [64, 256])
def test_prototypes_start_as_the_rows_of_a_linear_layer(dim):
    """Uniform, standard deviation 1 / sqrt(3 d): shorter rows would turn faster. The rest of the
    head is truncated normal with 0.02."""
    torch.manual_seed(0)
    head = PrototypeHead(96, 4096, hidden=256, bottleneck=dim)
    v = head.last_layer.weight_v
    assert v.std().item() == pytest.approx((3 * dim) ** -0.5, rel=0.01)
    assert v.abs().max().item() == pytest.approx(dim**-0.5, rel=0.01)
    assert head.last_layer.weight_g.eq(1).all()
    assert head.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    logits = head(torch.randn(8, 96))
    assert logits.abs().max() <= 1.0  # of unit vectors
