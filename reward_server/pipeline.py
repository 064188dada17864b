"""Scores clips: clips -> motion -> discriminators -> clipped logits -> rewards.

`prepare` decodes a clip; it needs no model and may be called from many threads. `score` takes a batch of prepared
clips of one shape. A worker runs these two as separate stages. `score_submissions` runs both, for scoring inside
your own process. The other clips of a batch change a logit by at most 1e-4, because matrix products of another
size round differently.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from protos.codec import TENSOR_FORMS
from protos.types import (
    Bounds,
    Clip,
    Context,
    Input,
    Limits,
    Logits,
    Model,
    Outcome,
    OutcomeKind,
    Provenance,
    Reward,
    Submission,
    Timings,
    WindowLogits,
)
from reward_server.decoding import children
from reward_server.decoding.decode import CONTAINERS, DecodedClip, Sampling, decode
from reward_server.errors import NonFiniteLogit, RewardServerError, ScoringFailed, VersionNotServed, error_outcome
from reward_server.estimators.dynamics import mean_dynamics
from reward_server.motion import Motion
from reward_server.networks.prepacked import Compute, passes
from reward_server.profiles import Profile, load_profile
from reward_server.profiles.discriminators import (
    Discriminators,
    discriminators_file,
    load_discriminators,
    read_discriminators,
)
from reward_server.profiles.run_clips import pack_clip
from reward_server.scorer import Scored
from reward_server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class PreparedClip:
    """A decoded clip that waits for its batch."""

    decoded: DecodedClip
    context: Context
    discriminators: Discriminators  # the version that will score the clip
    query_seed: int
    decode_ms: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Frames, height and width of the clip's windows. Clips of one shape share a batch."""
        frames, _, height, width = self.decoded.windows[0].clip.frames.shape
        return frames, height, width

    @property
    def cost(self) -> float:
        """Pixels (frames x height x width) of all the clip's windows."""
        frames, height, width = self.shape
        return float(len(self.decoded.windows) * frames * height * width)


def compute_of(settings: Settings) -> Compute:
    """How frozen networks compute under these settings."""
    return Compute(precision=settings.precision, memory_mib=settings.pass_memory_mib, compile=settings.compile)


class Pipeline:
    """A profile, its discriminators and its settings, ready to score."""

    def __init__(self, profile: Profile, discriminators: Discriminators, settings: Settings) -> None:
        self.profile, self.discriminators, self._settings = profile, discriminators, settings
        self._sampling = replace(profile.sampling, max_windows=settings.max_windows)
        self._bounds = Bounds(min=settings.reward_min, max=settings.reward_max)
        self._threads = settings.threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="motion")
        self._children = _decode_pool(settings, self._threads)
        self.model = _describe(profile, discriminators, self._sampling, settings)

    @classmethod
    def load(cls, settings: Settings) -> Pipeline:
        """Load the profile's discriminators and, if it has any, its frozen networks. Raises NotReady if weights are
        missing or do not fit."""
        profile = load_profile(
            settings.profile,
            settings.models_folder,
            device=settings.device,
            compute=compute_of(settings),
            discriminator_precision=settings.discriminator_precision,
        )
        discriminators = settings.checkpoint or discriminators_file(profile.name, settings.models_folder)
        pipeline = cls(profile, load_discriminators(profile, discriminators, device=settings.device), settings)
        if pipeline._children:
            pipeline._children.start(max(1, pipeline._threads // 2))  # a worker decodes as many clips at once
        return pipeline

    @property
    def decode_pids(self) -> list[int]:
        """Process ids of the children that decode; empty without isolation."""
        return self._children.pids() if self._children else []

    def discriminators_of(self, data: bytes) -> Discriminators:
        """Load discriminators from the bytes of a checkpoint file. Raises NotReady if they do not fit the profile."""
        return read_discriminators(
            self.profile, data, source="this discriminator version", device=self._settings.device
        )

    def prepare(self, submission: Submission, discriminators: Discriminators | None = None) -> PreparedClip:
        """Decode and sample one clip. `discriminators` will score it; the default is the loaded ones. Thread-safe.

        Raises a subclass of InvalidClip if the clip cannot be scored, and VersionNotServed if it is pinned to another
        discriminator version.
        """
        discriminators = discriminators or self.discriminators
        wanted = submission.context.discriminator_version
        if wanted and wanted != discriminators.version:
            raise VersionNotServed(
                f"discriminator version '{wanted}' is not served here, only '{discriminators.version}'; "
                "pin that version, or pin none"
            )
        started = time.perf_counter()
        settings = self._settings
        decode_one = self._children.decode if self._children else decode
        decoded = decode_one(
            submission,
            self._sampling,
            self.model.limits,
            settings.max_decode_s,
            threads=settings.decoder_threads,
        )
        return PreparedClip(
            decoded=decoded,
            context=submission.context,
            discriminators=discriminators,
            query_seed=query_seed(submission),
            decode_ms=_ms_since(started),
        )

    def score(self, prepared: Sequence[PreparedClip]) -> list[Scored]:
        """Score prepared clips of one shape and one discriminator version, in order.

        Returns one result per clip. A clip with a logit that is not finite gets an error as its result; the other
        clips are unaffected.
        """
        started = time.perf_counter()
        clips = [(window.clip, item.query_seed) for item in prepared for window in item.decoded.windows]
        motions = self._motions(clips)
        motion_ms = _ms_since(started)
        started = time.perf_counter()
        discriminators = prepared[0].discriminators
        size = max(1, int(self._settings.pass_cost / motions[0].residual.numel()))  # bounds the discriminators' memory
        logits = torch.cat([self._logits(discriminators, motions[part]) for part in passes(len(motions), size)])
        timings = Timings(motion_ms=motion_ms, discriminator_ms=_ms_since(started))
        ends = list(accumulate(len(item.decoded.windows) for item in prepared))
        spans = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        return [
            Scored(
                result=self._reward(item, logits[span], motions[span], timings),
                features=self._features(item, motions[span]),
            )
            for item, span in zip(prepared, spans, strict=True)
        ]

    def score_submissions(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Score clips in this process. Returns one outcome per clip, in order; its job_id is the clip's position.

        An error of the clip itself becomes its outcome; it is not raised.
        """
        prepared = list(self._pool.map(self._try_prepare, submissions))
        results: dict[int, Reward | RewardServerError] = {}
        buckets: dict[tuple[int, ...], list[tuple[int, PreparedClip]]] = defaultdict(list)
        for position, item in enumerate(prepared):
            if isinstance(item, PreparedClip):
                buckets[item.shape].append((position, item))
            else:
                results[position] = item
        for bucket in buckets.values():
            for batch in batches_by_cost(bucket, self._settings.batch_cost):
                scored = self.score([item for _, item in batch])
                results |= zip((position for position, _ in batch), (one.result for one in scored), strict=True)
        return [outcome(str(i), results[i], submission.context) for i, submission in enumerate(submissions)]

    def _try_prepare(self, submission: Submission) -> PreparedClip | RewardServerError:
        try:
            return self.prepare(submission)
        except RewardServerError as error:
            return error

    def _motions(self, clips: Sequence[tuple[Clip, int]]) -> list[Motion]:
        """Motion of each (clip, query seed), in order."""

        def one(pair: tuple[Clip, int]) -> Motion:
            return self.profile.motion(pair[0], query_seed=pair[1], num_tracks=self.model.input.num_tracks)

        return list(self._pool.map(one, clips) if self.profile.parallel_clips else map(one, clips))

    def _features(self, item: PreparedClip, motions: Sequence[Motion]) -> bytes:
        """Packed motion that a refresh of the clip's run may train on; empty if the clip names no run or origin.

        One window is packed; which one depends on the query seed, so the clips of a group give the same window.
        """
        context, settings = item.context, self._settings
        if not (context.run_id and context.origin and settings.feature_max_clips):
            return b""
        motion = motions[item.query_seed % len(motions)]
        pairs, tracks = settings.feature_pairs, settings.feature_tracks
        return pack_clip(motion, num_pairs=pairs, num_tracks=tracks, group_id=context.group_id)

    def _logits(self, discriminators: Discriminators, motions: Sequence[Motion]) -> Tensor:
        maps = torch.stack([self.profile.residual_maps(motion) for motion in motions])
        tokens = torch.stack([self._tokens(motion) for motion in motions])
        device = self._settings.device
        logits = discriminators.logits(maps.to(device), tokens.to(device)).double().cpu()
        logits[:, 1] += torch.tensor([self.profile.stillness(motion) for motion in motions])
        return logits

    def _tokens(self, motion: Motion) -> Tensor:
        visibility, confidence = motion.state.unbind(-1)
        return self.profile.track_tokens(motion.tracks, visibility, confidence, motion.correlation)

    def _reward(
        self, item: PreparedClip, logits_W2: Tensor, motions: Sequence[Motion], timings: Timings
    ) -> Reward | RewardServerError:
        if not bool(torch.isfinite(logits_W2).all()):
            return NonFiniteLogit(
                "a discriminator returned NaN or infinity; report the clip and the discriminator version"
            )
        raw = _logits(logits_W2.mean(dim=0))
        low, high = self._bounds.min, self._bounds.max
        clipped = Logits(
            instantaneous=min(max(raw.instantaneous, low), high), long_term=min(max(raw.long_term, low), high)
        )
        return Reward(
            combined=self._combined(clipped),
            instantaneous=clipped.instantaneous,
            long_term=clipped.long_term,
            logits=raw,
            clipped=clipped != raw,
            bounds=self._bounds,
            windows=tuple(
                WindowLogits(start_s=window.start_s, logits=_logits(row))
                for window, row in zip(item.decoded.windows, logits_W2, strict=True)
            ),
            provenance=self._provenance(item, motions, replace(timings, decode_ms=item.decode_ms)),
            dynamics=mean_dynamics(motions),
        )

    def _combined(self, logits: Logits) -> float:
        weights = self.model.weights
        total = weights.instantaneous * logits.instantaneous + weights.long_term * logits.long_term
        mean = total / (weights.instantaneous + weights.long_term)
        return min(max(mean, self._bounds.min), self._bounds.max)  # rounding may take the mean past a bound

    def _provenance(self, item: PreparedClip, motions: Sequence[Motion], timings: Timings) -> Provenance:
        frames, height, width = item.shape
        return Provenance(
            profile=self.profile.name,
            discriminator_version=item.discriminators.version,
            weights_digest=item.discriminators.digest,
            preprocessing_digest=self.profile.preprocessing_digest,
            query_seed=item.query_seed,
            num_tracks=self.model.input.num_tracks,
            source=item.decoded.source,
            fps_used=item.decoded.fps_used,
            frames_used=frames,
            height_px=height,
            width_px=width,
            mean_visibility=sum(float(m.visibility.mean()) for m in motions) / len(motions),
            mean_confidence=sum(float(m.confidence.mean()) for m in motions) / len(motions),
            timings=timings,
            warnings=item.decoded.warnings,
        )


def _decode_pool(settings: Settings, size: int) -> children.DecodePool | None:
    """The processes that decode, or None to decode in this one."""
    if not (settings.decode_isolation and children.AVAILABLE):
        return None
    return children.DecodePool(size=size, memory_mib=settings.decode_memory_mib)


def query_seed(submission: Submission) -> int:
    """Seed of a clip's query points.

    This is the context's seed if it has one. Otherwise the clips of a group share a seed, and a clip without a
    group gets a seed from its bytes.
    """
    context = submission.context
    if context.query_seed is not None:
        return context.query_seed
    shared = f"{context.run_id}\0{context.group_id}".encode() if context.group_id else submission.payload
    return int.from_bytes(hashlib.sha256(shared).digest()[:8], "big")


def outcome(job_id: str, result: Reward | RewardServerError, context: Context) -> Outcome:
    """Turn the result of scoring, a reward or an error, into an outcome."""
    if isinstance(result, Reward):
        return Outcome(job_id=job_id, kind=OutcomeKind.OK, reward=result, context=context)
    return error_outcome(job_id, result, context)


def batches_by_cost(
    bucket: Sequence[tuple[int, PreparedClip]], max_cost: float
) -> Iterable[Sequence[tuple[int, PreparedClip]]]:
    """Split (position, clip) pairs into consecutive batches of at most `max_cost` pixels; a larger clip goes alone."""
    batch: list[tuple[int, PreparedClip]] = []
    for item in bucket:
        if batch and sum(other.cost for _, other in [*batch, item]) > max_cost:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _describe(profile: Profile, discriminators: Discriminators, sampling: Sampling, settings: Settings) -> Model:
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
    )


def _logits(pair: Tensor) -> Logits:
    return Logits(instantaneous=float(pair[0]), long_term=float(pair[1]))


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
