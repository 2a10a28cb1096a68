"""What timm's convolutional networks share behind the backbone contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nolabel.backbones.base import (
    Backbone,
    map_tokens,
    refuse_by_samples,
    refuse_hiding,
    resolve_facets,
)
from nolabel.backbones.blocks import set_drop_paths
from nolabel.errors import UsageError
from nolabel.types import Tokens


class ConvBackbone(Backbone):
    """A network of stages of blocks; its patch tokens are the cells of a stage's feature map.

    Subclasses name timm's class and define `stages` and `_maps`, and `_last` where a network norms
    its last map.

    Args:
        net: timm's network.
        name: timm's architecture name.
        kwargs: keyword arguments with which timm builds it again.
        image_size: side in pixels of the images that it was built for.

    Raises:
        UsageError: `net` is of another class.
    """

    can = frozenset({"any_size", "patches"})
    timm_class: ClassVar[Any]  # Any: timm's type stubs lack the layers
    net: Any  # of `timm_class`

    def __init__(self, net: Any, name: str, kwargs: dict[str, Any], image_size: int):
        super().__init__()
        if not isinstance(net, self.timm_class):
            raise UsageError(f"{name!r} is not a {type(self).__name__} of timm.")
        self.net = net
        self.name = name
        self.kwargs = {**kwargs, "image_size": image_size}
        self.image_size = image_size
        self.dim = net.num_features
        # Convolutions are about a third faster on channels-last memory, on CPU and GPU alike.
        net.to(memory_format=torch.channels_last)
        self.depth = len(self.stages)
        self.patch_size = int(net.feature_info[-1]["reduction"])

    @property
    def stages(self) -> list[nn.Sequential]:
        """The blocks of each stage."""
        raise NotImplementedError

    def _maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps [N, D_i, h_i, w_i] of all stages, before the final norm."""
        raise NotImplementedError

    def _last(self, x: Tensor) -> Tokens:
        """Tokens of the last feature map [N, D, h, w], through the final norm if there is one."""
        return map_tokens(x)

    @property
    def compile_units(self) -> list[nn.Module]:
        return [block for stage in self.stages for block in stage]

    def tokens(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tokens:
        refuse_hiding(self, mask, keep)
        return self._last(self._maps(x)[-1])

    def layers(self, x: Tensor, n: int) -> list[Tokens]:
        maps = self._maps(x)
        return [*map(map_tokens, maps[:-1]), self._last(maps[-1])][-n:]

    def facets_of(self, x: Tensor, wanted: Sequence[tuple[int, str]]) -> list[Tokens]:
        why = f"A {type(self).__name__} has no queries, keys or values."
        layers = resolve_facets(self, wanted, ("token",), why)
        maps = self._maps(x)
        return [map_tokens(maps[layer]) for layer, _ in layers]

    def set_drop_path(self, rate: float, *, by_samples: bool = False) -> None:
        refuse_by_samples(self, by_samples)
        set_drop_paths(self.compile_units, rate, "drop_path")
