"""The paper's profile: CoTracker3's tokens for the long-term discriminator, SEA-RAFT's flow for the instantaneous one.

SHIFT, arXiv 2603.17426. Two figures: `shift` looks at 24 frames of 320x576 at 14 fps (its experiments on
Stable Video Diffusion), `shift-wan` at 49 of 480x832 at 24 fps (on Wan2.2). The networks are frozen; their
weights come from the models folder and are part of the preprocessing digest.

Shapes: N tracks, T frames, P = T-1 pairs, D = 1110 token size, C = 1024 correlation embedding, H, W pixels.
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

VAR_MIN, VAR_MAX = 0.0, 10.0  # of SEA-RAFT's log-scales, as its Spring configuration has them
CORRELATION = slice(2, TOKEN_DIM - DISPLACEMENT_FEATURES)  # where a token holds the correlation embedding

log = structlog.get_logger("profile")


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks:
    """The frozen networks on their device, and the sha256 of each one's weights."""

    tracker: CoTracker3
    flow_net: SeaRaft
    device: str
    compute: Compute
    digests: Mapping[str, str]

    @classmethod
    def load(cls, models: Path, device: str, compute: Compute) -> Networks:
        """From the models folder. Raises NotReady where weights are missing or were changed, or nothing compiles."""
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
    """Every field but `discriminator_precision` goes into the preprocessing digest, the networks by their weights' sha256.

    How networks and discriminators compute does not: it changes their results by rounding, of 8 bits where it is bf16.
    """

    parallel_clips: ClassVar[bool] = False  # one clip keeps all threads, or the device, busy
    num_tracks: ClassVar[int] = 1024

    networks: Networks = field(repr=False)
    name: str = "shift"
    revision: int = 1  # raise it when the code between bytes and discriminators changes the numbers
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
        """Motion of one clip; its tensors stay on the networks' device.

        The tracker sees the clip as it was decoded. The flow sees it stretched to the instantaneous
        discriminator's size, bilinearly, without aligned corners: nothing changes where it has that size.
        """
        frames = sent(torch.from_numpy(clip.frames), self.networks.device)
        tracking = self._tracking(frames, random_queries(query_seed, num_tracks, *frames.shape[2:]))
        tokens_TND = tracking.tokens[0].transpose(0, 1) - self._time(len(frames))[:, None]
        resized = self._resized(frames)[None]
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
        """[N,T,D] as CoTracker3's last iteration read them: visibility and confidence logits, correlation, drift, time.

        Tracks are in the tracker's pixels. Each track's tokens are its own, so that any subset may be given.
        """
        tracks = tracks_TN2[None, :, chosen] / STRIDE_PX
        config = self.networks.tracker.config
        displacement = displacement_features(tracks, (config.width_px / STRIDE_PX, config.height_px / STRIDE_PX))[0]
        state = torch.stack([visibility_TN, confidence_TN], dim=-1)[:, chosen]
        tokens_TND = torch.cat([state, correlation_TNC[:, chosen], displacement], dim=-1)
        return (tokens_TND + self._time(len(tokens_TND)).to(tokens_TND)[:, None]).transpose(0, 1)

    def residual_maps(self, motion: Motion) -> Tensor:
        """[P,2,H,W]: brightness-constancy residual in grey levels, flow confidence 0..1."""
        return motion.maps

    @property
    def discriminator_compute(self) -> Compute:
        """As the frozen networks, but in a precision of their own: most of bf16's error would come from the discriminators."""
        return dataclasses.replace(self.networks.compute, precision=self.discriminator_precision)

    @property
    def preprocessing_digest(self) -> str:
        """sha256 of everything between bytes and discriminators; discriminators refuse features of another digest."""
        parts = {
            "profile": [self.name, self.revision, self.height_px, self.width_px, asdict(self.sampling)],
            "tracker": [self.networks.tracker.config.iters, self.networks.digests["cotracker3"]],
            "flow": [self.networks.flow_net.config.iters, self.networks.digests["sea_raft"], VAR_MIN, VAR_MAX],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _tracking(self, frames_T3HW: Tensor, points_N2: object) -> Tracking:
        xy = torch.as_tensor(points_N2, dtype=torch.float32)
        queries = F.pad(xy, (1, 0))[None]  # all of frame 0
        tracking: Tracking = self.networks.tracker(frames_T3HW[None], queries, tokens_only=True)
        return tracking

    def _resized(self, frames_T3HW: Tensor) -> Tensor:
        size = (self.height_px, self.width_px)
        return F.interpolate(frames_T3HW.float(), size, mode="bilinear", align_corners=False)

    def _time(self, num_frames: int) -> Tensor:
        """The checkpoint's time embedding [T,D]."""
        return resampled(self.networks.tracker.time_emb, num_frames)


def sent(values: Tensor, device: str) -> Tensor:
    """On the device; to a GPU from page-locked memory, so that this thread goes on while they are copied."""
    pinned = values.pin_memory() if torch.device(device).type == "cuda" else values
    return pinned.to(device, non_blocking=True)


WAN_SAMPLING = Sampling(fps=24.0, window_frames=49, area_px=480 * 832)


def load_shift(
    name: str, models: Path, *, device: str, compute: Compute, discriminator_precision: Precision = "fp32"
) -> ShiftProfile:
    """The profile `shift` or `shift-wan` on its networks. Raises NotReady where weights are missing or were changed."""
    if "bf16" in (compute.precision, discriminator_precision) and not has_bf16(device):
        log.warning("bf16 is slower than fp32 here: the device has none of its own", device=device, choose="fp32")
    profile = ShiftProfile(
        networks=Networks.load(models, device, compute), discriminator_precision=discriminator_precision
    )
    if name == "shift":
        return profile
    return dataclasses.replace(profile, name=name, sampling=WAN_SAMPLING, height_px=480, width_px=832)
