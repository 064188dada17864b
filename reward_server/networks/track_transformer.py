"""Defines the transformer over track tokens, which alternates attention over time and attention over tracks.

CoTracker3's update transformer (arXiv 2410.11831, section 3) and SHIFT's long-term discriminator (arXiv 2603.17426)
share it. Parameter names, misspellings included, are those of the published checkpoints, so they load strictly.

Shapes: B clips, N tracks, V virtual tracks, T frames, D token size, C width; L and M are lengths of sequences. The
first dimension of an attention block's input is a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reward_server.networks.compiled import compilable
from reward_server.networks.prepacked import Compute, Linear, Mlp, needs_grad, passes


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
    num_cues: int = 0  # how many numbers at the end of a token are cues, which StatisticsLogit reads as well


class Attention(nn.Module):
    """Multi-head attention with separate query and key-value projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(dim, dim)
        self.to_kv = Linear(dim, 2 * dim)
        self.to_out = Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Let x [B,L,C] attend to context [B,M,C], by default to itself. `plus` [B,L,C] is added to the result."""
        keys, values = self.to_kv(x if context is None else context).chunk(2, dim=-1)
        query, keys, values = (self._split(part) for part in (self.to_q(x), keys, values))
        mixed = F.scaled_dot_product_attention(query, keys, values)
        return self.to_out.fused(mixed.transpose(1, 2).flatten(2), plus=plus)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class SelfBlock(nn.Module):
    """Pre-norm self-attention and MLP. The norms have no affine parameters; the MLP uses the tanh GELU."""

    compute: Compute | None = None

    def __init__(self, config: TrackViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(config.dim, config.mlp_dim, gelu="tanh")

    @compilable
    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x), plus=x)
        return self.mlp(self.norm2(x), plus=x)  # type: ignore[no-any-return]


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and MLP. Only the context's norm has affine parameters."""

    compute: Compute | None = None

    def __init__(self, config: TrackViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-6, elementwise_affine=False)
        self.norm_context = nn.LayerNorm(config.dim)
        self.cross_attn = Attention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(config.dim, config.mlp_dim, gelu="tanh")

    @compilable
    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        norm = self.norm_context
        context = F.layer_norm(context, norm.normalized_shape, norm.weight.to(x), norm.bias.to(x), norm.eps)
        x = self.cross_attn(self.norm1(x), context, plus=x)
        return self.mlp(self.norm2(x), plus=x)  # type: ignore[no-any-return]


class TrackTransformer(nn.Module):
    """Alternates attention over time, within each track, and over tracks, through virtual tracks.

    With a `Compute` and without gradients it runs in passes over tracks and over frames, with the same result.
    """

    compute: Compute | None = None

    def __init__(self, config: TrackViTConfig) -> None:
        super().__init__()
        self.config = config
        self.input_transform = Linear(config.token_dim, config.dim)
        self.virual_tracks = nn.Parameter(torch.randn(1, config.num_virtual, 1, config.dim))
        self.time_blocks = nn.ModuleList(SelfBlock(config) for _ in range(config.depth))
        self.space_virtual_blocks = nn.ModuleList(SelfBlock(config) for _ in range(config.depth))
        self.space_point2virtual_blocks = nn.ModuleList(CrossBlock(config) for _ in range(config.depth))
        self.space_virtual2point_blocks = nn.ModuleList(CrossBlock(config) for _ in range(config.depth))

    def trunk(self, tokens_BNTD: Tensor) -> Tensor:
        """Map tokens [B,N,T,D] to features [B,N,T,C]. The virtual tracks are dropped."""
        if self.compute is not None and not needs_grad(tokens_BNTD, self.virual_tracks):
            return torch.stack([self._in_passes(clip_NTD, self.compute) for clip_NTD in tokens_BNTD])
        points = self.input_transform(tokens_BNTD)
        num_points = points.shape[1]
        virtual = self.virual_tracks.to(points.dtype).expand(points.shape[0], -1, points.shape[2], -1)
        x = torch.cat([points, virtual], dim=1)
        for stage in range(self.config.depth):
            x = self._over_time(stage, x)
            x = self._over_tracks(stage, x, num_points)
        return x[:, :num_points]

    def _in_passes(self, tokens_NTD: Tensor, compute: Compute) -> Tensor:
        """Features [N,T,C] of one clip, computed in passes."""
        num_points, num_frames, _ = tokens_NTD.shape
        bytes_each = (2 * self.config.mlp_dim + 8 * self.config.dim) * 4  # of one token inside a block
        tracks = compute.num_per_pass(bytes_each * num_frames)
        x = tokens_NTD.new_empty(num_points + self.config.num_virtual, num_frames, self.config.dim)
        for part in passes(num_points, tracks):
            x[part] = self.input_transform(tokens_NTD[part])
        x[num_points:] = self.virual_tracks[0]
        frames = compute.num_per_pass(bytes_each * len(x))
        for stage in range(self.config.depth):
            for part in passes(len(x), tracks):
                x[part] = self.time_blocks[stage](x[part])
            for part in passes(num_frames, frames):
                x[:, part] = self._over_tracks(stage, x[None, :, part], num_points)[0]
        return x[:num_points]

    def _over_time(self, stage: int, x_BNTC: Tensor) -> Tensor:
        mixed: Tensor = self.time_blocks[stage](x_BNTC.flatten(0, 1))
        return mixed.view_as(x_BNTC)

    def _over_tracks(self, stage: int, x_BNTC: Tensor, num_points: int) -> Tensor:
        frames = x_BNTC.transpose(1, 2).flatten(0, 1)  # [B*T, N+V, C]
        points, virtual = frames[:, :num_points].contiguous(), frames[:, num_points:].contiguous()
        virtual = self.space_virtual2point_blocks[stage](virtual, points)
        virtual = self.space_virtual_blocks[stage](virtual)
        points = self.space_point2virtual_blocks[stage](points, virtual)
        both = torch.cat([points, virtual], dim=1)
        return both.reshape(x_BNTC.shape[0], -1, *both.shape[1:]).transpose(1, 2)
