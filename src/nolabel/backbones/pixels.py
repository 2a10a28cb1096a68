"""Raw pixels as an encoder: the baseline that every other encoder has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nolabel.backbones.base import Backbone, refuse_hiding, resolve_facets
from nolabel.types import Tokens


class Pixels(Backbone):
    """The embedding [N, C*H*W] is the image's normalised pixels; a patch is one pixel."""

    can = frozenset({"any_size", "patches"})

    def __init__(self, image_size: int = 32, channels: int = 3):
        super().__init__()
        self.name, self.kwargs = "pixels", {"image_size": image_size, "in_chans": channels}
        self.dim, self.depth = channels * image_size**2, 1
        self.image_size, self.patch_size = image_size, 1
        self.net = torch.nn.Identity()

    def tokens(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tokens:
        refuse_hiding(self, mask, keep)
        return Tokens(x.flatten(1), x.flatten(2).transpose(1, 2), (x.shape[-2], x.shape[-1]))

    def layers(self, x: Tensor, n: int) -> list[Tokens]:
        return [self.tokens(x)]

    def facets_of(self, x: Tensor, wanted: Sequence[tuple[int, str]]) -> list[Tokens]:
        layers = resolve_facets(self, wanted, ("token",), "Pixels have no queries, keys or values.")
        return [self.tokens(x) for _ in layers]

    def set_drop_path(self, rate: float, *, by_samples: bool = False) -> None:
        """Pixels have no layers to drop."""
