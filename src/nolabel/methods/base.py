"""The interface of a method: its options, its views, its step and two hooks.

Further capabilities are base classes, which the engine and the pictures check with `isinstance`:
`Contrastive` and `HasPrototypes` below; those for captions, tokens and pixels are in
`methods/capabilities.py`. No behaviour depends on the name of any other member of a method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor, nn

from nolabel.backbones.base import Backbone, require
from nolabel.limits import check
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import IMAGENET_MEAN, IMAGENET_STD, ViewPlan
from nolabel.views.suitability import Operations

INPUTS = frozenset({"teacher", "tokenizer", "text"})


@dataclass(frozen=True, kw_only=True)
class RecipeContext:
    """What a recipe may depend on: data, network and machine."""

    image_size: int  # side of the network's input, pixels
    images: int  # size of the training set
    batch_size: int | None = None  # None: the recipe chooses
    conv: bool = False  # the backbone is a convolutional network
    patch_size: int = 1  # pixels that divide a side: ViT's patch, Swin's token; 1: any
    device: str = "cpu"  # or cuda
    steps: int | None = None  # length of the run; None: not known yet, the recipe's own
    variant: str = ""  # of the paper's recipe: one of the method's `paper_variants`
    operations: Operations | None = None  # of the views on these images; None: not measured

    def round_to_patches(self, size: float) -> int:
        """The side in pixels nearest to `size` that is a multiple of the patch."""
        return max(round(size / self.patch_size), 1) * self.patch_size


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method's settings for a context: its own options, the optimiser and the length."""

    options: Any  # the method's Options
    optim: Optim
    batch_size: int
    epochs: int
    steps: int | None = None  # where the paper counts steps: the length, whatever `epochs` is


class Method(nn.Module):
    """A self-supervised method.

    This loop trains it:

        for step, batch in enumerate(batches):
            clock = Clock(step, total, steps_per_epoch)
            method.step(batch, clock).loss.backward()
            method.before_update(clock)
            optimiser.step()
            optimiser.zero_grad()
            method.after_update(clock)

    Subclasses define a frozen keyword-only dataclass `Options`, `needs`, `views`, `step`,
    `encoder`, and maybe `paper_recipe` or `automatic_recipe`, `init`, the hooks, `backbone_kwargs`.
    Their `__init__` calls `super().__init__(backbone, options)`, which checks the options' bounds.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    # Further keyword arguments of the constructor:
    #   "teacher"    a `Frozen` encoder (ENC), which `options.teacher` names
    #   "tokenizer"  a `Frozen` method that `Tokenizes`, whose run `options.teacher` names
    #   "text"       the tokenizer of captions, for a method that `LearnsFromText`
    inputs: ClassVar[frozenset[str]] = frozenset()
    # The paper's table of ablations: name -> options to change (`nolabel ablate`).
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # Other published recipes, `--recipe paper-NAME`; `paper_recipe` gets the name in its context.
    paper_variants: ClassVar[tuple[str, ...]] = ()
    # Names of children whose batch norms use statistics of one rank, not of all (no SyncBN).
    own_norms: ClassVar[tuple[str, ...]] = ()
    continued = False  # whether `--init` loaded the heads as well as the backbone

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The method's own options; each one is a flag, its comment the flag's help."""

    def __init__(self, backbone: Backbone, options: Any) -> None:
        super().__init__()
        require(backbone, self.needs, type(self).__name__)
        check(options)
        self.options = options
        # Mean and std with which its input is normalised; the engine sets the run's.
        self.mean: tuple[float, ...] = IMAGENET_MEAN
        self.std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def views(cls, options: Any, image_size: int) -> ViewPlan:
        """The views of each image that `step` gets in `Batch.views`, for a side in pixels."""
        raise NotImplementedError

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe | None:
        """The paper's settings; None, if there is no paper: `nolabel.recipes.general` is used."""
        return None

    @classmethod
    def automatic_recipe(cls, context: RecipeContext) -> Recipe | None:
        """The automatic settings of a user's own method; None: `nolabel.recipes.general` is used.

        Those of built-in methods are in the modules of `nolabel.recipes`.
        """
        return None

    @classmethod
    def backbone_kwargs(cls, options: Any) -> dict[str, Any]:
        """Keyword arguments of timm's constructor for a new backbone, as the options say."""
        return {}

    @staticmethod
    def init(backbone: Backbone) -> None:
        """Initialises a new backbone before training; by default as timm does."""

    def step(self, batch: Batch, clock: Clock) -> Step:
        """The loss of a batch, called for each micro-batch; must not change weights."""
        raise NotImplementedError

    def before_update(self, clock: Clock) -> None:
        """Edits gradients, after clipping, once an optimiser step."""

    def after_update(self, clock: Clock) -> None:
        """Updates moving averages, once an optimiser step; not called for a rejected step."""

    @property
    def encoder(self) -> Backbone:
        """The branch that is evaluated and exported."""
        raise NotImplementedError


class Contrastive(Method):
    """A method whose loss compares the images of a batch with each other.

    Its step has two parts: `features` embeds each image independently, `compare` is the loss over
    the features of all images. Under gradient accumulation, features are computed in micro-batches
    and compared together, so that the update equals that of the large batch
    (`engine.gradient_cache`).
    """

    @final
    def step(self, batch: Batch, clock: Clock) -> Step:
        """`compare` of the `features` of one batch."""
        return self.compare(self.features(batch), clock)

    def features(self, batch: Batch) -> tuple[Tensor, ...]:
        """Tensors [V, B, ...] for `compare`; an image's entries must not depend on other images."""
        raise NotImplementedError

    def compare(self, features: tuple[Tensor, ...], clock: Clock) -> Step:
        """The Step of all images.

        Args:
            features: the tensors of `features`, concatenated along dimension 1.
            clock: of this step.
        """
        raise NotImplementedError


class HasPrototypes:
    """A method that compares embeddings with K prototypes."""

    def prototype_logits(self, h: Tensor) -> Tensor:
        """Logits [N, K] of embeddings [N, D] of `encoder`, centred as in training."""
        raise NotImplementedError
