"""timm's ResNet family behind the backbone contract."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from nolabel.backbones.conv import ConvBackbone


class ResNet(ConvBackbone):
    """A ResNet.

    `maxpool=False` leaves out the max-pooling of the stem, which doubles the resolution, for small
    images. Max-pooling has no weights, so the state_dict is timm's either way.
    """

    timm_class = timm.models.ResNet

    def __init__(
        self, net: Any, name: str, kwargs: dict[str, Any], image_size: int, maxpool: bool = True
    ):
        super().__init__(net, name, {**kwargs, "maxpool": maxpool}, image_size)
        self.maxpool = maxpool
        self.patch_size //= 1 if maxpool else 2

    @property
    def stages(self) -> list[nn.Sequential]:
        net = self.net
        return [net.layer1, net.layer2, net.layer3, net.layer4]

    @torch.no_grad()
    def start_branches_at_one(self) -> None:
        """Sets the scale of the last norm of each block to 1, as torchvision's ResNets start.

        timm's start at 0, so that each block begins as the identity (Goyal et al. 2017, arXiv
        1706.02677). LARC moves a tensor by a share of its norm: from 0 it hardly moves at all.
        """
        for stage in self.stages:
            for block in stage:
                norm: Any = getattr(block, "bn3", None) or block.bn2  # bottleneck, basic block
                norm.weight.fill_(1.0)

    def _maps(self, x: Tensor) -> list[Tensor]:
        net = self.net
        x = x.contiguous(memory_format=torch.channels_last)
        x = net.act1(net.bn1(net.conv1(x)))
        if self.maxpool:
            x = net.maxpool(x)
        maps = []
        for stage in self.stages:
            x = stage(x)  # not recomputed: batch norm would see each batch twice
            maps.append(x)
        return maps
