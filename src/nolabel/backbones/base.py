"""The interface of all backbones.

Methods, protocols and pictures use only this. `can` lists a backbone's abilities; code that needs
one calls `require`, which fails early, with a hint.
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
    "attention": "return its attention matrices",
    "stride": "cut patches that overlap",
    "patches": "give features of patches, not only of the whole image",
}


class HasUnits(nn.Module):
    """A network that says which of its modules are sharded and compiled one by one."""

    @property
    def shard_units(self) -> list[nn.Module]:
        """The FSDP2 units: modules that hold most of the weights and whose forward pass training
        always calls, never a submodule's alone, so that each can be all-gathered by itself."""
        return []

    @property
    def compile_units(self) -> list[nn.Module]:
        """The layers that `--compile` compiles: many equal modules, which share a graph."""
        return self.shard_units


def shard_units(method: nn.Module) -> list[nn.Module]:
    """The FSDP2 units of all networks in a method."""
    return [u for m in method.modules() if isinstance(m, HasUnits) for u in m.shard_units]


class Backbone(HasUnits):
    """An image encoder.

    Attributes:
        name: timm's architecture name.
        kwargs: keyword arguments with which timm builds it again.
        dim: width D of the pooled embedding and of the tokens.
        depth: number of layers L that `layers` and `attention` can return.
        image_size: side in pixels of the images that it was built for.
        patch_size: side of a patch, or the stride of the last feature map, in pixels; if it can
            "mask", sides of images must be multiples of it.
        can: the abilities, a subset of `ABILITIES`.
        net: the network itself; its state_dict is the content of an encoder file.
        recompute: activation checkpointing of the blocks.
    """

    name: str
    kwargs: dict[str, Any]
    dim: int
    depth: int
    image_size: int
    patch_size: int
    can: frozenset[str]
    net: nn.Module
    recompute = False

    @property
    def channels(self) -> int:
        """Channels C of its input images."""
        return int(self.kwargs.get("in_chans", 3))

    @property
    def mask_patch(self) -> int:
        """Side in pixels of the smallest patch that `tokens` can mask; divides `patch_size`.

        A ViT masks its tokens; Swin masks the patches that it embeds and merges later.
        """
        return self.patch_size

    @property
    def mask_dim(self) -> int:
        """Width of the mask token, which is that of the patch embedding."""
        return self.dim

    def tokens(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tokens:
        """The final tokens, with gradient.

        Args:
            x: normalised images, float [N, C, H, W].
            mask: bool [N, P] on the grid of the final tokens, or [N, M] on the grid of patches of
                `mask_patch` pixels; where True, `mask_token` replaces the patch embedding, before
                the position embedding is added (needs "mask").
            keep: int64 [N, K], the patches to keep, in this order; the others are dropped after
                the position embedding is added (needs "drop").
            mask_token: float [mask_dim]; needed with `mask`.

        Returns:
            pooled [N, D]; patches [N, P, D], or [N, K, D] with `keep`; prefix [N, R, D] or None.

        Raises:
            UsageError: an ability that it lacks, or sizes that do not fit.
        """
        raise NotImplementedError

    def layers(self, x: Tensor, n: int) -> list[Tokens]:
        """Tokens of the last n layers of images x [N, C, H, W], from shallow to deep, each through
        the final norm."""
        raise NotImplementedError

    def attention(self, x: Tensor, layer: int = -1, rows: slice = slice(None)) -> Tensor:
        """Attention of one layer, [N, heads, T, R + P]; rows sum to 1 (needs "attention").

        Args:
            x: images [N, C, H, W].
            layer: number from 0; -1 is the last. No later layer is computed.
            rows: the T query tokens, of R prefix tokens and P patches; all by default. Only these
                rows are computed.
        """
        require(self, ["attention"], "Attention")
        raise NotImplementedError

    def with_stride(self, stride: int) -> AbstractContextManager[None]:
        """A context in which patches overlap: one every `stride` pixels, a divisor of `patch_size`.

        The grid then has 1 + (H - patch_size) // stride rows (needs "stride"; Amir et al., "Deep
        ViT Features as Dense Visual Descriptors", 2021).
        """
        require(self, ["stride"], f"A stride of {stride} px")
        raise NotImplementedError

    def facets_of(self, x: Tensor, wanted: Sequence[tuple[int, str]]) -> list[Tokens]:
        """Queries, keys, values or tokens of some layers, in one forward pass up to the deepest.

        Args:
            x: images [N, C, H, W].
            wanted: pairs (layer, facet): "query", "key", "value", or "token", the layer's output
                before any final norm.

        Returns:
            one for each pair: [N, P, D_i] with the heads concatenated.
        """
        raise NotImplementedError

    def facets(self, x: Tensor, layer: int, which: str) -> Tokens:
        """`facets_of` for a single layer and facet."""
        return self.facets_of(x, [(layer, which)])[0]

    def dense_embeddings(self, x: Tensor) -> Tokens:
        """Patch features in the space of the pooled embedding, [N, P, D], of images [N, C, H, W].

        Where the embedding is a mean of tokens, these tokens. Of a ViT with a class token, the
        last layer's values without attention among patches (Zhou et al., "Extract Free Dense Labels
        from CLIP", 2022, arXiv 2112.01071).
        """
        return self.tokens(x)

    def set_drop_path(self, rate: float, *, by_samples: bool = False) -> None:
        """Sets stochastic depth, which grows linearly from 0 to `rate` over the layers.

        Args:
            rate: share of samples whose branch is dropped in the last layer, in [0, 1); 0 = none.
            by_samples: DINOv2's way: the same rate in all layers, and nothing is computed for
                dropped samples (ViT only).

        Raises:
            UsageError: `by_samples` of another network, or a rate above 0 of one without paths.
        """
        raise NotImplementedError

    def _block_by_block(self, block: Callable[..., Tensor], *args: Any) -> Tensor:
        """A block's output, with activation checkpointing if `recompute` (Chen et al. 2016, arXiv
        1604.06174)."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)  # type: ignore[return-value]
        return block(*args)

    def forward(self, x: Tensor) -> Tensor:
        """The pooled embedding [N, D] of images [N, C, H, W]."""
        return self.tokens(x).pooled


def map_tokens(x: Tensor) -> Tokens:
    """Tokens of a feature map [N, D, h, w]; the pooled embedding [N, D] is its mean."""
    pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return Tokens(pooled, x.flatten(2).transpose(1, 2), (x.shape[-2], x.shape[-1]))


@torch.no_grad()
def probe_layers(backbone: Backbone, n: int) -> list[Tokens]:
    """Tokens of the last n layers for a black image, for their widths and grids; running statistics
    are not updated."""
    training, size = backbone.training, backbone.image_size
    backbone.eval()
    layers = backbone.layers(torch.zeros(1, backbone.channels, size, size), n)
    backbone.train(training)
    return layers


def resolve_facets(
    backbone: Backbone,
    wanted: Sequence[tuple[int, str]],
    can: Sequence[str] = FACETS,
    why: str = "",
) -> list[tuple[int, str]]:
    """The pairs (layer, facet) with layers counted from 0.

    Args:
        backbone: the network.
        wanted: pairs (layer, facet); layers may be negative.
        can: facets that the network has.
        why: why it has no others, for the message.

    Raises:
        UsageError: there is no such layer or facet.
    """
    for _, which in wanted:
        if which not in can:
            raise unknown("facet", which, can, why)
    return [(layer_number(backbone, layer), which) for layer, which in wanted]


def layer_number(backbone: Backbone, layer: int) -> int:
    """The number of a layer, from 0; -1 is the last.

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


def refuse_hiding(backbone: Backbone, mask: Tensor | None, keep: Tensor | None) -> None:
    """Refuses to hide patches, for networks that cannot: the arguments of `tokens` must be None.

    Raises:
        UsageError: one of them is given.
    """
    require(backbone, [n for n, v in (("mask", mask), ("drop", keep)) if v is not None], "tokens")


def require(backbone: Backbone, needs: Iterable[str], who: str) -> None:
    """Refuses a backbone that lacks an ability.

    Args:
        backbone: the network.
        needs: keys of `ABILITIES`.
        who: what needs them, such as a method's name, for the message.

    Raises:
        UsageError: names the missing abilities and what to use instead.
    """
    missing = [n for n in needs if n not in backbone.can]
    if missing:
        cannot = " and ".join(f"{ABILITIES[n]} ({n!r})" for n in missing)
        if {*missing} <= {"any_size", "patches"}:
            use = "a ViT, Swin, ConvNeXt or ResNet"
        elif {*missing} <= {"mask", "any_size", "patches"}:
            use = "a ViT or Swin"
        else:
            use = "a ViT"
        raise UsageError(
            f"{who} needs a backbone that can {cannot}; {backbone.name!r} cannot. "
            f"Use {use}, for example --backbone vit_tiny, or a method that works with any "
            "backbone, such as simclr."
        )


def refuse_by_samples(backbone: Backbone, by_samples: bool) -> None:
    """Refuses DINOv2's stochastic depth, which is for ViTs.

    Raises:
        UsageError: `by_samples` is set.
    """
    if by_samples:
        raise UsageError(
            f"Stochastic depth by samples is for ViTs; {backbone.name!r} has it by paths."
        )


def recompute(module: nn.Module, enabled: bool = True) -> None:
    """Switches activation checkpointing of all backbones in a module on or off."""
    for part in module.modules():
        if isinstance(part, Backbone):
            part.recompute = enabled
