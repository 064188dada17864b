"""Scores clips: clips -> motion -> discriminators -> clipped logits -> rewards.

`prepare` decodes a clip; it needs no model and may be called from many threads. `score` takes a batch of prepared
clips of one shape. A worker runs these two as separate stages. `score_submissions` runs both, for scoring inside
your own process. The other clips of a batch change a logit by at most 1e-4, because matrix products of another
size round differently.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from protos.types import (
    Clip,
    Context,
    Outcome,
    OutcomeKind,
    Reward,
    Submission,
    Timings,
)
from reward_server.decoding.children import decode_pool
from reward_server.decoding.decode import decode
from reward_server.errors import RewardServerError, VersionNotServed, error_outcome
from reward_server.explain.explanation import explanation
from reward_server.explain.pool import PoolWatch
from reward_server.motion import Motion
from reward_server.networks.prepacked import passes
from reward_server.pipeline.copies import copies, is_copied
from reward_server.pipeline.model import compute_of, described
from reward_server.pipeline.prepared import PreparedClip, batches_by_cost, query_seed
from reward_server.pipeline.rewards import reward_of, window_percentiles
from reward_server.profiles import Profile, load_profile
from reward_server.profiles.discriminators import (
    Discriminators,
    discriminators_file,
    load_discriminators,
    read_discriminators,
)
from reward_server.profiles.run_clips import About, pack_clip
from reward_server.scorer import Scored
from reward_server.settings import Settings

log = logging.getLogger(__name__)


class Pipeline:
    """A profile, its discriminators and its settings, ready to score."""

    def __init__(self, profile: Profile, discriminators: Discriminators, settings: Settings) -> None:
        self.profile, self.discriminators, self._settings = profile, discriminators, settings
        self._sampling = replace(profile.sampling, max_windows=settings.max_windows)
        self._threads = settings.threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="motion")
        self.children = decode_pool(settings, self._threads)
        self.model = described(profile, discriminators, self._sampling, settings)

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
        if pipeline.children:
            pipeline.children.start(max(1, pipeline._threads // 2))  # a worker decodes as many clips at once
        return pipeline

    @property
    def decode_pids(self) -> list[int]:
        """Process ids of the children that decode; empty without isolation."""
        return self.children.pids() if self.children else []

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
        decode_one = self.children.decode if self.children else decode
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
        pool = _watched_pool(prepared)
        with pool or nullcontext():
            logits = torch.cat([self._logits(discriminators, motions[part]) for part in passes(len(motions), size)])
        timings = Timings(motion_ms=motion_ms, discriminator_ms=_ms_since(started))
        ends = list(accumulate(len(item.decoded.windows) for item in prepared))
        spans = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        results = [
            reward_of(item, logits[span], motions[span], timings, self.model)
            for item, span in zip(prepared, spans, strict=True)
        ]
        if pool:
            results = [
                self._explained(item, result, motions[span], span.start, pool)
                for item, result, span in zip(prepared, results, spans, strict=True)
            ]
        return [
            Scored(result=result, features=self._features(item, result, motions[span]))
            for item, result, span in zip(prepared, results, spans, strict=True)
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

    def _features(
        self, item: PreparedClip, result: Reward | RewardServerError, motions: Sequence[Motion]
    ) -> tuple[bytes, ...]:
        """Parts of packed motion that a refresh of the clip's run may train on; none without a run or an origin.

        One window is packed; which one depends on the query seed, so the clips of a group give the same window.
        """
        context, settings = item.context, self._settings
        if not (context.run_id and context.origin and settings.feature_max_clips and isinstance(result, Reward)):
            return ()
        at = item.query_seed % len(motions)
        return pack_clip(
            motions[at],
            num_pairs=settings.feature_pairs,
            num_tracks=settings.feature_tracks,
            min_tracks=settings.feature_min_tracks,
            group_id=context.group_id,
            seed=item.query_seed,
            about=About(
                amount=result.dynamics.total_motion if result.dynamics else math.nan,
                terms=self._terms(item, motions[at]),
            ),
            copies=self._copies(item, at) if is_copied(context) else (),
        )

    def _copies(self, item: PreparedClip, at: int) -> list[tuple[Motion, About]]:
        """The motion of the copies of a clip's window, with which the gate attacks the discriminators.

        There are none without a gate, nor with networks on a CPU, where a clip takes minutes. The clip has its reward
        already, so nothing that fails here may cost it.
        """
        if not self._settings.gate_min_clips or (self._settings.device == "cpu" and not self.profile.parallel_clips):
            return []
        try:
            made = copies(item.decoded.windows[at].clip, item.query_seed)
            motions = self._motions([(copy, item.query_seed) for copy in made])
            return [(motion, About(terms=self._terms(item, motion))) for motion in motions]
        except Exception:  # whatever a fault or a network raises on a copy is no error of the clip
            log.warning("a clip is kept without copies for the gate", exc_info=True)
            return []

    def _terms(self, item: PreparedClip, motion: Motion) -> tuple[float, float]:
        return self.profile.logit_terms(motion, item.discriminators.pace_weights)

    def _explained(
        self,
        item: PreparedClip,
        result: Reward | RewardServerError,
        motions: Sequence[Motion],
        at: int,
        pool: PoolWatch,
    ) -> Reward | RewardServerError:
        """The result with what the discriminators saw, if it was asked for. The clip's windows begin at `at`."""
        if not (item.context.explain and isinstance(result, Reward)):
            return result
        seen = explanation(
            item.decoded,
            motions,
            profile=self.profile,
            pool=pool,
            first_window=at,
            max_bytes=self._settings.explain_max_bytes,
        )
        percentiles = window_percentiles(item, result, self.model)
        windows = [replace(window, percentiles=p) for window, p in zip(seen.windows, percentiles, strict=True)]
        return replace(result, explanation=replace(seen, windows=tuple(windows)))

    def _logits(self, discriminators: Discriminators, motions: Sequence[Motion]) -> Tensor:
        maps = torch.stack([self.profile.residual_maps(motion) for motion in motions])
        tokens = torch.stack([self._tokens(motion) for motion in motions])
        device = self._settings.device
        logits = discriminators.logits(maps.to(device), tokens.to(device)).double().cpu()
        terms = [self.profile.logit_terms(motion, discriminators.pace_weights) for motion in motions]
        return logits + torch.tensor(terms, dtype=torch.float64)

    def _tokens(self, motion: Motion) -> Tensor:
        visibility, confidence = motion.state.unbind(-1)
        return self.profile.track_tokens(motion.tracks, visibility, confidence, motion.correlation)


def _watched_pool(prepared: Sequence[PreparedClip]) -> PoolWatch | None:
    """A watch on the long-term discriminator's pools if a clip of the batch is to be explained, else None."""
    asked = any(item.context.explain for item in prepared)
    return PoolWatch(network=prepared[0].discriminators.long_term) if asked else None


def outcome(job_id: str, result: Reward | RewardServerError, context: Context) -> Outcome:
    """Turn the result of scoring, a reward or an error, into an outcome."""
    if isinstance(result, Reward):
        return Outcome(job_id=job_id, kind=OutcomeKind.OK, reward=result, context=context)
    return error_outcome(job_id, result, context)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
