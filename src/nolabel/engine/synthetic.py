"""A method with random weights and images, and stand-ins for teacher, tokenizer and captions.

For counting costs (`engine.cost`) and for checking the contracts of `nolabel.testing`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nolabel import backbones
from nolabel.data.text.tokenizer import Tokenizer
from nolabel.methods.base import Method
from nolabel.methods.capabilities import LearnsFromText, Tokenizes
from nolabel.nn.frozen import Frozen
from nolabel.types import Batch
from nolabel.views.plan import IMAGENET_MEAN, IMAGENET_STD, ViewPlan

SIDE = 32  # image size of the stand-ins in pixels
COLOURS = ("red", "green", "blue", "orange", "purple", "yellow")
STATISTICS = (IMAGENET_MEAN, IMAGENET_STD)


def captions(seed: int = 0) -> tuple[str, ...]:
    """Six captions, a function of the seed."""
    animals = ("spider", "crab", "owl", "snake", "fish")
    return tuple(f"a {c} {animals[(i * seed + i) % 5]}" for i, c in enumerate(COLOURS))


def noise_batch(plan: ViewPlan, images: int, seed: int = 0) -> Batch:
    """A batch of `images` noise images, in the views of a plan, with captions."""
    g = torch.Generator().manual_seed(seed)
    views = {
        v.name: torch.randn(v.count, images, plan.channels, v.size, v.size, generator=g)
        for v in plan.views
    }
    texts = captions(seed)
    text = tuple(texts[i % len(texts)] for i in range(images))
    return Batch(views=views, keys=torch.arange(images), text=text)


def build_on(
    method_class: type[Method],
    options: object,
    backbone: str,
    size: int,
    patch: int | None = None,
    kwargs: Mapping[str, object] | None = None,
) -> Method:
    """A method on any backbone in train mode, with seed 0 and stand-ins for its inputs.

    Args:
        method_class, options: the method and its options.
        backbone: name of a preset or of timm.
        size, patch: sides in pixels of image and patch.
        kwargs: further arguments of the backbone, such as its depth.
    """
    torch.manual_seed(0)
    inputs = {n: _stand_in(n, method_class, options) for n in sorted(method_class.inputs)}
    all_kwargs = {**method_class.backbone_kwargs(options), **(kwargs or {})}
    net = backbones.build(backbone, image_size=size, patch_size=patch, kwargs=all_kwargs)
    method_class.init(net)
    return method_class(net, options, **inputs).train()


def _stand_in(name: str, method_class: type[Method], options: object) -> Frozen | Tokenizer:
    """A stand-in for a method's input: a small random encoder for images of half the size, a patch
    tokenizer, or a text tokenizer."""
    if name == "teacher":
        module = backbones.build("vit_pico", image_size=SIDE // 2)
        return Frozen(module, (0.5,) * 3, (0.25,) * 3, given=STATISTICS, image_size=SIDE // 2)
    if name == "tokenizer":
        return Frozen(Colours(), *STATISTICS)
    if not issubclass(method_class, LearnsFromText):
        raise TypeError(
            f"The input {name!r} of {method_class.__name__} is for subclasses of LearnsFromText."
        )
    return method_class.make_tokenizer(options, [t for seed in range(5) for t in captions(seed)])


class Colours(nn.Module, Tokenizes):
    """A tokenizer that needs no training: a patch's id says which channels are above zero.

    Args:
        patch: side of a patch in pixels.
    """

    vocabulary = 8

    def __init__(self, patch: int = 2):
        super().__init__()
        self.patch = patch

    @torch.no_grad()
    def tokens(self, x: Tensor) -> Tensor:
        """Ids 0..7 of the patches, int64 [N, P], of normalised images [N, 3, H, W]."""
        means = nn.functional.avg_pool2d(x.float(), self.patch).flatten(2)
        return ((means > 0) * torch.tensor([4, 2, 1], device=x.device)[:, None]).sum(1)
