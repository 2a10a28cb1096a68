"""The one contract that every backbone honours.

A method, an evaluator or a picture sees only this. What a backbone is able to do stands in
`can`; whoever needs more asks with `require` and fails at construction, with a hint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nolabel.errors import UsageError, unknown
from nolabel.types import Tokens

FACETS = ("query", "key", "value", "token")
ABILITIES = {
    "mask": "replace patches by a mask token before the first block",
    "drop": "leave patches out and run on the visible ones only",
    "any_size": "take images of another size than it was built for",
    "attention": "show the attention of its class token",
    "stride": "cut patches that overlap",
    "patches": "give features of places in the image, not of the whole image alone",
}


class HasUnits(nn.Module):
    """A network that says which of its modules are sharded and compiled one by one."""

    @property
    def shard_units(self) -> list[nn.Module]:
        """Modules that hold most of the weights and that training always calls as modules, never by
        their parts: their weights can be gathered one unit at a time (FSDP2)."""
        return []

    @property
    def compile_units(self) -> list[nn.Module]:
        """The layers that `--compile` compiles, each called as a module: many and alike."""
        return self.shard_units


def shard_units(method: nn.Module) -> list[nn.Module]:
    """The shard units of all networks of a method."""
    return [u for m in method.modules() if isinstance(m, HasUnits) for u in m.shard_units]


class Backbone(HasUnits):
    """An image encoder.

    Attributes:
        name: timm's architecture name.
        kwargs: keyword arguments that rebuild it through timm.
        dim: width D of the pooled embedding and of the tokens.
        depth: number of layers that `layers` and `attention` can reach.
        image_size: side in pixels that it was built for.
        patch_size: side of a patch (or the stride of the last feature map), in pixels; where
            patches are cut ("mask"), sides of images must be multiples of it.
        can: subset of `ABILITIES`.
        net: the network itself; its parameters and buffers, under its own names, are what an
            encoder file holds.
    """

    name: str
    kwargs: dict[str, Any]
    dim: int
    depth: int
    image_size: int
    patch_size: int
    can: frozenset[str]
    net: nn.Module
    recompute = False  # activation checkpointing, of transformers

    @property
    def channels(self) -> int:
        """Channels C of the images that it takes."""
        return int(self.kwargs.get("in_chans", 3))

    @property
    def mask_patch(self) -> int:
        """Side in pixels of the finest patch that `tokens` can mask, a divisor of `patch_size`.

        A ViT masks its tokens; Swin embeds patches that it merges later, and masks those.
        """
        return self.patch_size

    @property
    def mask_dim(self) -> int:
        """Width of the mask token: that of the patch embedding."""
        return self.dim

    def tokens(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tokens:
        """Final features of images x [N, C, H, W].

        Args:
            mask: bool [N, P] on the grid of the final tokens, or [N, M] on that of patches of
                `mask_patch` pixels; True where `mask_token` [mask_dim] replaces the embedded
                patches, before the position embedding is added (needs "mask").
            keep: int64 [N, K], patches to keep, in this order; the rest is left out after the
                position embedding is added (needs "drop").
        """
        raise NotImplementedError

    def layers(self, x: Tensor, n: int) -> list[Tokens]:
        """Features of the last n layers, shallow to deep, each through the final norm."""
        raise NotImplementedError

    def attention(self, x: Tensor, layer: int = -1, rows: slice = slice(None)) -> Tensor:
        """Attention [N, heads, T, R + P] of one layer, rows sum to 1 (needs "attention").

        Args:
            rows: the T tokens that look, of R prefix tokens and P patches; all by default. Few are
                cheap: no more than asked for is computed in that layer, and no layer after it.
        """
        require(self, ["attention"], "Attention")
        raise NotImplementedError

    def with_stride(self, stride: int) -> AbstractContextManager[None]:
        """Inside, patches are cut every `stride` pixels, a divisor of `patch_size`, so that they
        overlap: the grid has 1 + (H - patch_size) // stride rows (needs "stride"; Amir et al.,
        "Deep ViT Features as Dense Visual Descriptors", 2021)."""
        require(self, ["stride"], f"A stride of {stride} px")
        raise NotImplementedError

    def facets_of(self, x: Tensor, wanted: Sequence[tuple[int, str]]) -> list[Tokens]:
        """Per-patch query, key, value or token of some layers, heads side by side, in one walk no
        further than the deepest of them.

        Args:
            wanted: pairs of a layer and which: query, key, value, or token (what leaves the layer,
                before any final norm).
        """
        raise NotImplementedError

    def facets(self, x: Tensor, layer: int, which: str) -> Tokens:
        """The only one of `facets_of`."""
        return self.facets_of(x, [(layer, which)])[0]

    def dense_embeddings(self, x: Tensor) -> Tokens:
        """Each patch as if the whole image were it: features in the space of the pooled embedding.

        Those whose mean the embedding is; of a ViT with a class token the last layer's values
        without mixing among patches (Zhou et al., "Extract Free Dense Labels from CLIP", 2022,
        arXiv 2112.01071).
        """
        return self.tokens(x)

    def set_drop_path(self, rate: float, *, by_samples: bool = False) -> None:
        """Stochastic depth, growing linearly from 0 to `rate` over the layers; 0 removes it.

        Args:
            by_samples: as in DINOv2: the same rate in every layer, and a layer computes nothing
                for the samples that it drops (ViT alone).
        """
        raise NotImplementedError

    def _block_by_block(self, block: Callable[..., Tensor], *args: Any) -> Tensor:
        """A block's output; with `recompute` what is inside is not kept for the backward pass but
        computed again there (Chen et al. 2016, arXiv 1604.06174)."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)  # type: ignore[return-value]
        return block(*args)

    def forward(self, x: Tensor) -> Tensor:
        """The pooled embedding [N, D]."""
        return self.tokens(x).pooled


def map_tokens(x: Tensor) -> Tokens:
    """Tokens of a feature map [N, D, h, w], whose mean is the embedding."""
    pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return Tokens(pooled, x.flatten(2).transpose(1, 2), (x.shape[-2], x.shape[-1]))


def resolve_facets(
    backbone: Backbone,
    wanted: Sequence[tuple[int, str]],
    can: Sequence[str] = FACETS,
    why: str = "",
) -> list[tuple[int, str]]:
    """Pairs of layers, counted from the front, and facets.

    Raises:
        UsageError: there is no such layer or facet.
    """
    for _, which in wanted:
        if which not in can:
            raise unknown("facet", which, can, why)
    return [(layer_number(backbone, layer), which) for layer, which in wanted]


def layer_number(backbone: Backbone, layer: int) -> int:
    """A layer counted from the front; -1 is the last.

    Raises:
        UsageError: there is no such layer.
    """
    depth = backbone.depth
    if not -depth <= layer < depth:
        raise UsageError(
            f"Layer {layer} does not exist: {backbone.name!r} has layers 0 to {depth - 1} (-1 is "
            "the last)."
        )
    return layer % depth


def require(backbone: Backbone, needs: Iterable[str], who: str) -> None:
    """Refuses a backbone that cannot do what `who` needs.

    Raises:
        UsageError: names the missing abilities and what to use instead.
    """
    missing = [n for n in needs if n not in backbone.can]
    if missing:
        cannot = " and ".join(f"{ABILITIES[n]} ({n!r})" for n in missing)
        every = {*missing} <= {"any_size", "patches"}  # what all networks of timm can
        use = "a ViT or Swin" if {*missing} <= {"mask", "any_size", "patches"} else "a ViT"
        use = "a ViT, Swin, ConvNeXt or ResNet" if every else use
        raise UsageError(
            f"{who} needs a backbone that can {cannot}; {backbone.name!r} cannot. "
            f"Use {use}, for example --backbone vit_tiny, or a method that works with any "
            "backbone, such as simclr."
        )


def recompute(module: nn.Module, yes: bool = True) -> None:
    """Whether all networks in a module compute activations again instead of keeping them."""
    for part in module.modules():
        if isinstance(part, Backbone):
            part.recompute = yes
