"""Defines the embedded profile: OpenCV's Lucas-Kanade tracks and DIS flow, and correlation maps of image patches.

Its only weights are two small discriminators, which are shipped.

Shapes: N tracks, T frames, P = T-1 frame pairs, D token size, S correlation scales, K side of a correlation map.
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
from reward_server.motion import DISPLACEMENT_FEATURES, Motion, displacement_features, spread_queries
from reward_server.networks.prepacked import Compute
from reward_server.networks.track_transformer import TrackViTConfig
from reward_server.profiles.cues import num_cues, track_cues
from reward_server.profiles.pace import pace_level, pace_px
from reward_server.profiles.roughness import FITTED, RoughnessWeights, roughness_term
from reward_server.profiles.stillness import StillnessWeights, stillness_term

# Displacements are divided by this times the side of a square of the profile's area, so that sin(2^9 p) resolves
# a tenth of a pixel and sin(p) a jump across the frame.
DISPLACEMENT_SCALE = 0.5


@dataclass(frozen=True, kw_only=True)
class EmbeddedProfile:
    """The embedded profile. Every field and the estimators' settings enter the preprocessing digest."""

    num_tracks: ClassVar[int] = 256
    parallel_clips: ClassVar[bool] = True
    discriminator_compute: ClassVar[Compute | None] = None  # small discriminators gain nothing from packed weights

    name: str = "embedded"
    revision: int = 8  # increase it when a code change alters the discriminators' inputs
    sampling: Sampling = field(default_factory=Sampling)
    correlation_scales: int = 3
    correlation_window: int = 5
    # About the middle pace of real clips, and the range in which a faster one has a higher pace level.
    pace_middle_px: float = 1.1
    pace_between_px: tuple[float, float] = (0.28, 4.4)
    stillness: StillnessWeights = field(default_factory=StillnessWeights)  # of terms of the long-term logit
    roughness: RoughnessWeights = FITTED

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
        """Estimate the motion of a clip of the profile's size, with `num_tracks` query points spread over its frame."""
        height, width = clip.frames.shape[2:]
        return self.estimators.estimate(clip, spread_queries(query_seed, num_tracks, height, width))

    def track_tokens(
        self,
        tracks_TN2: Tensor,
        visibility_TN: Tensor,
        confidence_TN: Tensor,
        correlation_TNSKK: Tensor,
        *,
        chosen: slice = slice(None),
    ) -> Tensor:
        """Track tokens [N,T,D] of the `chosen` tracks: visibility, confidence, correlation maps, displacements, cues.

        Give all tracks of the clip, because cues (`cues.py`) compare a track with its neighbours. The time embedding is
        added to everything but the cues.
        """
        scale = DISPLACEMENT_SCALE * self.sampling.area_px**0.5
        displacement = displacement_features(tracks_TN2[None, :, chosen], (scale, scale))[0]
        state = torch.stack([visibility_TN, confidence_TN], dim=-1)[:, chosen]
        correlation = correlation_TNSKK[:, chosen].flatten(2)
        features = torch.cat([state, correlation, displacement], dim=-1)
        features = features + time_embedding(*features.shape[::2])[:, None]
        cues = track_cues(tracks_TN2, visibility_TN, confidence_TN, correlation_TNSKK, chosen)
        return torch.cat([features, cues], dim=-1).transpose(0, 1)

    def clip_tracks(self, motion: Motion, height_px: int, width_px: int) -> Tensor:
        """The motion's tracks as they are: they are measured in the clip's own frames."""
        return motion.tracks

    def residual_maps(self, motion: Motion) -> Tensor:
        """Maps [P,2,H,W]: brightness-constancy residual in gray levels, flow confidence 0..1."""
        return motion.maps

    def logit_terms(self, motion: Motion, pace_weights: tuple[float, float]) -> tuple[float, float]:
        """A pace term for both logits, and the stillness and the roughness term for the long-term one."""
        pace = pace_level(pace_px(motion.flow), middle_px=self.pace_middle_px, between_px=self.pace_between_px)
        instantaneous, long_term = (weight * pace for weight in pace_weights)
        rough = roughness_term(motion.tracks, motion.confidence, self.roughness)
        still = stillness_term(motion.tracks, motion.confidence, motion.flow, self.stillness)
        return instantaneous, still + rough + long_term

    @property
    def preprocessing_digest(self) -> str:
        """sha256 of everything between a clip's bytes and the discriminators, and of what is added to the logits."""
        parts = {"profile": asdict(self), "estimators": asdict(self.estimators)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def time_embedding(num_frames: int, dim: int) -> Tensor:
    """Time embedding [T,D] as in CoTracker3: sines, then cosines, of frame t at the frequencies 10000^(-2k/D)."""
    half = (dim + 1) // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(num_frames, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :dim].float()
