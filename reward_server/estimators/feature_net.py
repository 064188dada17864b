"""Computes CoTracker3's frame features (arXiv 2410.11831): a small frozen ResNet that fuses its four stages.

Every stage is resized to a quarter of the frame's size before it is fused. Parameter names are those of the
published checkpoint's `fnet`. Tensors are channels-last. On a CPU it is fastest with one frame at a time, because
an instance norm is then a single pass.

Shapes: B images, T frames, C channels, H, W frame size in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reward_server.networks.compiled import compilable
from reward_server.networks.prepacked import CHANNELS_LAST, Compute, Conv2d

STRIDE_PX = 4


class FeatureNet(nn.Module):
    """Maps frames [T,3,H,W] in -1..1 to features [T,128,H/4,W/4]; frames are independent of each other."""

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
    """Two 3x3 convolutions, each with instance norm and ReLU, then the addition of the input and another ReLU."""

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
    """Instance norm of x [B,C,H,W] with eps 1e-5 and sums in float32, by the fastest operator for the device.

    One frame on a CPU goes through BatchNorm, which is several times faster. In float32 the mean and variance are
    computed here, row by row first: BatchNorm sums over the whole map and loses two digits.
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
    """Instance norm of x [B,C,H,W] with eps 1e-5 that keeps the memory layout of `x`. Sums are in float32.

    It is used on a GPU, where group norm would undo channels-last.
    """
    exact = x.float()
    variance, mean = torch.var_mean(exact, (2, 3), correction=0, keepdim=True)
    return ((exact - mean) * torch.rsqrt(variance + 1e-5)).to(x.dtype)
