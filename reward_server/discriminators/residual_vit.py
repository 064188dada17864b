"""The instantaneous discriminator: a timm ViT over the residual and confidence maps of each frame pair.

SHIFT (arXiv 2603.17426): the maps are the two input channels, the class token's features are
averaged over the frame pairs, one linear layer makes the logit. Parameter names are those of the
reference's `flow_vit` module.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ResidualViTConfig:
    """Sizes of a residual ViT; the defaults are the paper's ViT-B/16 at 320x576 (86.0 M parameters)."""

    height_px: int = 320
    width_px: int = 576
    patch_px: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    dropout: float = 0.1
    patch_dropout: float = 0.0  # share of patches left out in training
    compressed: bool = False  # see the residual as asinh and as its magnitude: a small ViT learns it sooner


class ResidualViT(nn.Module):
    """Maps [B,P,2,H,W] (residual in grey levels, confidence 0..1) of P frame pairs -> logits [B]."""

    def __init__(self, config: ResidualViTConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = VisionTransformer(
            img_size=(config.height_px, config.width_px),
            patch_size=config.patch_px,
            in_chans=3 if config.compressed else 2,
            num_classes=0,
            embed_dim=config.dim,
            depth=config.depth,
            num_heads=config.heads,
            global_pool="token",
            drop_rate=config.dropout,
            patch_drop_rate=config.patch_dropout,
            dynamic_img_size=True,
        )
        self.head = nn.Linear(config.dim, 1)

    def features(self, maps_BP2HW: Tensor) -> Tensor:
        """Class-token features [B,P,C] of every frame pair."""
        if maps_BP2HW.dim() != 5 or maps_BP2HW.shape[2] != 2:
            raise ValueError(f"maps must be [B,P,2,H,W], got {list(maps_BP2HW.shape)}")
        pairs = maps_BP2HW.flatten(0, 1)
        if self.config.compressed:
            residual = pairs[:, 0].asinh()
            pairs = torch.stack([residual, residual.abs(), pairs[:, 1]], dim=1)
        features: Tensor = self.backbone(pairs)
        return features.view(*maps_BP2HW.shape[:2], -1)

    def forward(self, maps_BP2HW: Tensor) -> Tensor:
        return self.head(self.features(maps_BP2HW).mean(dim=1)).squeeze(-1)  # type: ignore[no-any-return]
