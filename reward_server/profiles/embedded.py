"""The embedded profile: OpenCV's Lucas-Kanade tracks and DIS flow, correlation maps in place of learned ones.

It needs no weights but its own two small discriminators, which are shipped. Shapes: N tracks, T frames,
P = T-1 pairs, D token size.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from protos.types import Clip
from reward_server.decoding.decode import Sampling
from reward_server.discriminators.residual_vit import ResidualViTConfig
from reward_server.estimators.classical import ClassicalEstimators
from reward_server.motion import DISPLACEMENT_FEATURES, Motion, displacement_features, random_queries
from reward_server.networks.prepacked import Compute
from reward_server.networks.track_transformer import TrackViTConfig
from reward_server.profiles.cues import num_cues, track_cues

# Drifts are divided by half the side of a square of the profile's area, so that sin(2^9 p) resolves
# a tenth of a pixel and sin(p) a jump across the frame.
DISPLACEMENT_SCALE = 0.5


@dataclass(frozen=True, kw_only=True)
class EmbeddedProfile:
    """Every field, and the estimators' settings, go into the preprocessing digest."""

    num_tracks: ClassVar[int] = 256
    parallel_clips: ClassVar[bool] = True
    discriminator_compute: ClassVar[Compute | None] = None  # small discriminators gain nothing from packed weights

    name: str = "embedded"
    revision: int = 3  # raise it when the code between bytes and discriminators changes the numbers
    sampling: Sampling = field(default_factory=Sampling)
    correlation_scales: int = 3
    correlation_window: int = 5

    @cached_property
    def estimators(self) -> ClassicalEstimators:
        return ClassicalEstimators(num_scales=self.correlation_scales, window=self.correlation_window)

    @property
    def track_config(self) -> TrackViTConfig:
        token_dim = 2 + self.correlation_scales * self.correlation_window**2 + DISPLACEMENT_FEATURES
        cues = num_cues(self.correlation_scales)
        return TrackViTConfig(
            token_dim=token_dim + cues, dim=64, heads=4, depth=2, mlp_dim=256, num_virtual=16, num_cues=cues
        )

    @property
    def residual_config(self) -> ResidualViTConfig:
        return ResidualViTConfig(
            height_px=144, width_px=256, dim=96, depth=3, heads=3, patch_dropout=0.25, compressed=True
        )

    def motion(self, clip: Clip, *, query_seed: int, num_tracks: int) -> Motion:
        """Motion of one clip at the profile's size, from `num_tracks` random points of its first frame."""
        height, width = clip.frames.shape[2:]
        return self.estimators.estimate(clip, random_queries(query_seed, num_tracks, height, width))

    def track_tokens(
        self,
        tracks_TN2: Tensor,
        visibility_TN: Tensor,
        confidence_TN: Tensor,
        correlation_TNSKK: Tensor,
        *,
        chosen: slice = slice(None),
    ) -> Tensor:
        """[N,T,D] per track and frame: visibility, confidence, correlation maps, displacements, cues (`cues.py`).

        All tracks of a clip must be given, as cues compare a track with its neighbours; tokens are made of the
        `chosen` ones. The time embedding is added to all but the cues.
        """
        scale = DISPLACEMENT_SCALE * self.sampling.area_px**0.5
        displacement = displacement_features(tracks_TN2[None, :, chosen], (scale, scale))[0]
        state = torch.stack([visibility_TN, confidence_TN], dim=-1)[:, chosen]
        correlation = correlation_TNSKK[:, chosen].flatten(2)
        features = torch.cat([state, correlation, displacement], dim=-1)
        features = features + time_embedding(*features.shape[::2])[:, None]
        cues = track_cues(tracks_TN2, visibility_TN, confidence_TN, correlation_TNSKK, chosen)
        return torch.cat([features, cues], dim=-1).transpose(0, 1)

    def residual_maps(self, motion: Motion) -> Tensor:
        """[P,2,H,W]: brightness-constancy residual in grey levels, flow confidence 0..1."""
        return motion.maps

    @property
    def preprocessing_digest(self) -> str:
        """sha256 of everything between bytes and discriminators; discriminators refuse features of another digest."""
        parts = {"profile": asdict(self), "estimators": asdict(self.estimators)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def time_embedding(num_frames: int, dim: int) -> Tensor:
    """[T,D]: sines, then cosines, of frame t at the frequencies 10000^(-2k/D), as in CoTracker3's tokens."""
    half = (dim + 1) // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(num_frames, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :dim].float()
