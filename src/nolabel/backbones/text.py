"""The text side of image-text learning: a transformer over token ids, and the shared space.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, §2.4.
Pre-norm blocks with LayerNorm of eps 1e-5; a text's feature is that of its end token or of the last
place, through a final norm and a projection. Weights start as in the official code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel.backbones.base import HasUnits
from nolabel.errors import UsageError, unknown

POOLS = ("end", "last")
EPS = 1e-5  # of every LayerNorm


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the approximation of GELU that CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _Attention(nn.Module):
    """Multi-head attention [N, T, D] -> [N, T, D]."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.proj(out.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, dim: int, quick_gelu: bool):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.act = QuickGELU() if quick_gelu else nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, quick_gelu: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.attn, self.mlp = _Attention(dim, heads), _Mlp(dim, quick_gelu)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.attn(self.norm1(x), causal)
        return x + self.mlp(self.norm2(x))


class TextTower(HasUnits):
    """Token ids [N, T] -> features [N, out].

    Args:
        vocabulary: number of ids; the largest is the end of a text.
        context: longest text in tokens, start and end included.
        dim, depth, heads: of the transformer.
        out: width of the features.
        causal: whether a token sees only those before it.
        quick_gelu: CLIP's approximation instead of the exact GELU.
        pool: "end" takes the feature at the end token (the first place of the largest id), "last"
            that of the last place, whatever stands there.

    Raises:
        UsageError: sizes that do not fit, or an unknown pool.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        dim: int,
        depth: int,
        heads: int,
        out: int,
        *,
        causal: bool = True,
        quick_gelu: bool = True,
        pool: str = "end",
    ):
        super().__init__()
        if pool not in POOLS:
            raise unknown("pool", pool, POOLS)
        if dim % heads:
            raise UsageError(f"text_dim {dim} is no multiple of text_heads {heads}.")
        self.causal, self.pool, self.end = causal, pool, vocabulary - 1
        self.token_embedding = nn.Embedding(vocabulary, dim)
        self.positional_embedding = nn.Parameter(torch.empty(context, dim))
        self.blocks = nn.ModuleList(_Block(dim, heads, quick_gelu) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.projection = nn.Linear(dim, out, bias=False)
        self._init(dim, depth)

    @property
    def shard_units(self) -> list[nn.Module]:
        return list(self.blocks)

    @property
    def compile_units(self) -> list[nn.Module]:
        return list(self.blocks)

    def _init(self, dim: int, depth: int) -> None:
        """Normal weights with the official deviations; biases are zero."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.projection.weight, std=dim**-0.5)
        back = dim**-0.5 * (2 * max(depth, 1)) ** -0.5  # what is added to the residual stream
        stds = {"qkv": dim**-0.5, "proj": back, "fc1": (2 * dim) ** -0.5, "fc2": back}
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=stds[name.rpartition(".")[2]])
                nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor) -> Tensor:
        end = (ids == self.end).int().argmax(1)  # [N]: place of the first end token
        if self.causal and self.pool == "end":
            ids = ids[:, : int(end.max()) + 1]  # nothing looks at what comes behind
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, self.causal)
        x = x[torch.arange(len(x), device=x.device), end] if self.pool == "end" else x[:, -1]
        return self.projection(self.norm(x))


class SharedSpace(nn.Module):
    """What image-text learning adds to an image encoder: the text tower, the projection of the
    image's embedding into the same space, and the scale (and bias) of the similarities.

    A run saves all of it in `text.safetensors`, beside the encoder's file, which stays that of a
    plain backbone.

    Args:
        image_dim: width D of the encoder's embedding.
        vocabulary, context, dim, depth, heads, out, causal, quick_gelu, pool: of `TextTower`.
        scale: factor of the cosine similarities at the start.
        bias: added to the scaled similarities at the start; None has none (CLIP).
    """

    log_scale: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        image_dim: int,
        *,
        vocabulary: int,
        context: int,
        dim: int,
        depth: int,
        heads: int,
        out: int,
        causal: bool = True,
        quick_gelu: bool = True,
        pool: str = "end",
        scale: float = 1.0,
        bias: float | None = None,
    ):
        super().__init__()
        # What rebuilds it; scale and bias only by their kind, since their values are weights.
        self.kwargs = {
            "image_dim": image_dim, "vocabulary": vocabulary, "context": context, "dim": dim,
            "depth": depth, "heads": heads, "out": out, "causal": causal,
            "quick_gelu": quick_gelu, "pool": pool, "bias": None if bias is None else 0.0,
        }  # fmt: skip
        self.tower = TextTower(
            vocabulary, context, dim, depth, heads, out,
            causal=causal, quick_gelu=quick_gelu, pool=pool,
        )  # fmt: skip
        self.image = nn.Linear(image_dim, out, bias=False)
        nn.init.normal_(self.image.weight, std=image_dim**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        )

    def images(self, features: Tensor) -> Tensor:
        """Embeddings [N, D] of the encoder to unit vectors [N, out], fp32."""
        return F.normalize(self.image(features).float(), dim=-1)

    def texts(self, ids: Tensor) -> Tensor:
        """Ids [N, context] to unit vectors [N, out], fp32."""
        return F.normalize(self.tower(ids).float(), dim=-1)

    @property
    def scale(self) -> Tensor:
        """The factor of the cosine similarities, a scalar with gradient."""
        return self.log_scale.exp()
