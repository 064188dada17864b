"""Estimates optical flow and its mixture parameters between consecutive frames with SEA-RAFT-M, frozen.

The network follows SEA-RAFT (arXiv 2405.14793): two ResNet encoders, an all-pairs correlation pyramid, four recurrent
refinements and convex upsampling. `motion.residual_map` and `motion.mixture_confidence` use its output. Parameter
names are those of the published checkpoints, so they load strictly. BatchNorm always uses its running statistics
and is folded into the convolution before it; `.train()` does not change that.

Shapes: B clips, T frames, P = T-1 frame pairs, C channels, H, W frame size in pixels, h = H/8, w = W/8, Q = h*w.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reward_server.networks.compiled import compilable
from reward_server.networks.prepacked import CHANNELS_LAST, Compute, Conv2d, Linear, per_pass, releasing, set_compute

STRIDE_PX = 8
RADIUS = 4
NUM_LEVELS = 4
MIN_SIDE_PX = 64  # at this side the coarsest correlation level has one cell


@dataclass(frozen=True, kw_only=True)
class SeaRaftConfig:
    """Number of refinements (`iters`), and frame pairs per pass on a CPU, where 1 is fastest.

    On other devices the memory that `Compute` allows sets the number of pairs per pass.
    """

    iters: int = 4
    pairs_per_pass: int = 1


@dataclass(frozen=True, kw_only=True)
class FlowInfo:
    """Flow and mixture parameters of every frame pair.

    flow  [B,P,2,H,W] (u, v) in pixels from frame t to t+1
    info  [B,P,4,H,W] two mixture logits, then two log-scales, not clamped
    """

    flow: Tensor
    info: Tensor


class SeaRaft(nn.Module):
    compute: Compute | None = None

    def __init__(self, config: SeaRaftConfig | None = None, compute: Compute | None = None) -> None:
        super().__init__()
        self.config = config or SeaRaftConfig()
        self.cnet = Encoder(6)
        self.init_conv = Conv2d(256, 256, 3, padding=1)
        self.upsample_weight = nn.Sequential(Conv2d(128, 256, 3, padding=1), nn.ReLU(), Conv2d(256, 576, 1))
        self.flow_head = nn.Sequential(Conv2d(128, 256, 3, padding=1), nn.ReLU(), Conv2d(256, 6, 3, padding=1))
        self.fnet = Encoder(3)
        self.update_block = UpdateBlock()
        for conv in (self.flow_head[2], self.upsample_weight[2]):
            conv.exact = True  # type: ignore[assignment]
        self.requires_grad_(False)
        self.to(memory_format=CHANNELS_LAST)
        set_compute(self, compute or Compute())

    @releasing
    def forward(self, frames_BT3HW: Tensor, iters: int | None = None) -> FlowInfo:
        """Estimate flow between the frames [B,T,3,H,W] (RGB 0..255, uint8 or float). T = 1 gives no pairs.

        `iters` overrides the configured number of refinements. Raises ValueError for other shapes and for sides under
        64 px.
        """
        if frames_BT3HW.dim() != 5 or frames_BT3HW.shape[2] != 3 or min(frames_BT3HW.shape[-2:]) < MIN_SIDE_PX:
            raise ValueError(f"frames must be [B,T,3,H,W], H and W >= {MIN_SIDE_PX}, got {list(frames_BT3HW.shape)}")
        iters = self.config.iters if iters is None else iters
        clips = [self._clip(clip_T3HW, iters) for clip_T3HW in frames_BT3HW]
        pairs_BP6HW = torch.stack(clips)
        return FlowInfo(flow=pairs_BP6HW[:, :, :2], info=pairs_BP6HW[:, :, 2:])

    def _clip(self, clip_T3HW: Tensor, iters: int) -> Tensor:
        """Flow and info [P,6,H,W] of one clip. Every frame goes through the feature net once."""
        height, width = clip_T3HW.shape[-2:]
        left, right, top, bottom = margins = _margins(height, width)
        frames = F.pad(self.normalised(clip_T3HW), margins, mode="replicate").contiguous(memory_format=CHANNELS_LAST)
        num_cells = frames.shape[-2] * frames.shape[-1] // STRIDE_PX**2
        bytes_each = 4 * num_cells * (2 * num_cells + 8192)  # per pair: its correlations and the encoders' features
        size = per_pass(self.compute, frames.device, self.config.pairs_per_pass, bytes_each)
        features = torch.cat([self.fnet(chunk) for chunk in torch.split(frames, size)])
        starts = range(0, len(frames) - 1, size)
        pairs = [self._pairs(frames[s : s + size + 1], features[s : s + size + 1], iters) for s in starts]
        padded = torch.cat(pairs) if pairs else frames.new_zeros(0, 6, *frames.shape[-2:])
        return padded[..., top : padded.shape[-2] - bottom, left : padded.shape[-1] - right]

    def normalised(self, clip_T3HW: Tensor) -> Tensor:
        """Scale frames from 0..255 to -1..1, the encoders' input range."""
        return clip_T3HW.float() * (2 / 255) - 1

    def _pairs(self, frames: Tensor, features: Tensor, iters: int) -> Tensor:
        """Flow and info [P,6,H,W] between the P+1 frames of one pass. Only the last estimate is upsampled."""
        for refined in self.refinements(frames, features, iters):
            net, flow8, info = refined
        return self._upsampled(net, torch.cat([STRIDE_PX * flow8, info], dim=1))

    def refinements(self, frames: Tensor, features: Tensor, iters: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the estimate before the first iteration, and the estimate after each iteration.

        An estimate is the hidden state [P,128,h,w], the flow [P,2,h,w] in cells and the info [P,4,h,w].
        """
        features = features.float()
        halves = self.init_conv(self.cnet(torch.cat([frames[:-1], frames[1:]], dim=1))).chunk(2, dim=1)
        net, context = (half.contiguous(memory_format=CHANNELS_LAST) for half in halves)
        volumes = correlation_pyramid(features[:-1], features[1:])
        flow8, info = self.flow_head(net).split([2, 4], dim=1)
        flow8 = flow8.contiguous(memory_format=CHANNELS_LAST)  # later flows are too, so one compilation serves all
        yield net, flow8, info
        for _ in range(iters):
            net, flow8, info = self._refined(net, context, flow8, *volumes)
            yield net, flow8, info

    @compilable
    def _refined(self, net: Tensor, context: Tensor, flow8: Tensor, *volumes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One iteration: the next hidden state, flow and info."""
        net = self.update_block(net, context, lookup(volumes, flow8), flow8)
        step, info = self.flow_head(net).split([2, 4], dim=1)
        return net, flow8 + step, info

    @compilable
    def _upsampled(self, net: Tensor, values: Tensor) -> Tensor:
        return upsampled(values, 0.25 * self.upsample_weight(net))


class Encoder(nn.Module):
    """The first three stages of a ResNet-34: frames [P,C,H,W] -> features [P,256,h,w]."""

    compute: Compute | None = None

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, 64, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(*(Block(64, 64) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(64, 128, stride=2), *(Block(128, 128) for _ in range(3)))
        self.layer3 = nn.Sequential(Block(128, 256, stride=2), *(Block(256, 256) for _ in range(5)))
        self.final_conv = Conv2d(256, 256, 1)

    @compilable
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1.fused(x, norm=self.bn1, relu=True)
        return self.final_conv(self.layer3(self.layer2(self.layer1(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut; the shortcut is projected if the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, channels, 3, stride=stride, padding=1)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1:
            self.bn3 = nn.BatchNorm2d(channels)  # one module under two names, as in the checkpoints
            self.downsample = nn.Sequential(Conv2d(in_channels, channels, 1, stride=stride), self.bn3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1.fused(x, norm=self.bn1, relu=True)
        y = self.conv2.fused(y, norm=self.bn2, relu=True)
        shortcut = x if self.downsample is None else self.downsample[0].fused(x, norm=self.bn3)  # type: ignore[operator]
        return y.add_(shortcut).relu_()


class UpdateBlock(nn.Module):
    """Refines the hidden state `net` [P,128,h,w] once."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = MotionEncoder()
        self.refine = nn.ModuleList(ConvNextBlock() for _ in range(2))

    def forward(self, net: Tensor, context: Tensor, correlation: Tensor, flow8: Tensor) -> Tensor:
        inputs = torch.cat([context, self.encoder(correlation, flow8)], dim=1)
        for block in self.refine:
            net = block(torch.cat([net, inputs], dim=1))
        return net


class MotionEncoder(nn.Module):
    """Maps correlation [P,324,h,w] and flow [P,2,h,w] to motion features [P,128,h,w]; the last two channels are the
    flow."""

    def __init__(self) -> None:
        super().__init__()
        self.convc1 = Conv2d(NUM_LEVELS * (2 * RADIUS + 1) ** 2, 256, 1)
        self.convc2 = Conv2d(256, 192, 3, padding=1)
        self.convf1 = Conv2d(2, 128, 7, padding=3)
        self.convf2 = Conv2d(128, 64, 3, padding=1)
        self.conv = Conv2d(256, 126, 3, padding=1)

    def forward(self, correlation: Tensor, flow8: Tensor) -> Tensor:
        matched = self.convc2.fused(self.convc1.fused(correlation, relu=True), relu=True)
        moved = self.convf2.fused(self.convf1.fused(flow8, relu=True), relu=True)
        features = self.conv.fused(torch.cat([matched, moved], dim=1), relu=True)
        return torch.cat([features, flow8.to(features.dtype)], dim=1)


class ConvNextBlock(nn.Module):
    """A ConvNeXt residual block at 384 channels, then a projection to the hidden state's 128 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.dwconv = Conv2d(384, 384, 7, padding=3, groups=384)
        self.norm = nn.LayerNorm(384, eps=1e-6)
        self.pwconv1 = Linear(384, 512)
        self.pwconv2 = Linear(512, 384)
        self.gamma = nn.Parameter(torch.full((384,), 1e-6))
        self.final = Conv2d(384, 128, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)  # a view, not a copy, in channels-last
        y = F.layer_norm(y, self.norm.normalized_shape, self.norm.weight.to(y), self.norm.bias.to(y), self.norm.eps)
        y = self.gamma.to(y) * self.pwconv2(self.pwconv1.fused(y, gelu="none"))
        return self.final(x + y.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


def correlation_pyramid(first_PCHW: Tensor, second_PCHW: Tensor) -> list[Tensor]:
    """Scaled dot products of every cell of the first features [P,C,h,w] with every cell of the second.

    Returns the levels of a pyramid over the second features: level l is [P,Q,h/2^l,w/2^l].
    """
    queries_PQC = first_PCHW.flatten(2).transpose(1, 2) * first_PCHW.shape[1] ** -0.5
    volumes = []
    for level in range(NUM_LEVELS):
        target = F.avg_pool2d(second_PCHW, 2) if level else second_PCHW
        products_PQQ = queries_PQC @ target.flatten(2)
        volumes.append(products_PQQ.view(*products_PQQ.shape[:2], *target.shape[2:]))
        second_PCHW = target
    return volumes


def lookup(volumes: Sequence[Tensor], flow_P2HW: Tensor) -> Tensor:
    """Look up the correlation around the cell to which the flow points: [P,324,h,w].

    `flow_P2HW` [P,2,h,w] is in cells. The 324 channels are ordered by level, then x offset, then y offset.
    """
    height, width = flow_P2HW.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow_P2HW.device), torch.arange(width, device=flow_P2HW.device), indexing="ij"
    )
    match_PQ2 = (torch.stack([x, y]) + flow_P2HW.float()).flatten(2).transpose(1, 2)
    windows = [_window(volume, match_PQ2 / 2**level).flatten(2) for level, volume in enumerate(volumes)]
    correlation_PQC = torch.cat(windows, dim=2)
    return correlation_PQC.view(len(match_PQ2), height, width, -1).permute(0, 3, 1, 2)  # channels last


def _window(volume_PQHW: Tensor, centre_PQ2: Tensor) -> Tensor:
    """Bilinear samples [P,Q,9,9] at integer offsets (x first) from the centre; 0 outside the map.

    All samples share one fractional offset. So a 10x10 patch is gathered once and interpolated along x, then y.
    """
    height, width = volume_PQHW.shape[2:]
    corner = centre_PQ2.floor()
    fraction = (centre_PQ2 - corner).to(volume_PQHW.dtype)
    steps = torch.arange(-RADIUS, RADIUS + 2, device=centre_PQ2.device)
    x, y = (corner[..., axis, None].long() + steps for axis in (0, 1))
    inside = ((x >= 0) & (x < width))[..., :, None] & ((y >= 0) & (y < height))[..., None, :]
    index = y.clamp(0, height - 1)[..., None, :] * width + x.clamp(0, width - 1)[..., :, None]
    patch = volume_PQHW.flatten(2).gather(2, index.flatten(2)).view(inside.shape)
    patch = patch.masked_fill(~inside, 0)
    patch = torch.lerp(patch[..., :-1, :], patch[..., 1:, :], fraction[..., 0, None, None])
    return torch.lerp(patch[..., :-1], patch[..., 1:], fraction[..., 1, None, None])


def upsampled(values_PCHW: Tensor, mask_logits: Tensor) -> Tensor:
    """Upsample [P,C,h,w] by 8 to [P,C,H,W]: each pixel is a convex combination of the 3x3 cells around its own cell.

    The weights are the softmax of `mask_logits` [P,576,h,w].
    """
    num_pairs, channels, height, width = values_PCHW.shape
    mask = mask_logits.reshape(num_pairs, 1, 9, STRIDE_PX, STRIDE_PX, height, width).softmax(dim=2)
    cells = F.unfold(values_PCHW, 3, padding=1).view(num_pairs, channels, 9, 1, 1, height, width)
    pixels = (mask * cells).sum(dim=2)  # [P,C,8,8,h,w]
    return pixels.permute(0, 1, 4, 2, 5, 3).reshape(num_pairs, channels, STRIDE_PX * height, STRIDE_PX * width)


def _margins(height: int, width: int) -> tuple[int, int, int, int]:
    """Padding (left, right, top, bottom) in pixels that brings both sides to multiples of 8."""
    pad_y, pad_x = -height % STRIDE_PX, -width % STRIDE_PX
    return pad_x // 2, pad_x - pad_x // 2, pad_y // 2, pad_y - pad_y // 2
