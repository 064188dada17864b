"""CoTracker3's feature net: a small ResNet whose four stages are resized to a quarter and fused; frozen.

Formulas of CoTracker3 (arXiv 2410.11831). Parameter names are those of the published checkpoint's `fnet`.

Works in channels-last, and best on one frame at a time: an instance norm is then one pass.

Shapes: T frames, C channels, H, W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reward_server.networks.compiled import compilable
from reward_server.networks.prepacked import CHANNELS_LAST, Compute, Conv2d

STRIDE_PX = 4


class FeatureNet(nn.Module):
    """Frames [T,3,H,W] in -1..1 -> features [T,128,H/4,W/4], each frame by itself."""

    compute: Compute | None = None

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, 64, 7, stride=2, padding=3)
        self.layer1 = nn.Sequential(ResidualBlock(64, 64), ResidualBlock(64, 64))
        self.layer2 = nn.Sequential(ResidualBlock(64, 96, stride=2), ResidualBlock(96, 96))
        self.layer3 = nn.Sequential(ResidualBlock(96, 128, stride=2), ResidualBlock(128, 128))
        self.layer4 = nn.Sequential(ResidualBlock(128, 128, stride=2), ResidualBlock(128, 128))
        self.conv2 = Conv2d(64 + 96 + 128 + 128, 256, 3, padding=1)
        self.conv3 = Conv2d(256, 128, 1)
        self.to(memory_format=CHANNELS_LAST)

    @compilable
    def forward(self, frames: Tensor) -> Tensor:
        size = (frames.shape[2] // STRIDE_PX, frames.shape[3] // STRIDE_PX)
        x = normalised(self.conv1(frames.contiguous(memory_format=CHANNELS_LAST))).relu_()
        scales = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            scales.append(F.interpolate(x, size, mode="bilinear", align_corners=True))
        return self.conv3(normalised(self.conv2(torch.cat(scales, dim=1))).relu_())  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance norm; both ReLUs come before the addition, and one after."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, channels, 3, stride=stride, padding=1)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)
        shortcut = nn.Sequential(Conv2d(in_channels, channels, 1, stride=stride)) if stride != 1 else None
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = normalised(self.conv1(x)).relu_()
        y = normalised(self.conv2(y)).relu_()
        return y.add_(x if self.downsample is None else normalised(self.downsample(x))).relu_()


def normalised(x: Tensor) -> Tensor:
    """Instance norm, eps 1e-5, with sums in float32; on a CPU and one frame it is BatchNorm, several times faster.

    BatchNorm's own float32 sums run over the whole map and lose two digits: here they are taken by rows first.
    """
    if x.device.type != "cpu":
        return standardised(x)
    if len(x) > 1:
        return F.group_norm(x, x.shape[1], eps=1e-5)
    if x.dtype != torch.float32:
        return F.batch_norm(x, None, None, training=True, eps=1e-5)
    rows_BHWC = x.permute(0, 2, 3, 1)
    mean_BC = rows_BHWC.mean(2).mean(1)
    variance_BC = (rows_BHWC - mean_BC).square_().mean(2).mean(1)
    return F.batch_norm(x, mean_BC[0], variance_BC[0], training=False, eps=1e-5)


def standardised(x: Tensor) -> Tensor:
    """The same, laid out as `x` on every device; on a GPU group norm would undo channels-last."""
    exact = x.float()
    variance, mean = torch.var_mean(exact, (2, 3), correction=0, keepdim=True)
    return ((exact - mean) * torch.rsqrt(variance + 1e-5)).to(x.dtype)
