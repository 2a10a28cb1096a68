"""The contract of backbones as a test: `nolabel.testing.check_backbone`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nolabel.backbones import build
from nolabel.backbones.base import ABILITIES, FACETS, Backbone
from nolabel.backbones.own import register
from nolabel.errors import UsageError
from nolabel.types import Tokens


def check_backbone(
    backbone: str | nn.Module | type[nn.Module], *, image_size: int = 32, channels: int = 3
) -> None:
    """Checks that a backbone keeps the contract.

    It checks shapes of tokens, layers, facets and attention; that the last layer is the final
    output; that features in evaluation mode are deterministic and do not depend on the rest of the
    batch; that gradients of the embedding reach all parameters; that weights can be saved and
    loaded; that it has the abilities in `can`, and refuses the others.

    Args:
        backbone: name of a preset or of timm, path/to/file.py:Class, a network, or its class.
        image_size: side in pixels of the images that it is built for and tested with.
        channels: C of the images.

    Raises:
        AssertionError: what is wrong, in one sentence.
        UsageError: it cannot be built.
    """
    name = backbone if isinstance(backbone, str) else register(backbone)
    torch.manual_seed(0)
    net = build(name, image_size=image_size, channels=channels).eval()
    unknown = sorted(net.can - ABILITIES.keys())
    assert not unknown, f"can {unknown}; allowed: {sorted(ABILITIES)}"
    assert net.channels == channels, f"channels is {net.channels}, not {channels}"
    assert net.image_size == image_size, f"image_size is {net.image_size}, not {image_size}"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, channels, image_size, image_size, generator=g)
    with torch.no_grad():
        tokens = _shapes(net, x)
        _deterministic(net, x, tokens)
        _layers_and_facets(net, x, tokens)
        _abilities(net, x, tokens)
    _gradients_reach_all(net, x)
    _save_and_load(net, name, x, tokens)


def _shapes(net: Backbone, x: Tensor) -> Tokens:
    n, d = len(x), net.dim
    t = net.tokens(x)
    assert isinstance(t, Tokens), f"tokens gives a {type(t).__name__}, not Tokens"
    assert t.pooled.shape == (n, d), f"pooled is {list(t.pooled.shape)}, not {[n, d]}"
    h, w = t.grid
    shape = list(t.patches.shape)
    assert shape == [n, h * w, d], f"patches are {shape}, not {[n, h * w, d]} of the grid {t.grid}"
    assert torch.isfinite(t.pooled).all() and torch.isfinite(t.patches).all(), "not finite"
    assert t.prefix is None or t.prefix.shape[::2] == (n, d), "prefix tokens of another shape"
    if "patches" in net.can:
        side = h * net.patch_size
        assert side == x.shape[-2], f"{h} rows of patches of {net.patch_size} px are {side} px"
    return t


def _deterministic(net: Backbone, x: Tensor, tokens: Tokens) -> None:
    again, single = net.tokens(x).pooled, net.tokens(x[1:2]).pooled
    assert torch.equal(again, tokens.pooled), "the same images give other features while evaluating"
    assert torch.allclose(single[0], tokens.pooled[1], atol=1e-4), (
        "an image's features depend on the others of its batch while evaluating"
    )
    pooled = net(x)
    assert torch.allclose(pooled, tokens.pooled, atol=1e-5), "forward is not the pooled embedding"


def _layers_and_facets(net: Backbone, x: Tensor, tokens: Tokens) -> None:
    layers = net.layers(x, net.depth)
    assert len(layers) == net.depth, f"layers gives {len(layers)} of depth {net.depth}"
    assert torch.allclose(layers[-1].patches, tokens.patches, atol=1e-5), (
        "the last layer's patches are not those of tokens"
    )
    assert torch.allclose(layers[-1].pooled, tokens.pooled, atol=1e-5), (
        "the last layer's embedding is not that of tokens"
    )
    assert len(net.layers(x, 1)) == 1, "layers(x, 1) gives more than the last layer"
    for which in FACETS if "attention" in net.can else ("token",):
        facet = net.facets(x, net.depth - 1, which)
        assert facet.patches.shape[1] == facet.grid[0] * facet.grid[1], f"{which} fills no grid"
    if "attention" in net.can:
        a = net.attention(x)
        assert torch.allclose(a.sum(-1), torch.ones(()), atol=1e-4), "attention does not sum to 1"
        row = net.attention(x, -1, slice(0, 1))
        assert torch.allclose(row, a[:, :, :1], atol=1e-5), "one row of attention is another alone"


def _abilities(net: Backbone, x: Tensor, tokens: Tokens) -> None:
    """Whether it has the abilities in `can`, and refuses the others."""
    n, p = len(x), tokens.patches.shape[1]
    if "any_size" in net.can:
        larger = F.pad(x, (0, x.shape[-1], 0, x.shape[-1]))
        pooled = net.tokens(larger).pooled
        assert pooled.shape == (n, net.dim), "images twice as large give another width"
    if "mask" in net.can:
        mask = torch.zeros(n, p, dtype=torch.bool)
        token = torch.full((net.mask_dim,), 3.0)
        unmasked = net.tokens(x, mask=mask, mask_token=token)
        assert torch.allclose(unmasked.patches, tokens.patches, atol=1e-5), "an empty mask hides"
        mask[:, : max(p // 2, 1)] = True
        hidden = net.tokens(x, mask=mask, mask_token=token).pooled
        assert not torch.allclose(hidden, tokens.pooled), "a mask hides nothing"
        rows = slice(0, _hidden_rows(mask, tokens.grid) * net.patch_size)
        changed = x.clone()
        changed[:, :, rows] += 1.0  # only what is hidden
        same = net.tokens(changed, mask=mask, mask_token=token).pooled
        assert torch.allclose(same, hidden, atol=1e-4), "what a mask hides is seen"
    else:
        _check_refusal(net, x, {"mask": torch.ones(n, p, dtype=torch.bool)})
    if "drop" in net.can:
        keep = torch.arange(max(p // 2, 1)).expand(n, -1)
        kept = net.tokens(x, keep=keep).patches.shape[1]
        assert kept == keep.shape[1], f"of {keep.shape[1]} patches to keep, {kept} came out"
    else:
        _check_refusal(net, x, {"keep": torch.zeros(n, 1, dtype=torch.long)})
    if "stride" in net.can and net.patch_size % 2 == 0:
        half = net.patch_size // 2
        with net.with_stride(half):
            rows_of_patches = net.tokens(x).grid[0]
        expected = 1 + (x.shape[-2] - net.patch_size) // half
        assert rows_of_patches == expected, f"{rows_of_patches} rows of patches, not {expected}"


def _hidden_rows(mask: Tensor, grid: tuple[int, int]) -> int:
    """Number of rows of the grid, from the top, that a mask [N, P] hides completely."""
    return int(mask[0].unflatten(0, grid).all(1).sum())


def _check_refusal(net: Backbone, x: Tensor, what: dict[str, Tensor]) -> None:
    try:
        net.tokens(x, **what)
    except UsageError:
        return
    raise AssertionError(f"tokens takes a {next(iter(what))} that the backbone cannot use")


def _gradients_reach_all(net: Backbone, x: Tensor) -> None:
    if not any(p.requires_grad for p in net.parameters()):
        return
    net.train()
    net.zero_grad()
    t = net.tokens(x)
    (t.pooled.square().sum() + t.patches.square().sum()).backward()
    unreached = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not unreached, f"parameters that the embedding does not reach: {unreached}"
    net.set_drop_path(0.0)
    net.zero_grad(set_to_none=True)
    net.eval()


def _save_and_load(net: Backbone, name: str, x: Tensor, tokens: Tokens) -> None:
    """Whether `kwargs` and the state_dict of `net` rebuild the same network."""
    parameters, saved = list(net.parameters()), {id(p) for p in net.net.parameters()}
    outside = sum(id(p) not in saved for p in parameters)
    assert not outside, f"{outside} parameters lie outside `net`, and would not be saved"
    torch.manual_seed(1)
    fresh = build(name, kwargs=net.kwargs)
    for p in fresh.parameters():
        p.data.add_(1.0)  # a parameter that load_state_dict misses stays wrong
    assert fresh.image_size == net.image_size and fresh.dim == net.dim, "kwargs make another one"
    fresh.net.load_state_dict(net.net.state_dict())
    with torch.no_grad():
        net.train()
        net.tokens(x)  # moves running statistics, which belong to the state
        net.eval()
        fresh.net.load_state_dict(net.net.state_dict())
        a, b = net.tokens(x).pooled, fresh.eval().tokens(x).pooled
    assert torch.equal(a, b), "the same weights give other features"
