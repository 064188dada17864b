"""Provides a scorer without weights, for tests of the code around a scorer: it rewards clips that move evenly.

It decodes and answers like the pipeline, but two formulas of the frames replace the discriminators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from protos.types import (
    Bounds,
    Clip,
    Dynamics,
    Input,
    Limits,
    Logits,
    Model,
    Outcome,
    OutcomeKind,
    Provenance,
    Reward,
    Submission,
)
from reward_server.decoding.decode import DecodedClip, Sampling, decode
from reward_server.errors import NotReady, RewardServerError, error_outcome
from reward_server.evaluation.scoring import RewardSource
from reward_server.scorer import Scored

SAMPLING = Sampling(area_px=64 * 96)
BOUNDS = Bounds(min=-10.0, max=10.0)
MODEL = Model(
    profile="plain",
    discriminator_version="plain-1",
    weights_digest="",
    preprocessing_digest="",
    bounds=BOUNDS,
    weights=Logits(instantaneous=1.0, long_term=1.0),
    limits=Limits(
        max_bytes=8 * 1024**2,
        max_frames=300,
        max_frame_pixels=640 * 480,
        max_duration_s=30.0,
        max_clips_per_request=64,
    ),
    input=Input(
        fps=SAMPLING.fps,
        window_frames=SAMPLING.window_frames,
        min_frames=SAMPLING.min_frames,
        num_tracks=0,
        area_px=SAMPLING.area_px,
        containers=(),
        tensor_forms=(),
    ),
)


def unevenness(clip: Clip) -> Logits:
    """10 minus the absolute second difference in time: the mean over frames, and that of the worst frame."""
    frames = clip.frames.astype(np.float32)
    bend = np.abs(np.diff(frames, n=2, axis=0)).mean(axis=(1, 2, 3))
    return Logits(instantaneous=10 - float(bend.mean()), long_term=10 - float(bend.max()))


def change(clip: Clip) -> Dynamics:
    """Dynamics that stand for motion: the mean absolute change of a pixel value per frame, all of it by the camera."""
    change = float(np.abs(np.diff(clip.frames.astype(np.float32), axis=0)).mean())
    return Dynamics(
        total_motion=change, camera_motion=change, object_motion=0.0, dynamic_degree=float(change > 0), tracks_alive=1.0
    )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A decoded clip in the form that a worker needs."""

    decoded: DecodedClip

    @property
    def shape(self) -> tuple[int, ...]:
        return self.decoded.windows[0].clip.frames.shape

    @property
    def cost(self) -> float:
        return float(np.prod(self.shape))


@dataclass
class PlainScorer:
    """The parts of a Pipeline that a worker and `score_submissions` need. `seen` keeps the scored clips, in order."""

    model: Model = MODEL
    seen: list[Submission] = field(default_factory=list)

    @property
    def scorer(self) -> RewardSource:
        return RewardSource(score=self.score_submissions, model=MODEL, where="plain")

    def prepare(self, submission: Submission, discriminators: None = None) -> Prepared:
        return Prepared(decoded=decode(submission, SAMPLING, MODEL.limits, 30.0))

    @property
    def discriminators(self) -> None:
        """None, because the rewards are formulas and there is nothing to load or to train."""

    profile = discriminators

    def discriminators_of(self, data: bytes) -> None:
        raise NotReady("plain rewards have one version")

    def score(self, prepared: Sequence[Prepared]) -> list[Scored]:
        return [Scored(result=_reward(item.decoded)) for item in prepared]

    def score_submissions(self, submissions: Sequence[Submission]) -> list[Outcome]:
        self.seen += submissions
        return [self._outcome(submission) for submission in submissions]

    def _outcome(self, submission: Submission) -> Outcome:
        try:
            reward = _reward(self.prepare(submission).decoded)
        except RewardServerError as error:
            return error_outcome("", error, submission.context)
        return Outcome(job_id="", kind=OutcomeKind.OK, reward=reward, context=submission.context)


def _reward(decoded: DecodedClip) -> Reward:
    raw = unevenness(decoded.windows[0].clip)
    kept = Logits(instantaneous=max(raw.instantaneous, BOUNDS.min), long_term=max(raw.long_term, BOUNDS.min))
    frames, _, height, width = decoded.windows[0].clip.frames.shape
    provenance = Provenance(
        profile="plain",
        discriminator_version="plain-1",
        weights_digest="",
        preprocessing_digest="",
        query_seed=0,
        num_tracks=0,
        source=decoded.source,
        fps_used=decoded.fps_used,
        frames_used=frames,
        height_px=height,
        width_px=width,
        mean_visibility=1.0,
        mean_confidence=1.0,
    )
    return Reward(
        combined=(kept.instantaneous + kept.long_term) / 2,
        instantaneous=kept.instantaneous,
        long_term=kept.long_term,
        logits=raw,
        clipped=kept != raw,
        bounds=BOUNDS,
        windows=(),
        provenance=provenance,
        dynamics=change(decoded.windows[0].clip),
    )
