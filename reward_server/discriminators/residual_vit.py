"""Defines the instantaneous discriminator: a timm ViT over the residual and confidence maps of each frame pair.

As in SHIFT (arXiv 2603.17426), the maps are the two input channels, the class token's features are averaged over the
frame pairs, and one linear layer gives the logit. Parameter names are those of the reference code's `flow_vit` module.

Shapes: B clips, P frame pairs, L positions (the class token, then the patches), C width, H, W frame size in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from reward_server.networks.compiled import compilable
from reward_server.networks.prepacked import Compute, Linear, needs_grad, passes, releasing

MANY_POSITIONS = 400  # patches from which plain attention trains faster than the fused kernels on a CPU


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
    compressed: bool = False  # read asinh(residual) and its magnitude, from which a small ViT learns faster


class ResidualViT(nn.Module):
    """Maps [B,P,2,H,W] (residual in gray levels, confidence 0..1) of P frame pairs -> logits [B], high for real motion.

    With a `Compute` and without gradients it runs in passes over pairs. In the last block it then computes only the
    class token. The features are the same.
    """

    compute: Compute | None = None

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
        _relinked(self.backbone)
        self.head = nn.Linear(config.dim, 1)

    def features(self, maps_BP2HW: Tensor) -> Tensor:
        """Class-token features [B,P,C] of every frame pair. Raises ValueError for maps of another shape."""
        if maps_BP2HW.dim() != 5 or maps_BP2HW.shape[2] != 2:
            raise ValueError(f"maps must be [B,P,2,H,W], got {list(maps_BP2HW.shape)}")
        pairs = maps_BP2HW.flatten(0, 1)
        if self.config.compressed:
            residual = pairs[:, 0].asinh()
            pairs = torch.stack([residual, residual.abs(), pairs[:, 1]], dim=1)
        trains = self.training or needs_grad(pairs, self.head.weight)
        features = self._in_passes(pairs, self.compute) if self.compute and not trains else self.backbone(pairs)
        return features.view(*maps_BP2HW.shape[:2], -1)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; for many patches also use plain attention, which takes half the time of the fused kernels
        on a CPU."""
        super().train(mode)
        many = self.config.height_px * self.config.width_px >= MANY_POSITIONS * self.config.patch_px**2
        blocks: list[Any] = list(self.backbone.blocks)
        for block in blocks:
            block.attn.fused_attn = not (mode and many)
        return self

    def _in_passes(self, pairs: Tensor, compute: Compute) -> Tensor:
        """Class-token features [P,C] of maps [P,2 or 3,H,W], computed in passes."""
        num_positions = 1 + (pairs.shape[-2] // self.config.patch_px) * (pairs.shape[-1] // self.config.patch_px)
        size = compute.num_per_pass(num_positions * self.config.dim * 4 * 12)
        return torch.cat([self._class_features(pairs[part]) for part in passes(len(pairs), size)])

    def _class_features(self, images_PCHW: Tensor) -> Tensor:
        """Class-token features [P,C] of one pass, in eval mode."""
        backbone = self.backbone
        x: Tensor = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images_PCHW)))
        blocks: list[Any] = list(backbone.blocks)
        for block in blocks[:-1]:
            x = self._attended(block, x)
        return backbone.norm(self._attended(blocks[-1], x, True))[:, 0]  # type: ignore[no-any-return]

    @compilable
    def _attended(self, block: Any, x_PLC: Tensor, class_only: bool = False) -> Tensor:
        """Output of a timm block for all positions [P,L,C], or for the class token only [P,1,C]."""
        attn = block.attn
        queries_PQC = x_PLC[:, :1].contiguous() if class_only else x_PLC
        qkv = attn.qkv(block.norm1(x_PLC)).unflatten(-1, (3, attn.num_heads, -1))  # [P,L,3,heads,c]
        query, keys, values = (part.transpose(1, 2) for part in qkv.unbind(2))
        mixed = F.scaled_dot_product_attention(query[:, :, : queries_PQC.shape[1]], keys, values)
        x: Tensor = attn.proj.fused(mixed.transpose(1, 2).reshape_as(queries_PQC), plus=queries_PQC)
        return block.mlp.fc2.fused(block.mlp.fc1.fused(block.norm2(x), gelu="none"), plus=x)  # type: ignore[no-any-return]

    @releasing
    def forward(self, maps_BP2HW: Tensor) -> Tensor:
        features = self.features(maps_BP2HW).to(self.head.weight.dtype)
        return self.head(features.mean(dim=1)).squeeze(-1)  # type: ignore[no-any-return]


def _relinked(backbone: VisionTransformer) -> None:
    """Replace timm's linear layers in the blocks by `Linear` layers that share their parameters."""
    blocks: list[Any] = list(backbone.blocks)
    for block in blocks:
        for owner, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            setattr(owner, name, Linear.of(getattr(owner, name)))
