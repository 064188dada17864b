"""Describes the served model, and how its frozen networks compute."""

from __future__ import annotations

import json
from dataclasses import asdict

from protos.codec import TENSOR_FORMS
from protos.types import (
    DISCRIMINATORS,
    Bounds,
    Input,
    Limits,
    Logits,
    Model,
)
from reward_server.decoding.decode import CONTAINERS, Sampling
from reward_server.errors import ScoringFailed
from reward_server.networks.prepacked import Compute
from reward_server.profiles import Profile
from reward_server.profiles.discriminators import (
    Discriminators,
)
from reward_server.settings import Settings
from reward_server.weights_file import architecture_digest


def compute_of(settings: Settings) -> Compute:
    """How frozen networks compute under these settings."""
    return Compute(precision=settings.precision, memory_mib=settings.pass_memory_mib, compile=settings.compile)


def described(profile: Profile, discriminators: Discriminators, sampling: Sampling, settings: Settings) -> Model:
    """What a pipeline says about itself. Raises ScoringFailed if both discriminators have the weight 0."""
    if settings.weight_instantaneous + settings.weight_long_term <= 0:
        raise ScoringFailed(
            "weight_instantaneous and weight_long_term are both 0, so there is no reward; set one of them above 0"
        )
    return Model(
        profile=profile.name,
        discriminator_version=discriminators.version,
        weights_digest=discriminators.digest,
        preprocessing_digest=profile.preprocessing_digest,
        bounds=Bounds(min=settings.reward_min, max=settings.reward_max),
        weights=Logits(instantaneous=settings.weight_instantaneous, long_term=settings.weight_long_term),
        limits=Limits(
            max_bytes=settings.max_bytes,
            max_frames=settings.max_frames,
            max_frame_pixels=settings.max_frame_pixels,
            max_duration_s=settings.max_duration_s,
            max_clips_per_request=settings.max_clips_per_request,
        ),
        input=Input(
            fps=sampling.fps,
            window_frames=sampling.window_frames,
            min_frames=sampling.min_frames,
            num_tracks=settings.num_tracks or profile.num_tracks,
            area_px=sampling.area_px,
            containers=CONTAINERS,
            tensor_forms=TENSOR_FORMS,
        ),
        architecture_digest=_architecture_digest(profile, discriminators),
    )


def _architecture_digest(profile: Profile, discriminators: Discriminators) -> str:
    """That of the loaded discriminators, as their file's header gives it."""
    shapes = [
        (f"{name}.{weight}", tuple(value.shape))
        for name in DISCRIMINATORS
        for weight, value in getattr(discriminators, name).state_dict().items()
    ]
    return architecture_digest(shapes, [json.dumps(asdict(c)) for c in (profile.residual_config, profile.track_config)])
