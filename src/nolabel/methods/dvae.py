"""dVAE: discrete variational autoencoder, the tokenizer of DALL-E and BEiT.

Ramesh et al., "Zero-Shot Text-to-Image Generation", 2021, arXiv 2102.12092, section 2.1 and
appendix A; Jang et al., "Categorical Reparameterization with Gumbel-Softmax", 2016, 1611.01144.

The encoder gives each patch logits l over K tokens, q = softmax(l). A token is drawn by
argmax(l + g), g Gumbel noise; softmax((l + g) / t) is a relaxation of that draw with a gradient,
exact as t goes to 0. The decoder gets the so weighted sum of K vectors and predicts the pixels:

    loss = -log p(x)  [mean over the numbers of an image]  +  beta / (p^2 C) * mean KL(q || 1 / K)
    KL   = sum_k q_k log q_k + log K

The division makes both sums over the image's p^2 C numbers a patch (p = 8: beta / 192). With
likelihood "logit-laplace", pixels x in 0..1 are first brought to y = (1 - 2 eps) x + eps, and

    p(y | mu, b) = exp(-|logit(y) - mu| / b) / (2 b y (1 - y))      eps = 0.1

which, unlike a normal distribution, has no mass outside 0..1; the decoder predicts mu and ln b.
With "mse", -log p is the squared error of normalised pixels: steadier in short runs. The
temperature t falls from 1 to 1/16 by half a cosine over the share `anneal` of the run, beta rises
from 0 by half a cosine over the share `warm`. `tokens` are the argmax of the logits.

Differs from the original:
  - encoder: any ViT or ResNet with its grid; decoder: a transformer that predicts the pixels of
    each patch, where the original has convolutions in both;
  - b is predicted as exp(output) + 0.01, so that flat areas cannot make it 0 (steps of 1/255 are
    about as large);
  - the weights are not averaged over the updates (there 0.999), and the learning rate falls over
    the whole run (there over two fifths of it);
  - the automatic recipe is ours, for small data. Short runs with the paper's settings use few
    tokens, because the noise dominates the logits until the first useful tokens win. Initial logits
    with a large spread and a high temperature reduce the effect of the noise (64 % of the error);
  - a ViT's class token gets gradient only through attention from the patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.backbones.decoder import PatchDecoder
from nolabel.backbones.vit import patch_grid
from nolabel.errors import unknown
from nolabel.limits import Count, NotNegative, Positive, Several, Share
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.methods.capabilities import Reconstructs, Tokenizes
from nolabel.nn.assignment import codes_in_use
from nolabel.nn.keyed_random import gumbel
from nolabel.nn.pixels import denormalise, logit_laplace_nll, mean_colour_error, normalise
from nolabel.nn.schedules import cosine
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import View, ViewPlan

LIKELIHOODS = ("logit-laplace", "mse")
EPS = 0.1  # distance of the pixels of the logit-Laplace from 0 and 1
SMALLEST_LOG_B = math.log(0.01)
N_RECONSTRUCTED = 32  # images of a batch that are reconstructed from their tokens, for the metrics


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Mean over tokens of KL(softmax(logits) || uniform) in nats, logits [..., K]; in 0..ln K."""
    log_q = F.log_softmax(logits.float(), -1)
    return (log_q.exp() * log_q).sum(-1).mean() + math.log(logits.shape[-1])


def cosine_ramp(start: float, end: float, share: float, clock: Clock) -> float:
    """Half a cosine from `start` to `end` over the first `share` of the run, then constant."""
    length = share * clock.total
    return end if clock.step >= length else cosine(start, end, clock.step, length)


class DVAE(Method, Tokenizes, Reconstructs):
    """Discrete VAE with the Gumbel-softmax relaxation; a tokenizer of patches."""

    needs = frozenset({"patches"})

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The dVAE's own options; defaults are the paper's, but for the decoder."""

        codes: Several = 8192  # K, size of the vocabulary
        spread: Positive = 1.0  # standard deviation of the initial logits, about
        first_temperature: Positive = 1.0  # initial t
        temperature: Positive = 0.0625  # final t
        anneal: Share = 0.05  # share of the run in which t falls
        kl_weight: NotNegative = 6.6  # final beta
        warm: Share = 0.0017  # share of the run in which beta rises
        likelihood: str = "logit-laplace"  # of pixels: logit-laplace or mse
        decoder_dim: Count = 256  # width of the decoder and of a token's vector
        decoder_depth: Count = 4  # blocks of the decoder
        decoder_heads: Count = 8  # attention heads of the decoder
        scale: tuple[float, float] = (0.5, 1.0)  # area of the crop, as share of the image

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        if o.likelihood not in LIKELIHOODS:
            raise unknown("likelihood", o.likelihood, LIKELIHOODS)
        self.backbone, self.patch = backbone, backbone.patch_size
        self.vocabulary = o.codes  # K
        self.numbers = self.patch**2 * backbone.channels  # of a patch
        grid = patch_grid(backbone.image_size, self.patch)
        self.to_logits = nn.Linear(backbone.dim, o.codes)
        nn.init.normal_(self.to_logits.weight, std=o.spread / backbone.dim**0.5)
        nn.init.zeros_(self.to_logits.bias)
        self.vectors = nn.Parameter(torch.randn(o.codes, o.decoder_dim))
        self.decoder = PatchDecoder(  # pixels, or mu and ln b
            o.decoder_dim, o.decoder_depth, o.decoder_heads, grid, patch=self.patch,
            channels=backbone.channels * (1 if o.likelihood == "mse" else 2),
        )  # fmt: skip

    @torch.no_grad()
    def tokens(self, x: Tensor) -> Tensor:
        return self.to_logits(self.backbone.tokens(x).patches).argmax(-1)

    def temperature(self, clock: Clock) -> float:
        """t of this step."""
        o = self.options
        return cosine_ramp(o.first_temperature, o.temperature, o.anneal, clock)

    def kl_weight(self, clock: Clock) -> float:
        """beta of this step."""
        return cosine_ramp(0.0, self.options.kl_weight, self.options.warm, clock)

    def pixels(self, pred: Tensor) -> Tensor:
        """The most likely normalised pixels [N, C, H, W] of predictions."""
        if self.options.likelihood == "mse":
            return pred
        y = pred.chunk(2, 1)[0].sigmoid()
        return normalise(((y - EPS) / (1.0 - 2.0 * EPS)).clamp(0.0, 1.0), self.mean, self.std)

    def reconstruction_loss(self, pred: Tensor, x: Tensor) -> Tensor:
        """-log p(x) as the mean over all numbers, in nats (logit-laplace), or the mean squared
        error of normalised pixels x [N, C, H, W]."""
        if self.options.likelihood == "mse":
            return F.mse_loss(pred, x.float())
        mu, log_b = pred.chunk(2, 1)
        y = (1.0 - 2.0 * EPS) * denormalise(x.float(), self.mean, self.std).clamp(0.0, 1.0) + EPS
        floor = log_b.new_tensor(SMALLEST_LOG_B)
        return logit_laplace_nll(y, mu, torch.logaddexp(log_b, floor)).mean()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] reconstructed from their tokens."""
        return self.pixels(self.decoder(self.vectors[self.tokens(x)]))

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return ViewPlan(views=(View(name="image", size=image_size, scale=options.scale, flip=0.5),))

    def step(self, batch: Batch, clock: Clock) -> Step:
        x = batch.views["image"][0]  # [B, C, H, W]
        t = self.backbone.tokens(x)
        logits = self.to_logits(t.patches).float()  # [B, P, K]
        soft = ((logits + gumbel(logits)) / self.temperature(clock)).softmax(-1)
        loss = self.reconstruction_loss(self.decoder(soft @ self.vectors), x)
        kl, beta = kl_to_uniform(logits), self.kl_weight(clock)
        with torch.no_grad():
            ids, seen = logits.argmax(-1), x[:N_RECONSTRUCTED].float()
            error = F.mse_loss(self.pixels(self.decoder(self.vectors[ids[:N_RECONSTRUCTED]])), seen)
        logs = {"error": error, "error_mean_colour": mean_colour_error(seen), "kl": kl.detach()}
        logs |= {"temperature": self.temperature(clock), "kl_weight": beta}
        logs |= {"reconstruction": loss.detach(), **codes_in_use(ids, self.options.codes)}
        return Step(loss + beta / self.numbers * kl, logs, features=t.pooled.detach())

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """3,000,000 updates on 250 million images, batch 512."""
        batch = context.batch_size or 512
        optim = Optim(lr=1e-4, warmup_epochs=0, lr_end=1.25e-6, weight_decay=1e-4)
        return Recipe(
            options=cls.Options(), optim=optim, batch_size=batch, epochs=6, steps=3_000_000
        )
