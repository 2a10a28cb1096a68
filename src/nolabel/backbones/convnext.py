"""timm's ConvNeXt family behind the backbone contract.

Liu et al. 2022, arXiv 2201.03545; version 2: Woo et al. 2023, arXiv 2301.00808.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from nolabel.backbones.base import Backbone, map_tokens, require, resolve_facets
from nolabel.backbones.blocks import DropPath
from nolabel.errors import UsageError
from nolabel.types import Tokens


class ConvNeXt(Backbone):
    """A ConvNeXt; its patch tokens are the cells of a stage's feature map.

    The pooled embedding is timm's: the norm of the mean of the last feature map; for networks whose
    name ends in `_hnf` the mean of the normed map. Each patch of the last layer is normed by
    itself.
    """

    can = frozenset({"any_size", "patches"})
    net: Any  # timm's ConvNeXt, whose type stubs lack the stages

    def __init__(self, net: Any, name: str, kwargs: dict[str, Any], image_size: int):
        super().__init__()
        if not isinstance(net, timm.models.ConvNeXt):
            raise UsageError(f"{name!r} is not a ConvNeXt of timm.")
        self.net = net
        self.name = name
        self.kwargs = {**kwargs, "image_size": image_size}
        self.image_size = image_size
        self.dim = net.num_features
        net.to(memory_format=torch.channels_last)
        self.depth = len(net.stages)
        self.norms_first = not isinstance(net.norm_pre, nn.Identity)
        self.patch_size = int(net.feature_info[-1]["reduction"])

    @property
    def compile_units(self) -> list[nn.Module]:
        return [block for stage in self.net.stages for block in stage.blocks]

    def _maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps [N, D_i, h_i, w_i] of the four stages, before the final norm."""
        x = self.net.stem(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for stage in self.net.stages:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self._block_by_block(block, x)
            maps.append(x)
        return maps

    def _last(self, x: Tensor) -> Tokens:
        """Tokens of the last feature map [N, D, h, w], normed, and timm's pooled embedding."""
        x = self.net.norm_pre(x)  # identity, unless the network norms before pooling
        pooled = self.net.forward_head(x, pre_logits=True)
        t = map_tokens(x if self.norms_first else self.net.head.norm(x))
        return Tokens(pooled, t.patches, t.grid)

    def tokens(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tokens:
        require(self, [n for n, v in (("mask", mask), ("drop", keep)) if v is not None], "tokens")
        return self._last(self._maps(x)[-1])

    def layers(self, x: Tensor, n: int) -> list[Tokens]:
        maps = self._maps(x)
        tokens = [*map(map_tokens, maps[:-1]), self._last(maps[-1])]
        return tokens[-n:]

    def facets_of(self, x: Tensor, wanted: Sequence[tuple[int, str]]) -> list[Tokens]:
        why = "A ConvNeXt has no queries, keys or values."
        layers = resolve_facets(self, wanted, ("token",), why)
        maps = self._maps(x)
        return [map_tokens(maps[layer]) for layer, _ in layers]

    def set_drop_path(self, rate: float, *, by_samples: bool = False) -> None:
        if by_samples:
            raise UsageError("Stochastic depth by samples is for ViTs; a ConvNeXt has it by paths.")
        blocks = self.compile_units
        for i, block in enumerate(blocks):
            p = rate * i / max(len(blocks) - 1, 1)
            block.drop_path = DropPath(p) if p else nn.Identity()
