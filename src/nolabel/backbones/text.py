"""The text side of image-text learning: a transformer over token ids, and the shared space.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, §2.4.
Pre-norm blocks with LayerNorm of eps 1e-5; a text's feature is that of its end token or of the last
position, through a final norm and a projection. Initial weights as in the official code.
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
    """x * sigmoid(1.702 x), the approximation of GELU that CLIP was trained with."""

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
        vocabulary: number of ids; the largest is the end token.
        context: length of the longest text in tokens, start and end included.
        dim, depth, heads: of the transformer.
        out: width of the features.
        causal: whether tokens attend only to earlier ones.
        quick_gelu: CLIP's approximation of GELU instead of the exact one.
        pool: "end" takes the feature at the end token (the first of the largest id), "last" that of
            the last position, padding or not.

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
        """Normal weights with the official standard deviations, zero biases."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.projection.weight, std=dim**-0.5)
        residual = dim**-0.5 * (2 * max(depth, 1)) ** -0.5  # of layers that add to the residual
        stds = {"qkv": dim**-0.5, "proj": residual, "fc1": (2 * dim) ** -0.5, "fc2": residual}
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=stds[name.rpartition(".")[2]])
                nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids int64 [N, T] to features [N, out], not of unit length."""
        end = (ids == self.end).int().argmax(1)  # [N]: position of the first end token
        if self.causal and self.pool == "end":
            ids = ids[:, : int(end.max()) + 1]  # causal: later positions change nothing
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, self.causal)
        x = x[torch.arange(len(x), device=x.device), end] if self.pool == "end" else x[:, -1]
        return self.projection(self.norm(x))


class SharedSpace(nn.Module):
    """The space that images and texts share: the text tower, the projection of image embeddings,
    and the scale (and bias) of the similarities.

    A run saves it as `text.safetensors`, beside the encoder file, which holds the backbone only.

    Args:
        image_dim: width D of the encoder's embedding.
        vocabulary, context, dim, depth, heads, out, causal, quick_gelu, pool: of `TextTower`.
        scale: initial factor of the cosine similarities.
        bias: initial bias of the scaled similarities (SigLIP); None: no bias (CLIP).
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
        # Arguments that rebuild it; the values of scale and bias are in the state_dict.
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
        """Image embeddings [N, D] to unit vectors [N, out], fp32, with gradient."""
        return F.normalize(self.image(features).float(), dim=-1)

    def texts(self, ids: Tensor) -> Tensor:
        """Token ids int64 [N, context] to unit vectors [N, out], fp32, with gradient."""
        return F.normalize(self.tower(ids).float(), dim=-1)

    @property
    def scale(self) -> Tensor:
        """The factor of the cosine similarities, a scalar with gradient."""
        return self.log_scale.exp()
