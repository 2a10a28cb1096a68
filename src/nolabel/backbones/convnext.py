"""timm's ConvNeXt family behind the backbone contract.

Liu et al. 2022, arXiv 2201.03545; version 2: Woo et al. 2023, arXiv 2301.00808.
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from nolabel.backbones.base import map_tokens
from nolabel.backbones.conv import ConvBackbone
from nolabel.types import Tokens


class ConvNeXt(ConvBackbone):
    """A ConvNeXt.

    The pooled embedding is timm's: the norm of the mean of the last feature map; for networks whose
    name ends in `_hnf` the mean of the normed map. Each patch of the last layer is normed by
    itself.
    """

    timm_class = timm.models.ConvNeXt

    @property
    def stages(self) -> list[nn.Sequential]:
        return [stage.blocks for stage in self.net.stages]

    def _maps(self, x: Tensor) -> list[Tensor]:
        x = self.net.stem(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for stage in self.net.stages:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self._block_by_block(block, x)
            maps.append(x)
        return maps

    def _last(self, x: Tensor) -> Tokens:
        x = self.net.norm_pre(x)  # identity, unless the network norms before pooling
        pooled = self.net.forward_head(x, pre_logits=True)
        norms_first = not isinstance(self.net.norm_pre, nn.Identity)
        t = map_tokens(x if norms_first else self.net.head.norm(x))
        return Tokens(pooled, t.patches, t.grid)
