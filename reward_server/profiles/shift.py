"""Defines the profiles `shift` and `shift-wan`, the system of the SHIFT paper (arXiv 2603.17426).

The long-term discriminator reads CoTracker3's tokens, the instantaneous one SEA-RAFT's flow. `shift` uses 24 frames of
320x576 at 14 fps, as the paper does for Stable Video Diffusion. `shift-wan` uses 49 frames of 480x832 at 24 fps, as the
paper does for Wan2.2. Both networks are frozen. Their weights come from the models folder and enter the preprocessing
digest.

Shapes: N tracks, T frames, P = T-1 frame pairs, D = 1110 token size, C = 1024 correlation embedding, H, W frame size
in pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import structlog
import torch
from torch import Tensor
from torch.nn import functional as F

from protos.types import Clip
from reward_server.decoding.sampling import Sampling
from reward_server.discriminators.residual_vit import ResidualViTConfig
from reward_server.estimators.cotracker3 import TOKEN_DIM, CoTracker3, Tracking, resampled
from reward_server.estimators.feature_net import STRIDE_PX
from reward_server.estimators.sea_raft import SeaRaft
from reward_server.models.store import load_network
from reward_server.motion import (
    DISPLACEMENT_FEATURES,
    Motion,
    NetworkMotion,
    displacement_features,
    mixture_confidence,
    random_queries,
    residual_map,
)
from reward_server.networks.bf16 import has_bf16
from reward_server.networks.compiled import check_compiles
from reward_server.networks.prepacked import Compute, Precision
from reward_server.networks.tf32 import exact_convolutions
from reward_server.networks.track_transformer import TrackViTConfig

VAR_MIN, VAR_MAX = 0.0, 10.0  # bounds of SEA-RAFT's log-scales, from its Spring configuration
CORRELATION = slice(2, TOKEN_DIM - DISPLACEMENT_FEATURES)  # the correlation embedding within a token

log = structlog.get_logger("profile")


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks:
    """The frozen networks on their device, and the sha256 of each network's weights."""

    tracker: CoTracker3
    flow_net: SeaRaft
    device: str
    compute: Compute
    digests: Mapping[str, str]

    @classmethod
    def load(cls, models: Path, device: str, compute: Compute) -> Networks:
        """Load both networks from the folder `models`.

        Raises NotReady if weights are missing or were changed, or if torch.compile is wanted but does not work.
        """
        tracker, flow_net = CoTracker3(compute=compute), SeaRaft(compute=compute)
        digests = {
            name: load_network(module, name, models)
            for name, module in (("cotracker3", tracker), ("sea_raft", flow_net))
        }
        check_compiles(compute.compile, device)
        return cls(
            tracker=tracker.eval().to(device),
            flow_net=flow_net.eval().to(device),
            device=device,
            compute=compute,
            digests=digests,
        )


@dataclass(frozen=True, kw_only=True)
class ShiftProfile:
    """A profile on CoTracker3 and SEA-RAFT.

    Every field but `discriminator_precision` enters the preprocessing digest; the networks enter it by the sha256 of
    their weights. How networks and discriminators compute does not enter it, because it changes results only by
    rounding (to 8 bits in bf16).
    """

    parallel_clips: ClassVar[bool] = False  # one clip keeps all threads, or the device, busy
    num_tracks: ClassVar[int] = 1024

    networks: Networks = field(repr=False)
    name: str = "shift"
    revision: int = 1  # increase it when a code change alters the discriminators' inputs
    sampling: Sampling = field(default_factory=lambda: Sampling(fps=14.0, window_frames=24, area_px=320 * 576))
    height_px: int = 320
    width_px: int = 576
    discriminator_precision: Precision = "fp32"

    @property
    def track_config(self) -> TrackViTConfig:
        return TrackViTConfig()

    @property
    def residual_config(self) -> ResidualViTConfig:
        return ResidualViTConfig(height_px=self.height_px, width_px=self.width_px)

    @torch.inference_mode()
    @exact_convolutions
    def motion(self, clip: Clip, *, query_seed: int, num_tracks: int) -> NetworkMotion:
        """Estimate the motion of one clip. Its tensors stay on the networks' device.

        The tracker gets the clip as decoded. The flow network gets it resized to the instantaneous discriminator's
        size, bilinearly and without aligned corners. A clip that has this size already does not change.
        """
        frames = sent(torch.from_numpy(clip.frames), self.networks.device)
        tracking = self._tracking(frames, random_queries(query_seed, num_tracks, *frames.shape[2:]))
        tokens_TND = tracking.tokens[0].transpose(0, 1) - self._time(len(frames))[:, None]
        size = (self.height_px, self.width_px)
        resized = F.interpolate(frames.float(), size, mode="bilinear", align_corners=False)[None]
        estimate = self.networks.flow_net(resized)
        return NetworkMotion(
            tracks=tracking.tracks[0],
            visibility=tracking.visibility[0],
            confidence=tracking.confidence[0],
            logits=tokens_TND[..., :2],
            correlation=tokens_TND[..., CORRELATION],
            flow=estimate.flow[0],
            residual=residual_map(resized, estimate.flow)[0],
            flow_confidence=mixture_confidence(estimate.info, VAR_MIN, VAR_MAX)[0],
            fps=clip.fps,
        )

    def track_tokens(
        self,
        tracks_TN2: Tensor,
        visibility_TN: Tensor,
        confidence_TN: Tensor,
        correlation_TNC: Tensor,
        *,
        chosen: slice = slice(None),
    ) -> Tensor:
        """Track tokens [N,T,D] as CoTracker3's last iteration read them.

        They are the logits of visibility and confidence, the correlation embedding and the displacement features; the
        time embedding is added to all of them. Tracks are in the tracker's model pixels. The tokens of a track do not
        depend on other tracks, so any subset of tracks may be given.
        """
        tracks = tracks_TN2[None, :, chosen] / STRIDE_PX
        config = self.networks.tracker.config
        displacement = displacement_features(tracks, (config.width_px / STRIDE_PX, config.height_px / STRIDE_PX))[0]
        state = torch.stack([visibility_TN, confidence_TN], dim=-1)[:, chosen]
        tokens_TND = torch.cat([state, correlation_TNC[:, chosen], displacement], dim=-1)
        return (tokens_TND + self._time(len(tokens_TND)).to(tokens_TND)[:, None]).transpose(0, 1)

    def clip_tracks(self, motion: Motion, height_px: int, width_px: int) -> Tensor:
        """The motion's tracks [T,N,2] without the tracker's resizing, which keeps the corners' places."""
        model = self.networks.tracker.config
        scale = [(width_px - 1) / (model.width_px - 1), (height_px - 1) / (model.height_px - 1)]
        return motion.tracks * motion.tracks.new_tensor(scale)

    def residual_maps(self, motion: Motion) -> Tensor:
        """Maps [P,2,H,W]: brightness-constancy residual in gray levels, flow confidence 0..1."""
        return motion.maps

    def logit_terms(self, motion: Motion, pace_weights: tuple[float, float]) -> tuple[float, float]:
        """Zeros: the paper's logits are left as they are."""
        return 0.0, 0.0

    @property
    def discriminator_compute(self) -> Compute:
        """As for the frozen networks, but in its own precision: most of bf16's error comes from the discriminators."""
        return dataclasses.replace(self.networks.compute, precision=self.discriminator_precision)

    @property
    def preprocessing_digest(self) -> str:
        """sha256 of everything between a clip's bytes and the discriminators."""
        parts = {
            "profile": [self.name, self.revision, self.height_px, self.width_px, asdict(self.sampling)],
            "tracker": [self.networks.tracker.config.iters, self.networks.digests["cotracker3"]],
            "flow": [self.networks.flow_net.config.iters, self.networks.digests["sea_raft"], VAR_MIN, VAR_MAX],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _tracking(self, frames_T3HW: Tensor, points_N2: object) -> Tracking:
        xy = torch.as_tensor(points_N2, dtype=torch.float32)
        queries = F.pad(xy, (1, 0))[None]  # all in frame 0
        tracking: Tracking = self.networks.tracker(frames_T3HW[None], queries, tokens_only=True)
        return tracking

    def _time(self, num_frames: int) -> Tensor:
        """The checkpoint's time embedding [T,D]."""
        return resampled(self.networks.tracker.time_emb, num_frames)


def sent(values: Tensor, device: str) -> Tensor:
    """Copy a tensor to the device; to a GPU from page-locked memory, so that this thread need not wait for the copy."""
    pinned = values.pin_memory() if torch.device(device).type == "cuda" else values
    return pinned.to(device, non_blocking=True)


WAN_SAMPLING = Sampling(fps=24.0, window_frames=49, area_px=480 * 832)


def load_shift(
    name: str, models: Path, *, device: str, compute: Compute, discriminator_precision: Precision = "fp32"
) -> ShiftProfile:
    """Load the profile `shift` or `shift-wan` with its networks. Raises NotReady if weights are missing or changed."""
    if "bf16" in (compute.precision, discriminator_precision) and not has_bf16(device):
        log.warning("the device only emulates bf16, which is slower than fp32", device=device, choose="fp32")
    profile = ShiftProfile(
        networks=Networks.load(models, device, compute), discriminator_precision=discriminator_precision
    )
    if name == "shift":
        return profile
    return dataclasses.replace(profile, name=name, sampling=WAN_SAMPLING, height_px=480, width_px=832)
