"""What a profile is: how clips are sampled, which frozen estimators see their motion, which discriminators judge it.

`embedded.py` runs on classical vision and the shipped discriminators alone; `shift.py` is the paper's system on
frozen networks, whose weights a user fetches (`models/`). The pipeline, pretraining and the feature
cache know a profile only by the protocol here. Shapes: N tracks, T frames, P = T-1 pairs, D token size.
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
    """What the rest of the server asks of a profile; methods are safe to call from several threads."""

    @property
    def name(self) -> str: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def num_tracks(self) -> int:
        """Query points per window, unless a setting says otherwise."""

    @property
    def parallel_clips(self) -> bool:
        """Whether motion of several clips is best estimated at once, a thread each; else one clip uses all threads."""

    @property
    def track_config(self) -> TrackViTConfig: ...
    @property
    def residual_config(self) -> ResidualViTConfig: ...
    @property
    def discriminator_compute(self) -> Compute | None:
        """How its discriminators judge; None: plainly."""

    @property
    def preprocessing_digest(self) -> str:
        """sha256 of everything between bytes and discriminators; discriminators refuse features of another digest."""

    def motion(self, clip: Clip, *, query_seed: int, num_tracks: int) -> Motion:
        """Motion of one clip, from `num_tracks` random points of its first frame."""

    def track_tokens(
        self,
        tracks_TN2: Tensor,
        visibility_TN: Tensor,
        confidence_TN: Tensor,
        correlation: Tensor,
        *,
        chosen: slice = ...,
    ) -> Tensor:
        """[N,T,D] what the long-term discriminator reads of the `chosen` tracks; the arguments are a motion's `tracks`,
        `state` and `correlation`, of all its tracks."""

    def residual_maps(self, motion: Motion) -> Tensor:
        """[P,2,H,W] what the instantaneous discriminator reads: residual in grey levels, flow confidence 0..1."""


def load_profile(
    name: str,
    models: Path,
    *,
    device: str = "cpu",
    compute: Compute | None = None,
    discriminator_precision: Precision = "fp32",
) -> Profile:
    """The profile, with its frozen networks, if it has any, from the folder `models`, on `device`, as `compute` says.

    Its discriminators judge likewise, but in `discriminator_precision`; without frozen networks, plainly.
    Raises NotReady, naming the command that fetches them, where they are missing or were changed.
    """
    if name == "embedded":
        from reward_server.profiles.embedded import EmbeddedProfile  # noqa: PLC0415 - OpenCV, only where it is used

        return EmbeddedProfile()
    from reward_server.profiles.shift import load_shift  # noqa: PLC0415

    return load_shift(
        name, models, device=device, compute=compute or Compute(), discriminator_precision=discriminator_precision
    )
