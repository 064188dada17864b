"""Defines the motion state of a clip, `Motion`, and the formulas that compute its parts.

Every profile uses this module; it holds no weights. A profile's estimators turn a decoded clip into one
`Motion`, which is all that the discriminators read. The formulas follow SHIFT (arXiv 2603.17426): the residual
map for the instantaneous reward, the displacement features for the long-term reward. Everything is written in
torch, so the same code runs on CPU and GPU.

Legend: B clips, T frames, P = T-1 frame pairs, N points, H, W frame size in pixels, S scales, K side of a
correlation map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GRAY = (0.2989, 0.587, 0.114)
NUM_OCTAVES = 10
DISPLACEMENT_FEATURES = 4 * (1 + 2 * NUM_OCTAVES)


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """The motion of one clip as a profile's estimators measured it, in pixels of the frames the profile works on.

    tracks          [T,N,2] float32, (x, y) px; tracks[0] holds the query points
    visibility      [T,N]   float32 0..1, 1 while the point is followed
    confidence      [T,N]   float32 0..1, how reliable the position is
    correlation     [T,N,S,K,K] float32 -1..1, the query's patch against the neighbourhood of the tracked position;
                    the first K is the offset in y, the second the offset in x, and the centre is offset 0
    flow            [P,2,H,W] float32, (u, v) px from frame t to t+1
    residual        [P,H,W] float32, gray levels, see `residual_map`
    flow_confidence [P,H,W] float32 0..1
    fps             frames per second of the T frames

    Raises ValueError for a tensor of another shape or dtype, and for an fps that is not a positive number.
    """

    tracks: Tensor
    visibility: Tensor
    confidence: Tensor
    correlation: Tensor
    flow: Tensor
    residual: Tensor
    flow_confidence: Tensor
    fps: float

    def __post_init__(self) -> None:
        for name, shape in self._shapes().items():
            value = getattr(self, name)
            if value.dtype != torch.float32 or tuple(value.shape) != shape:
                raise ValueError(f"{name} must be float32 {list(shape)}, got {value.dtype} {list(value.shape)}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be a positive number, got {self.fps}")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        num_frames, num_points = self.tracks.shape[:2]
        height, width = self.flow.shape[-2:]
        return {
            "tracks": (num_frames, num_points, 2),
            "visibility": (num_frames, num_points),
            "confidence": (num_frames, num_points),
            "correlation": (num_frames, num_points, *self._correlation_shape()),
            "flow": (num_frames - 1, 2, height, width),
            "residual": (num_frames - 1, height, width),
            "flow_confidence": (num_frames - 1, height, width),
        }

    def _correlation_shape(self) -> tuple[int, ...]:
        scales, window = self.correlation.shape[2:4]
        return scales, window, window

    @property
    def maps(self) -> Tensor:
        """Input of the instantaneous discriminator [P,2,H,W]: residual and flow confidence."""
        return torch.stack([self.residual, self.flow_confidence], dim=1)

    @property
    def state(self) -> Tensor:
        """Visibility and confidence [T,N,2] in the form that the profile's track tokens contain."""
        return torch.stack([self.visibility, self.confidence], dim=-1)

    def __repr__(self) -> str:
        named = ((f.name, getattr(self, f.name)) for f in fields(self))
        return f"Motion({', '.join(f'{k}={list(v.shape) if isinstance(v, Tensor) else v}' for k, v in named)})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NetworkMotion(Motion):
    """Motion measured by frozen networks.

    `correlation` is an embedding [T,N,C] here. `tracks` are in pixels of the frames as the tracker resizes them.

    logits  [T,N,2] float32, visibility and confidence before the sigmoid, as the track tokens contain them. They
            are kept because the sigmoid of a large logit rounds to 1 and cannot be inverted.
    """

    logits: Tensor

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return super()._shapes() | {"logits": (*self.tracks.shape[:2], 2)}

    def _correlation_shape(self) -> tuple[int, ...]:
        return (self.correlation.shape[-1],)

    @property
    def state(self) -> Tensor:
        return self.logits


def random_queries(seed: int, num: int, height: int, width: int) -> NDArray[np.int64]:
    """Draw `num` distinct pixels of a height x width frame as query points [num,2] (x, y).

    A seed gives the same points on every machine and NumPy version: they come from PCG64's raw words, which NumPy
    keeps stable, and not from `Generator.choice`, which may change. The first n points of a longer draw are the
    draw of n points. Raises ValueError unless `num` is in 1..height*width.
    """
    if not 1 <= num <= height * width:
        raise ValueError(f"num must be in 1..{height * width} for a {height}x{width} frame, got {num}")
    keys = np.random.PCG64(seed).random_raw(height * width)
    smallest = np.argpartition(keys, num - 1)[:num]
    pixels = smallest[np.argsort(keys[smallest])]
    return np.stack([pixels % width, pixels // width], axis=1).astype(np.int64)


def spread_queries(seed: int, num: int, height: int, width: int) -> NDArray[np.int64]:
    """Draw `num` distinct pixels of a height x width frame, one in each of as many cells: query points [num,2] (x, y).

    The cells are about square and divide the frame; if there are a few more cells than points, random ones stay
    empty. Such points cover every frame alike, so a reward depends less on the draw than with `random_queries`. They
    are in random order, and a seed gives the same points everywhere, as there. Raises ValueError as there.
    """
    if not 1 <= num <= height * width:
        raise ValueError(f"num must be in 1..{height * width} for a {height}x{width} frame, got {num}")
    rows = min(height, max(-(-num // width), round(math.sqrt(num * height / width)), 1))
    columns = -(-num // rows)
    words = np.random.PCG64(seed).random_raw((3, rows * columns))
    cells = np.argsort(words[0], kind="stable")[:num]
    places = (words[1:, :num] >> np.uint64(11)) * 2.0**-53  # 0..1, as NumPy makes them from raw words
    x, y = _within(cells % columns, columns, width, places[0]), _within(cells // columns, rows, height, places[1])
    return np.stack([x, y], axis=1)


def _within(part: NDArray[np.int64], num_parts: int, side: int, place: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole coordinates in these of the parts of a side, each at its place 0..1 in its part."""
    first, after = part * side // num_parts, (part + 1) * side // num_parts
    return first + (place * (after - first)).astype(np.int64)


def displacement_features(tracks: Tensor, scale: tuple[float, float]) -> Tensor:
    """Encode each track's displacements as sines: tracks c [B,T,N,2] px -> features [B,T,N,84], in CoTracker3's order.

    With p = (forward x, forward y, backward x, backward y) / scale, where forward is c[t] - c[t+1] (0 at the last
    frame) and backward is c[t] - c[t-1] (0 at the first frame), the features are [p | sin(2^k p) | sin(2^k p + pi/2)]
    for k = 0..9; k is the slower index. `scale` is (x, y) in pixels. Source: CoTracker3 (arXiv 2410.11831).
    Raises ValueError for tracks of another shape.
    """
    if tracks.ndim != 4 or tracks.shape[-1] != 2:
        raise ValueError(f"tracks must be [B,T,N,2], got {list(tracks.shape)}")
    px = torch.tensor(scale, dtype=tracks.dtype).to(tracks.device, non_blocking=True)
    step = (tracks[:, 1:] - tracks[:, :-1]) / px
    still = torch.zeros_like(tracks[:, :1])
    drift = torch.cat([torch.cat([-step, still], 1), torch.cat([still, step], 1)], -1)
    octaves = 2.0 ** torch.arange(NUM_OCTAVES, dtype=tracks.dtype, device=tracks.device)
    angles = (octaves[:, None] * drift[..., None, :]).flatten(-2)
    return torch.cat([drift, angles.sin(), (angles + 0.5 * math.pi).sin()], -1)


def gray_levels(frames: Tensor) -> Tensor:
    """Convert RGB frames to luma, both 0..255: [...,3,H,W] -> [...,H,W]."""
    red, green, blue = frames.unbind(-3)
    return GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue


def residual_map(frames: Tensor, flow: Tensor) -> Tensor:
    """Brightness-constancy residual I_x u + I_y v + I_t of every frame pair, in gray levels (SHIFT, arXiv 2603.17426).

    Takes frames [B,T,3,H,W] 0..255 and flow [B,T-1,2,H,W] px; returns [B,T-1,H,W].
    (u, v) is the flow of a pair divided by its root-mean-square magnitude plus 1e-6. I_x and I_y are derivatives of
    the pair's first frame under the kernel [-1, 0, 1], without the usual factor 1/2; I_x is zero on the border
    columns, I_y on the border rows. I_t is the second frame minus the first, and zero on all four borders.
    A texture that moves by (s, 0) px per frame therefore leaves (2 - s) dI/dx, which is zero at 2 px per frame.
    Raises ValueError for other shapes.
    """
    batch, num_frames, channels, height, width = frames.shape
    if channels != 3 or flow.shape != (batch, num_frames - 1, 2, height, width):
        raise ValueError(f"need frames [B,T,3,H,W] and flow [B,T-1,2,H,W], got {[*frames.shape]} and {[*flow.shape]}")
    gray = gray_levels(frames)
    first, second = gray[:, :-1], gray[:, 1:]
    rms = flow.square().sum(2).mean((-2, -1)).sqrt() + 1e-6
    u, v = (flow / rms[..., None, None, None]).unbind(2)
    residual = torch.zeros_like(first)
    residual[..., 1:-1, 1:-1] = (second - first)[..., 1:-1, 1:-1]
    residual[..., :, 1:-1] += (first[..., :, 2:] - first[..., :, :-2]) * u[..., :, 1:-1]
    residual[..., 1:-1, :] += (first[..., 2:, :] - first[..., :-2, :]) * v[..., 1:-1, :]
    return residual


def mixture_confidence(info: Tensor, var_min: float, var_max: float) -> Tensor:
    """Confidence of a flow field from SEA-RAFT's mixture output: info [...,4,H,W] -> [...,H,W] in [1e-6, 1].

    The four channels are two mixture logits and two log-scales. The first log-scale is clamped to [0, var_max], the
    second to [var_min, 0]. Uncertainty is the expected scale under the mixture. Confidence is exp(-uncertainty / m),
    where m is the lower median of the uncertainty over the map. Raises ValueError for another shape.
    """
    if info.ndim < 3 or info.shape[-3] != 4:
        raise ValueError(f"info must be [...,4,H,W], got {list(info.shape)}")
    weights = info[..., :2, :, :].softmax(-3)
    wide = info[..., 2, :, :].clamp(0.0, var_max).exp()
    narrow = info[..., 3, :, :].clamp(var_min, 0.0).exp()
    uncertainty = weights[..., 0, :, :] * wide + weights[..., 1, :, :] * narrow
    median = uncertainty.flatten(-2).median(-1).values.clamp(min=1e-6)  # torch returns the lower of two middle values
    return (-uncertainty / median[..., None, None]).exp().clamp(1e-6, 1.0)
