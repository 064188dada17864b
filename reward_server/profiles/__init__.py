"""Defines `Profile`: how clips are sampled, which frozen estimators measure motion, which discriminators score it.

`embedded.py` needs only classical vision and the shipped discriminators. `shift.py` is the paper's system; its frozen
networks are fetched by the user (`models`). The rest of the server knows a profile only through the protocol here.
The estimators themselves are in `estimators`, the networks of the discriminators in `discriminators`.

Shapes: N tracks, T frames, P = T-1 frame pairs, D token size, H, W frame size in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from protos.types import Clip
from reward_server.decoding.sampling import Sampling
from reward_server.discriminators.residual_vit import ResidualViTConfig
from reward_server.motion import Motion
from reward_server.networks.prepacked import Compute, Precision
from reward_server.networks.track_transformer import TrackViTConfig

ProfileName = Literal["embedded", "shift", "shift-wan"]


class Profile(Protocol):
    """What the rest of the server uses of a profile. Its methods are thread-safe."""

    @property
    def name(self) -> str: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def num_tracks(self) -> int:
        """Default number of query points per window; the setting `num_tracks` overrides it."""

    @property
    def parallel_clips(self) -> bool:
        """True if the motion of several clips is best estimated in parallel, one thread each.

        False if one clip at a time already keeps all threads or the device busy.
        """

    @property
    def track_config(self) -> TrackViTConfig: ...
    @property
    def residual_config(self) -> ResidualViTConfig: ...
    @property
    def discriminator_compute(self) -> Compute | None:
        """How its discriminators compute; None means plain torch."""

    @property
    def preprocessing_digest(self) -> str:
        """sha256 of everything between a clip's bytes and the discriminators.

        Discriminators that were trained under another digest are refused.
        """

    def motion(self, clip: Clip, *, query_seed: int, num_tracks: int) -> Motion:
        """Estimate the motion of one clip, with `num_tracks` random query points in its first frame."""

    def track_tokens(
        self,
        tracks_TN2: Tensor,
        visibility_TN: Tensor,
        confidence_TN: Tensor,
        correlation: Tensor,
        *,
        chosen: slice = ...,
    ) -> Tensor:
        """Input of the long-term discriminator: tokens [N,T,D] of the `chosen` tracks.

        The arguments are a motion's `tracks`, the two channels of its `state`, and its `correlation`, of all tracks.
        """

    def clip_tracks(self, motion: Motion, height_px: int, width_px: int) -> Tensor:
        """The motion's tracks [T,N,2] in pixels of the clip's frames, which have this size."""

    def residual_maps(self, motion: Motion) -> Tensor:
        """Input of the instantaneous discriminator [P,2,H,W]: residual in gray levels, flow confidence 0..1."""

    def logit_terms(self, motion: Motion, pace_weights: tuple[float, float]) -> tuple[float, float]:
        """What is added to the instantaneous and to the long-term logit: 0 except in `embedded`.

        `pace_weights` are those of the discriminators.
        """


def load_profile(
    name: str,
    models: Path,
    *,
    device: str = "cpu",
    compute: Compute | None = None,
    discriminator_precision: Precision = "fp32",
) -> Profile:
    """Load a profile and, if it has any, its frozen networks from the folder `models`.

    The networks run on `device` and compute as `compute` says. The discriminators of such a profile compute in the
    same way, except that their precision is `discriminator_precision`. `embedded` has no frozen networks, and its
    discriminators run in plain torch. Raises NotReady, naming the command that fetches them, if networks are missing
    or their files were changed.
    """
    if name == "embedded":
        from reward_server.profiles.embedded import EmbeddedProfile  # noqa: PLC0415 - imports OpenCV

        return EmbeddedProfile()
    from reward_server.profiles.shift import load_shift  # noqa: PLC0415

    return load_shift(
        name, models, device=device, compute=compute or Compute(), discriminator_precision=discriminator_precision
    )
