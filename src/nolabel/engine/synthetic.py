"""A method on random images, with stand-ins for a teacher, a tokenizer and captions.

Costs are counted on it (`engine.cost`), and the contracts of `nolabel.testing` are checked on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nolabel import backbones
from nolabel.data.text.tokenizer import Tokenizer
from nolabel.methods.base import Method
from nolabel.methods.capabilities import LearnsFromText, Tokenizes
from nolabel.nn.frozen import Frozen
from nolabel.types import Batch
from nolabel.views.plan import IMAGENET_MEAN, IMAGENET_STD, ViewPlan

SIDE = 32  # pixels at which stand-ins look at images
COLOURS = ("red", "green", "blue", "orange", "purple", "yellow")
STATISTICS = (IMAGENET_MEAN, IMAGENET_STD)


def captions(seed: int = 0) -> tuple[str, ...]:
    """A text for each image of a batch."""
    things = ("spider", "crab", "owl", "snake", "fish")
    return tuple(f"a {c} {things[(i * seed + i) % 5]}" for i, c in enumerate(COLOURS))


def noise_batch(plan: ViewPlan, images: int, seed: int = 0) -> Batch:
    """So many images of noise in the views of a plan, with captions."""
    g = torch.Generator().manual_seed(seed)
    views = {
        v.name: torch.randn(v.count, images, plan.channels, v.size, v.size, generator=g)
        for v in plan.views
    }
    some = captions(seed)
    text = tuple(some[i % len(some)] for i in range(images))
    return Batch(views=views, keys=torch.arange(images), text=text)


def build_on(
    kind: type[Method],
    options: Any,
    backbone: str,
    size: int,
    patch: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Method:
    """The method on any backbone, with seed 0 and a stand-in for what it is built with.

    Args:
        kind, options: the method and its options.
        backbone: name of a preset or of timm.
        size, patch: sides in pixels of image and patch.
        kwargs: further ones of the backbone's constructor, such as its depth.
    """
    torch.manual_seed(0)
    given = {name: _stand_in(name, kind, options) for name in sorted(kind.inputs)}
    asked = {**kind.backbone_kwargs(options), **(kwargs or {})}
    net = backbones.build(backbone, image_size=size, patch_size=patch, kwargs=asked)
    kind.init(net)
    return kind(net, options, **given).train()


def _stand_in(name: str, kind: type[Method], options: Any) -> Frozen | Tokenizer:
    """What a method is built with: a small random encoder, used at half the size of the images, a
    tokenizer of patches, or one of captions."""
    if name == "teacher":
        module: Any = backbones.build("vit_pico", image_size=SIDE // 2)
        return Frozen(module, (0.5,) * 3, (0.25,) * 3, given=STATISTICS, image_size=SIDE // 2)
    if name == "tokenizer":
        return Frozen(Colours(), *STATISTICS)
    if not issubclass(kind, LearnsFromText):
        raise TypeError(f"The input {name!r} of {kind.__name__} is for a class LearnsFromText.")
    return kind.make_tokenizer(options, [t for seed in range(5) for t in captions(seed)])


class Colours(nn.Module, Tokenizes):
    """A tokenizer that needs no training: a patch's id says which channels are above their mean.

    It shows what a method may ask of a tokenizer.

    Args:
        patch: side of a patch in pixels.
    """

    vocabulary = 8

    def __init__(self, patch: int = 2):
        super().__init__()
        self.patch = patch

    @torch.no_grad()
    def tokens(self, x: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(x.float(), self.patch).flatten(2)
        return ((means > 0) * torch.tensor([4, 2, 1], device=x.device)[:, None]).sum(1)
