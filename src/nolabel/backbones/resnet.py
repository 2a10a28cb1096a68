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
    """A ResNet; its patch tokens are the cells of a stage's feature map.

    `maxpool=False` leaves out the max-pooling of the stem, which doubles the resolution, for small
    images. Max-pooling has no weights, so the state_dict is timm's either way.
    """

    can = frozenset({"any_size", "patches"})
    net: Any  # timm's ResNet, whose type stubs lack the layers

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
        return [block for stage in self._stages() for block in stage]

    def _stages(self) -> tuple[nn.Sequential, ...]:
        net = self.net
        return (net.layer1, net.layer2, net.layer3, net.layer4)

    def _maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps [N, D_i, h_i, w_i] of the four stages."""
        net = self.net
        # Convolutions are about a third faster on channels-last memory, on CPU and GPU alike.
        x = x.contiguous(memory_format=torch.channels_last)
        x = net.act1(net.bn1(net.conv1(x)))
        if self.maxpool:
            x = net.maxpool(x)
        out = []
        for stage in self._stages():
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
        layers = resolve_facets(self, wanted, ("token",), why)
        maps = self._maps(x)
        return [map_tokens(maps[layer]) for layer, _ in layers]

    def set_drop_path(self, rate: float, *, by_samples: bool = False) -> None:
        if by_samples:
            raise UsageError("Stochastic depth by samples is for ViTs; a ResNet has it by paths.")
        blocks: list[Any] = [block for stage in self._stages() for block in stage]
        for i, block in enumerate(blocks):
            p = rate * i / max(len(blocks) - 1, 1)
            block.drop_path = DropPath(p) if p else None  # as timm's BasicBlock
