"""What a profile is: how clips are sampled, which frozen estimators see their motion, which heads judge it.

The embedded profile needs no weights but its own two small heads: OpenCV's Lucas-Kanade tracks and
DIS flow, correlation maps in place of learned ones. Shapes: N tracks, T frames, P = T-1 pairs,
D token size.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from protos.types import Clip
from reward_server.decode import Sampling
from reward_server.discriminators.residual_vit import ResidualViTConfig
from reward_server.discriminators.track_vit import TrackViTConfig
from reward_server.estimators.classical import ClassicalEstimators
from reward_server.motion import Motion, displacement_features, random_queries

# Drifts are divided by half the side of a square of the profile's area, so that sin(2^9 p) resolves
# a tenth of a pixel and sin(p) a jump across the frame.
DISPLACEMENT_SCALE = 0.5


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The embedded profile; every field goes into the preprocessing digest."""

    name: str = "embedded"
    revision: int = 1  # raise it when the code between bytes and heads changes the numbers
    sampling: Sampling = field(default_factory=Sampling)
    correlation_scales: int = 3
    correlation_window: int = 5

    @cached_property
    def estimators(self) -> ClassicalEstimators:
        return ClassicalEstimators(num_scales=self.correlation_scales, window=self.correlation_window)

    @property
    def track_config(self) -> TrackViTConfig:
        token_dim = 2 + self.correlation_scales * self.correlation_window**2 + 84
        return TrackViTConfig(token_dim=token_dim, dim=64, heads=4, depth=2, mlp_dim=256, num_virtual=16)

    @property
    def residual_config(self) -> ResidualViTConfig:
        return ResidualViTConfig(
            height_px=144, width_px=256, dim=96, depth=3, heads=3, patch_dropout=0.25, log_magnitude=True
        )

    def motion(self, clip: Clip, *, query_seed: int, num_tracks: int) -> Motion:
        """Motion of one clip at the profile's size, from `num_tracks` random points of its first frame."""
        height, width = clip.frames.shape[2:]
        return self.estimators.estimate(clip, random_queries(query_seed, num_tracks, height, width))

    def track_tokens(
        self, tracks_TN2: Tensor, visibility_TN: Tensor, confidence_TN: Tensor, correlation_TNSKK: Tensor
    ) -> Tensor:
        """[N,T,D] per track and frame: visibility, confidence, correlation maps, displacement features."""
        scale = DISPLACEMENT_SCALE * self.sampling.area_px**0.5
        displacement = displacement_features(tracks_TN2[None], (scale, scale))[0]
        state = torch.stack([visibility_TN, confidence_TN], dim=-1)
        tokens = torch.cat([state, correlation_TNSKK.flatten(2), displacement], dim=-1)
        return (tokens + time_embedding(*tokens.shape[::2])[:, None]).transpose(0, 1)

    def residual_maps(self, motion: Motion) -> Tensor:
        """[P,2,H,W]: brightness-constancy residual in grey levels, flow confidence 0..1."""
        return torch.stack([motion.residual, motion.flow_confidence], dim=1)

    @property
    def preprocessing_digest(self) -> str:
        """sha256 of everything between bytes and heads; heads refuse features of another digest."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def time_embedding(num_frames: int, dim: int) -> Tensor:
    """[T,D]: sines, then cosines, of frame t at the frequencies 10000^(-2k/D), as in CoTracker3's tokens."""
    half = (dim + 1) // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(num_frames, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :dim].float()


PROFILES = {"embedded": Profile()}
