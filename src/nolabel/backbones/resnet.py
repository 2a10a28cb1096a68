"""timm's ResNet family behind the backbone contract."""

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


class ResNet(Backbone):
    """A ResNet; its "patches" are the cells of a stage's feature map.

    Without `maxpool` the stem keeps twice the resolution, for small pictures. It has no
    weights: they fit timm's network all the same.
    """

    can = frozenset({"any_size", "patches"})
    net: Any  # timm's ResNet; its layers are made by name

    def __init__(
        self, net: Any, name: str, kwargs: dict[str, Any], image_size: int, maxpool: bool = True
    ):
        super().__init__()
        if not isinstance(net, timm.models.ResNet):
            raise UsageError(f"{name!r} is not a ResNet of timm.")
        self.net = net
        self.name = name
        self.kwargs = {**kwargs, "image_size": image_size, "maxpool": maxpool}
        self.image_size, self.maxpool = image_size, maxpool
        self.dim = net.num_features
        net.to(memory_format=torch.channels_last)
        self.depth = 4
        self.patch_size = int(net.feature_info[-1]["reduction"]) // (1 if maxpool else 2)

    @property
    def compile_units(self) -> list[nn.Module]:
        net = self.net
        stages = (net.layer1, net.layer2, net.layer3, net.layer4)
        return [block for stage in stages for block in stage]

    def _maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps [N, D_i, h_i, w_i] of the four stages."""
        net = self.net
        # Convolutions are about a third faster on channels-last memory, on CPU and GPU alike.
        x = x.contiguous(memory_format=torch.channels_last)
        x = net.act1(net.bn1(net.conv1(x)))
        if self.maxpool:
            x = net.maxpool(x)
        out = []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            out.append(x)
        return out

    def tokens(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tokens:
        require(self, [n for n, v in (("mask", mask), ("drop", keep)) if v is not None], "tokens")
        return map_tokens(self._maps(x)[-1])

    def layers(self, x: Tensor, n: int) -> list[Tokens]:
        return [map_tokens(m) for m in self._maps(x)[-n:]]

    def facets_of(self, x: Tensor, wanted: Sequence[tuple[int, str]]) -> list[Tokens]:
        why = "A ResNet has no queries, keys or values."
        places = resolve_facets(self, wanted, ("token",), why)
        maps = self._maps(x)
        return [map_tokens(maps[layer]) for layer, _ in places]

    def set_drop_path(self, rate: float, *, by_samples: bool = False) -> None:
        if by_samples:
            raise UsageError("Dropping samples is for ViTs; a ResNet drops paths only.")
        blocks = [b for s in (1, 2, 3, 4) for b in getattr(self.net, f"layer{s}")]
        for i, block in enumerate(blocks):
            p = rate * i / max(len(blocks) - 1, 1)
            block.drop_path = DropPath(p) if p else None
