"""Defines the long-term discriminator: the track transformer with a pooled logit (SHIFT, arXiv 2603.17426).

Parameter names, misspellings included, are those of the published checkpoints, so they load strictly.
Shapes: B clips, N tracks, T frames, D token size, C width.
"""

from __future__ import annotations

from torch import Tensor, nn

from reward_server.discriminators.track_statistics import StatisticsLogit
from reward_server.networks.prepacked import releasing
from reward_server.networks.track_transformer import TrackTransformer, TrackViTConfig


class PooledLogit(nn.Module):
    """Maps features [B,N,T,C] to logits [B]: LayerNorm, mean over time and then over tracks, and a two-layer MLP."""

    def __init__(self, config: TrackViTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        hidden = config.dim // 2
        self.classifier = nn.Sequential(
            nn.Linear(config.dim, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, 1)
        )

    def forward(self, x_BNTC: Tensor) -> Tensor:
        pooled = self.norm(x_BNTC.to(self.norm.weight.dtype)).mean(dim=2).mean(dim=1)
        return self.classifier(pooled).squeeze(-1)  # type: ignore[no-any-return]


class TrackViT(TrackTransformer):
    """Maps track tokens [B,N,T,D] to logits [B], high for real motion. Raises ValueError for another shape."""

    def __init__(self, config: TrackViTConfig) -> None:
        super().__init__(config)
        self.classfier_head = PooledLogit(config)
        self.statistics = StatisticsLogit(config.num_cues) if config.num_cues else None

    @releasing
    def forward(self, tokens_BNTD: Tensor) -> Tensor:
        if tokens_BNTD.dim() != 4 or tokens_BNTD.shape[-1] != self.config.token_dim:
            raise ValueError(f"tokens must be [B,N,T,{self.config.token_dim}], got {list(tokens_BNTD.shape)}")
        tokens = tokens_BNTD.to(self.input_transform.weight.dtype)
        logits: Tensor = self.classfier_head(self.trunk(tokens))
        return logits if self.statistics is None else logits + self.statistics(tokens[..., -self.config.num_cues :])
