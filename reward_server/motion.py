"""Motion state of a clip, and the formulas that make it; no weights, shared by every profile.

A profile's estimators turn a decoded clip into one `Motion`; the discriminators read nothing else.
Formulas follow SHIFT (arXiv 2603.17426): residual map of the instantaneous reward, displacement
features of the long-term one. Torch throughout, so that the same code serves CPU and device.

Legend: B clips, T frames, P = T-1 pairs, N points, H, W pixels, S scales, K correlation window.
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
    """What a profile's estimators saw in one clip. Pixels are those of the frames the profile works on.

    tracks          [T,N,2] float32, (x, y) px; row 0 is the queries
    visibility      [T,N]   float32 0..1, 1 while the point is followed
    confidence      [T,N]   float32 0..1, how far the position can be trusted
    correlation     [T,N,S,K,K] float32 -1..1, the query's patch against its neighbourhood at the tracked place;
                    first window axis is the offset in y, second in x; the centre is offset 0
    flow            [P,2,H,W] float32, (u, v) px from frame t to t+1
    residual        [P,H,W] float32, gray levels, see `residual_map`
    flow_confidence [P,H,W] float32 0..1
    fps             frames per second of the T frames
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
        """[P,2,H,W]: residual and flow confidence, what the instantaneous discriminator reads."""
        return torch.stack([self.residual, self.flow_confidence], dim=1)

    @property
    def state(self) -> Tensor:
        """[T,N,2]: visibility and confidence as the profile's tokens hold them."""
        return torch.stack([self.visibility, self.confidence], dim=-1)

    def __repr__(self) -> str:
        named = ((f.name, getattr(self, f.name)) for f in fields(self))
        return f"Motion({', '.join(f'{k}={list(v.shape) if isinstance(v, Tensor) else v}' for k, v in named)})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NetworkMotion(Motion):
    """Motion that frozen networks saw; `correlation` is their embedding [T,N,C] and `tracks` are in their pixels.

    logits  [T,N,2] float32, visibility and confidence before the sigmoid, as the tokens hold them: the sigmoid
            of a sure one could not be undone
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
    """`num` distinct pixels of a height x width frame, [N,2] (x, y), the same on every machine and NumPy version.

    Built on PCG64's raw words, which NumPy keeps stable, and not on `Generator.choice`, which it does not.
    The first n of a longer draw are the draw of n. Raises ValueError if the frame has fewer pixels.
    """
    if not 1 <= num <= height * width:
        raise ValueError(f"num must be in 1..{height * width} for a {height}x{width} frame, got {num}")
    keys = np.random.PCG64(seed).random_raw(height * width)
    smallest = np.argpartition(keys, num - 1)[:num]
    pixels = smallest[np.argsort(keys[smallest])]
    return np.stack([pixels % width, pixels // width], axis=1).astype(np.int64)


def displacement_features(tracks: Tensor, scale: tuple[float, float]) -> Tensor:
    """Drift of each track as sines: [B,T,N,2] px -> [B,T,N,84], in CoTracker3's order.

    p = (forward x, y, backward x, y) / scale, forward c[t]-c[t+1] (0 at the last frame), backward c[t]-c[t-1]
    (0 at the first); features are [p | sin(2^k p), k = 0..9, k-major | sin(2^k p + pi/2), same order].
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
    """Luma 0..255 of RGB frames 0..255: [...,3,H,W] -> [...,H,W]."""
    red, green, blue = frames.unbind(-3)
    return GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue


def residual_map(frames: Tensor, flow: Tensor) -> Tensor:
    """Brightness-constancy residual I_x u + I_y v + I_t: [B,T,3,H,W] 0..255, [B,T-1,2,H,W] -> [B,T-1,H,W].

    (u, v) is the flow divided by its own root-mean-square magnitude per pair (+ 1e-6). I_x, I_y are those of the
    pair's first frame under the kernel [-1, 0, 1], without the usual 1/2, and zero on the border columns, rows;
    I_t is zero on all four borders. A texture moving by (s, 0) px thus leaves (2 - s) dI/dx: zero at 2 px a frame.
    """
    batch, num_frames, channels, height, width = frames.shape
    if channels != 3 or flow.shape != (batch, num_frames - 1, 2, height, width):
        raise ValueError(f"need frames [B,T,3,H,W] and flow [B,T-1,2,H,W], got {[*frames.shape]}, {[*flow.shape]}")
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
    """Confidence of a flow from SEA-RAFT's mixture discriminator: [...,4,H,W] -> [...,H,W] in [1e-6, 1].

    Channels are two weight logits and two log-scales, the first clamped to [0, var_max], the second to [var_min, 0].
    Uncertainty is the expected scale; confidence is exp(-uncertainty / its lower median over the map).
    """
    if info.ndim < 3 or info.shape[-3] != 4:
        raise ValueError(f"info must be [...,4,H,W], got {list(info.shape)}")
    weights = info[..., :2, :, :].softmax(-3)
    wide = info[..., 2, :, :].clamp(0.0, var_max).exp()
    narrow = info[..., 3, :, :].clamp(var_min, 0.0).exp()
    uncertainty = weights[..., 0, :, :] * wide + weights[..., 1, :, :] * narrow
    median = uncertainty.flatten(-2).median(-1).values.clamp(min=1e-6)  # torch takes the lower of two middles
    return (-uncertainty / median[..., None, None]).exp().clamp(1e-6, 1.0)
