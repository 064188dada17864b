"""The long-term discriminator: a transformer over track tokens, attending over time and over tracks.

`TrackTransformer` is the trunk that CoTracker3's update transformer and SHIFT's "track former" share
(CoTracker3, arXiv 2410.11831, section 3; SHIFT, arXiv 2603.17426). `TrackViT` adds the pooled logit.
Parameter names, misspellings included, are those of the published checkpoints, so they load strictly.

Shapes: B clips, N tracks, V virtual tracks, T frames, D token size, C width. Any leading dimension
of an attention block is a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class TrackViTConfig:
    """Sizes of a track transformer; the defaults are the paper's (21.8 M parameters)."""

    token_dim: int = 1110
    dim: int = 384
    heads: int = 8
    depth: int = 3
    mlp_dim: int = 1536
    num_virtual: int = 64
    dropout: float = 0.1


class Attention(nn.Module):
    """Multi-head attention with separate query and key-value projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(dim, 2 * dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [B,L,C] attends to context [B,M,C], or to itself."""
        keys, values = self.to_kv(x if context is None else context).chunk(2, dim=-1)
        query, keys, values = (self._split(part) for part in (self.to_q(x), keys, values))
        mixed = F.scaled_dot_product_attention(query, keys, values)
        return self.to_out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class SelfBlock(nn.Module):
    """Pre-norm self-attention and MLP; norms without affine, tanh GELU."""

    def __init__(self, config: TrackViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-6, elementwise_affine=False)
        self.mlp = _mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and MLP; only the context's norm is affine."""

    def __init__(self, config: TrackViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-6, elementwise_affine=False)
        self.norm_context = nn.LayerNorm(config.dim)
        self.cross_attn = Attention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-6, elementwise_affine=False)
        self.mlp = _mlp(config)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.cross_attn(self.norm1(x), self.norm_context(context))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class TrackTransformer(nn.Module):
    """Alternates attention over time (each track) and over tracks (through virtual tracks)."""

    def __init__(self, config: TrackViTConfig) -> None:
        super().__init__()
        self.config = config
        self.input_transform = nn.Linear(config.token_dim, config.dim)
        self.virual_tracks = nn.Parameter(torch.randn(1, config.num_virtual, 1, config.dim))
        self.time_blocks = nn.ModuleList(SelfBlock(config) for _ in range(config.depth))
        self.space_virtual_blocks = nn.ModuleList(SelfBlock(config) for _ in range(config.depth))
        self.space_point2virtual_blocks = nn.ModuleList(CrossBlock(config) for _ in range(config.depth))
        self.space_virtual2point_blocks = nn.ModuleList(CrossBlock(config) for _ in range(config.depth))

    def trunk(self, tokens_BNTD: Tensor) -> Tensor:
        """Tokens [B,N,T,D] -> features [B,N,T,C]; the virtual tracks are dropped."""
        points = self.input_transform(tokens_BNTD)
        num_points = points.shape[1]
        virtual = self.virual_tracks.to(points.dtype).expand(points.shape[0], -1, points.shape[2], -1)
        x = torch.cat([points, virtual], dim=1)
        for stage in range(self.config.depth):
            x = self._over_time(stage, x)
            x = self._over_tracks(stage, x, num_points)
        return x[:, :num_points]

    def _over_time(self, stage: int, x_BNTC: Tensor) -> Tensor:
        mixed: Tensor = self.time_blocks[stage](x_BNTC.flatten(0, 1))
        return mixed.view_as(x_BNTC)

    def _over_tracks(self, stage: int, x_BNTC: Tensor, num_points: int) -> Tensor:
        frames = x_BNTC.transpose(1, 2).flatten(0, 1)  # [B*T, N+V, C]
        points, virtual = frames[:, :num_points], frames[:, num_points:]
        virtual = self.space_virtual2point_blocks[stage](virtual, points)
        virtual = self.space_virtual_blocks[stage](virtual)
        points = self.space_point2virtual_blocks[stage](points, virtual)
        both = torch.cat([points, virtual], dim=1)
        return both.reshape(x_BNTC.shape[0], -1, *both.shape[1:]).transpose(1, 2)


class PooledLogit(nn.Module):
    """LayerNorm, mean over time then tracks, two-layer MLP."""

    def __init__(self, config: TrackViTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        hidden = config.dim // 2
        self.classifier = nn.Sequential(
            nn.Linear(config.dim, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, 1)
        )

    def forward(self, x_BNTC: Tensor) -> Tensor:
        pooled = self.norm(x_BNTC).mean(dim=2).mean(dim=1)
        return self.classifier(pooled).squeeze(-1)  # type: ignore[no-any-return]


class TrackViT(TrackTransformer):
    """The trunk with a pooled logit: track tokens [B,N,T,D] -> logits [B], real motion high."""

    def __init__(self, config: TrackViTConfig) -> None:
        super().__init__(config)
        self.classfier_head = PooledLogit(config)

    def forward(self, tokens_BNTD: Tensor) -> Tensor:
        if tokens_BNTD.dim() != 4 or tokens_BNTD.shape[-1] != self.config.token_dim:
            raise ValueError(f"tokens must be [B,N,T,{self.config.token_dim}], got {list(tokens_BNTD.shape)}")
        return self.classfier_head(self.trunk(tokens_BNTD.to(self.input_transform.weight.dtype)))  # type: ignore[no-any-return]


def _mlp(config: TrackViTConfig) -> nn.Module:
    return Mlp(config.dim, config.mlp_dim, act_layer=partial(nn.GELU, approximate="tanh"))  # type: ignore[arg-type]
