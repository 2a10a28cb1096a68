"""SigLIP: sigmoid loss for language-image pre-training.

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, arXiv 2303.15343.

An image encoder and a text transformer give unit vectors x_i and y_j of B images and B texts. Each
pair is a binary classification, with the label z_ij = 1 for i = j and -1 otherwise:

    loss = - 1/B  sum over i, j of  log sigmoid( z_ij (t x_i . y_j + b) )            (equation 1)

t = exp(t') and b are learnt, initially 10 and -10: most pairs are negative, and the initial bias
accounts for that. The text tower has no causal mask, and its feature is that of the last position.

Differs from the original:
  - an image's embedding is the backbone's own and a linear projection (the original pools a ViT's
    tokens by attention), and the text's feature is projected too;
  - byte pairs learnt from the captions of the training data replace the published SentencePiece
    vocabulary; text is converted to lower case and punctuation is kept;
  - images are normalised by this library's mean and deviation, and cropped a little;
  - texts are all-gathered with gradient; the original passes them from rank to rank, which needs
    less memory and gives the same sum;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from nolabel.backbones.base import Backbone
from nolabel.backbones.text import SharedSpace
from nolabel.data.text.tokenizer import Tokenizer, make_tokenizer
from nolabel.limits import Count, Positive, Whole
from nolabel.methods.base import Contrastive, Recipe, RecipeContext
from nolabel.methods.capabilities import LearnsFromText
from nolabel.nn.contrastive import pair_signals, siglip_loss
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import View, ViewPlan

EMBEDDINGS = ("pos_embed", "cls_token", "reg_token", "embedding.weight", "positional_embedding")


class SigLIP(Contrastive, LearnsFromText):
    """Language-image pre-training with a sigmoid for every pair."""

    inputs = frozenset({"text"})

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """SigLIP's own options; defaults are the paper's for ViT-B."""

        vocabulary: Count = 32_000  # most tokens to learn from the captions; 49408 = CLIP's own
        context: Count = 64  # longest caption in tokens, start and end included
        projection: Count = 768  # width of the shared space
        text_dim: Count = 768  # width of the text tower
        text_depth: Count = 12  # blocks of the text tower
        text_heads: Count = 12  # attention heads of the text tower
        factor: Positive = 10.0  # initial t
        bias: float = -10.0  # initial b
        chunk: Whole = 0  # rows of the logits in memory at a time, for large batches; 0 = all
        scale: tuple[float, float] = (0.9, 1.0)  # area of the crop, as share of the image

    def __init__(self, backbone: Backbone, options: Options, *, text: Tokenizer):
        super().__init__(backbone, options)
        o = options
        self.backbone, self.tokenizer = backbone, text
        self.shared = SharedSpace(
            backbone.dim, vocabulary=text.vocabulary, context=o.context, dim=o.text_dim,
            depth=o.text_depth, heads=o.text_heads, out=o.projection, causal=False,
            quick_gelu=False, pool="last", scale=o.factor, bias=o.bias,
        )  # fmt: skip

    @classmethod
    def make_tokenizer(cls, options: Options, texts: Iterable[str]) -> Tokenizer:
        return make_tokenizer(options.vocabulary, options.context, texts)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        view = View(name="image", size=image_size, scale=options.scale, flip=0.0)
        return ViewPlan(views=(view,))

    def features(self, batch: Batch) -> tuple[Tensor, ...]:
        x = batch.views["image"][0]  # [B, C, H, W]
        text = self.shared.texts(self.tokenizer(batch.text or ()).to(x.device))
        return self.backbone(x)[None], text[None]

    def compare(self, features: tuple[Tensor, ...], clock: Clock) -> Step:
        h, y = (f[0] for f in features)  # [B, D], [B, E]
        x = self.shared.images(h)  # [B, E]
        t, b = self.shared.scale, self.shared.bias
        assert b is not None  # noqa: S101  made with one
        loss = siglip_loss(x, y, t, b, chunk=self.options.chunk)
        logs = pair_signals(x, y) | {"scale": t.detach(), "bias": b.detach()}
        return Step(loss, logs, features=h.detach())

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ViT-B from scratch, batch 32768.

        The official decay of 1e-4 is added after the rate; AdamW's is multiplied by it, so it is
        divided by the peak rate here. It is that of kernels alone.
        """
        batch, lr = context.batch_size or 32768, 1e-3
        optim = Optim(
            lr=lr, warmup_epochs=6500 * batch / max(context.images, 1), lr_end=0.0,
            weight_decay=1e-4 / lr, undecayed=EMBEDDINGS, beta2=0.95, clip=1.0,
        )  # fmt: skip
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=10)
