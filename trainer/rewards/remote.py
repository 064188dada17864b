"""Gets rewards from a reward server: every clip ends with a reward or with the reason why it has none.

    submit(group) -> uploads in their own thread | server, queue, worker | outcomes -> journal -> ack -> collect

Nothing here depends on order. A clip's id determines its idempotency key, so anything may be sent twice. A restart of
the server or of Redis only costs time. An outcome is acknowledged only after it is stored.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from protos.client import RequestRefused
from protos.error_codes import ErrorCode
from protos.results import results_key
from protos.types import Outcome, OutcomeKind, RefreshResponse
from trainer.config import RefreshConfig, RewardsConfig
from trainer.errors import MissingRewards, RewardsSilent
from trainer.measures.dynamics_floor import require_dynamics
from trainer.objective import ClipReward, GroupRewards
from trainer.rewards.journal import ClipResult, Journal
from trainer.rewards.outcomes import AwaitedOutcomes, Entry, Outcomes, StreamOutcomes
from trainer.rewards.patient_client import PatientClient
from trainer.rewards.source import ClipGroup, Collected
from trainer.rewards.uploads import Uploads

log = logging.getLogger(__name__)

TICK_S = 1.0
PASSING = {OutcomeKind.TIMEOUT, OutcomeKind.FAILED}  # a retry may succeed


class RemoteRewards:
    """Rewards from a reward server. Each process has one; `folder` holds its journal."""

    def __init__(
        self, config: RewardsConfig, refresh: RefreshConfig, *, run_id: str, folder: Path, rank: int = 0
    ) -> None:
        self._config, self._refresh, self._run_id = config, refresh, run_id
        self._server = PatientClient(config.server, max_outage_s=config.max_outage_s)
        self._journal = Journal(folder / f"rewards-{rank}.jsonl")
        self._uploads = Uploads(self._server, run_id)
        self._heard_s = self._asked_s = time.monotonic()
        self._num_scored = 0  # rollouts with a reward in the last collected groups
        self._outcomes = self._open_outcomes(rank)

    def _open_outcomes(self, rank: int) -> Outcomes:
        if not self._config.redis_url:
            return AwaitedOutcomes(self._server.client)
        profile = self._server.ask(lambda client: client.model()).profile
        key = results_key(profile, self._run_id)
        return StreamOutcomes(self._config.redis_url, key, group=f"trainer-{rank}")

    def pin(self) -> str:
        return self._server.ask(lambda client: client.model(self._run_id)).discriminator_version

    def knows(self, key: str, num_clips: int) -> bool:
        return all(clip_id in self._journal for clip_id in _clip_ids(key, num_clips))

    def submit(self, group: ClipGroup) -> None:
        clip_ids = _clip_ids(group.key, len(group.clips))
        fresh = [at for at, clip_id in enumerate(clip_ids) if clip_id not in self._journal]
        while self._uploads and len(self._uploads) + len(fresh) > self._config.max_in_flight:
            self._tend(TICK_S)
        if not self._uploads:
            self._heard_s = self._asked_s = time.monotonic()  # silence counts only while something is awaited
        for at in fresh:
            self._uploads.send(clip_ids[at], group, at, forgotten=self._journal.forgotten[clip_ids[at]])
        self._tend(0.0)

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        wanted = [clip_id for key in keys for clip_id in _clip_ids(key, num_clips)]
        while not all(clip_id in self._journal for clip_id in wanted):
            self._tend(TICK_S)
        collected = Collected(
            groups=tuple(self._group(key, num_clips) for key in keys),
            latencies_s=tuple(self._journal[clip_id].latency_s for clip_id in wanted),
            num_clipped=sum(scored.clipped for clip_id in wanted if (scored := self._journal[clip_id].scored)),
            errors=dict(Counter(error for clip_id in wanted if (error := self._journal[clip_id].error))),
        )
        self._check_missing(collected, wanted)
        self._num_scored = sum(scored is not None for group in collected.groups for scored in group.rollouts)
        return collected

    def forget_missing(self, keys: Sequence[str], num_clips: int) -> None:
        self._journal.forget(clip_id for key in keys for clip_id in _clip_ids(key, num_clips))

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        timeout_s = self._refresh.timeout_s or self._server.ask(lambda client: client.refresh_timeout_s())
        request = self._refresh.request(run_id=self._run_id, steps=steps, seed=seed)
        asked = hashlib.sha256(repr(request).encode()).hexdigest()[:8]  # other settings after a resume: another request
        request = replace(request, idempotency_key=f"{key}-{asked}", deadline_s=timeout_s)
        response = self._server.ask(lambda client: client.refresh(request, timeout_s), takes_s=timeout_s)
        log.info("%s", _told(response))
        if response.num_rollouts < min(self._num_scored, self._refresh.max_rollouts or math.inf):
            log.warning(
                "the refresh used %d rollouts, but this process had %d scored: the server keeps the motion of the "
                "newest clips only; raise its MOTION_REWARD_FEATURE_MAX_BYTES, or lower MOTION_REWARD_FEATURE_TRACKS",
                response.num_rollouts,
                self._num_scored,
            )
        return response.discriminator_version

    def close(self) -> None:
        """Close without waiting for outcomes. The next process asks for them again."""
        self._server.stop()
        self._uploads.close()
        self._outcomes.close()
        self._server.close()
        self._journal.close()

    # --- outcomes -------------------------------------------------------------------------------

    def _tend(self, wait_s: float) -> None:
        """Handle outcomes that arrive within `wait_s`. After a long silence, ask the server."""
        self._uploads.land()
        try:
            entries = self._outcomes.read(wait_s, self._uploads.job_ids)
        except RequestRefused as error:
            entries = []
            self._send_again(error)
        self._take(entries)
        self._outcomes.ack(entries)
        self._listen(bool(entries))

    def _take(self, entries: Sequence[Entry]) -> None:
        """Store awaited outcomes. Others belong to another process or to an earlier attempt. Acknowledge afterwards."""
        results: dict[str, ClipResult] = {}
        for entry in entries:
            clip_id = self._uploads.clip_of(entry.outcome) if entry.outcome else None
            if entry.outcome and clip_id and clip_id not in results:
                result = self._judge(clip_id, entry.outcome)
                if result:
                    results[clip_id] = result
        if results:
            self._journal.store(results)
        self._uploads.settle(results)

    def _judge(self, clip_id: str, outcome: Outcome) -> ClipResult | None:
        """The result to store, or None if the clip was sent again. Raises ConfigError without needed dynamics."""
        waiting = self._uploads[clip_id]
        latency_s = time.monotonic() - waiting.sent_s
        if outcome.reward:
            require_dynamics(outcome.reward.dynamics is not None or not self._config.min_dynamics)
            return ClipResult(scored=_scored(outcome), latency_s=latency_s)
        assert outcome.error is not None, "an outcome without a reward holds an error"
        log.warning("clip %s has no reward: %s: %s", clip_id, outcome.error.code, outcome.error.message)
        if not outcome.context.idempotency_key:  # the server lost the job, so this does not count as a retry
            self._uploads.repeat(clip_id)
            return None
        retries = self._config.max_retries if self._config.on_missing == "retry" else 0
        if outcome.kind in PASSING and waiting.attempt < retries:
            self._uploads.retry(clip_id)
            return None
        return ClipResult(scored=None, error=outcome.error.code, latency_s=latency_s)

    # --- silence and lost jobs ------------------------------------------------------------------

    def _listen(self, heard: bool) -> None:
        """Ask the server after `patience_s` of silence; stop the run after `max_outage_s`."""
        now_s = time.monotonic()
        if heard or not self._uploads:
            self._heard_s = self._asked_s = now_s
        if now_s - self._heard_s > self._config.max_outage_s:
            raise RewardsSilent(
                f"no outcome for {now_s - self._heard_s:.0f} s with {len(self._uploads)} clips waiting "
                "(rewards.max_outage_s); check that the server has a live worker, then start the run again: it resumes"
            )
        if now_s - self._asked_s > self._config.patience_s:
            self._asked_s = now_s
            self._ask()

    def _ask(self) -> None:
        """Ask the server for outcomes directly: Redis may have lost an outcome or a job."""
        job_ids = self._uploads.job_ids
        log.warning("no outcome for %.0f s; asking for %d clips", self._config.patience_s, len(job_ids))
        try:
            entries = AwaitedOutcomes(self._server.client).read(TICK_S, job_ids) if job_ids else []
        except RequestRefused as error:
            self._send_again(error)
        else:
            self._take(entries)

    def _send_again(self, error: RequestRefused) -> None:
        """Submit all uploaded clips again if the server lost some of their jobs. Raises any other error."""
        if error.code != ErrorCode.UNKNOWN_JOB:
            raise error
        log.warning("the server lost jobs (%s); submitting the awaited clips again", error)
        self._uploads.repeat_all()

    def _group(self, key: str, num_clips: int) -> GroupRewards:
        real, *rollouts = (self._journal[clip_id].scored for clip_id in _clip_ids(key, num_clips))
        return GroupRewards(real=real, rollouts=tuple(rollouts))

    def _check_missing(self, collected: Collected, wanted: Sequence[str]) -> None:
        missing, limit = sum(collected.errors.values()), self._config.max_missing_fraction
        if self._config.on_missing == "abort_after_fraction" and missing > limit * len(wanted):
            self._journal.forget(wanted)
            raise MissingRewards(
                f"{missing} of {len(wanted)} clips have no reward ({collected.errors}), over the limit of {limit:g} "
                "(rewards.max_missing_fraction); fix the cause and start the run again: it resumes and requests them "
                "again"
            )


def _clip_ids(key: str, num_clips: int) -> list[str]:
    """Ids of a group's clips. The real clip is number 0."""
    return [f"{key}/{at}" for at in range(num_clips)]


def _scored(outcome: Outcome) -> ClipReward:
    reward = outcome.reward
    assert reward is not None
    return ClipReward(
        reward=reward.combined,
        version=reward.provenance.discriminator_version,
        discriminators={"instantaneous": reward.instantaneous, "long_term": reward.long_term},
        clipped=reward.clipped,
        dynamics=reward.dynamics,
    )


def _told(response: RefreshResponse) -> str:
    """A refresh as one line of the log."""
    auc = (
        f"{name} {discriminator.before.auc:.2f} -> {discriminator.after.auc:.2f}"
        for name, discriminator in (("instantaneous", response.instantaneous), ("long-term", response.long_term))
    )
    return (
        f"discriminators refreshed to {response.discriminator_version}: {response.steps} steps on {response.num_real} "
        f"real clips and {response.num_rollouts} rollouts in {response.seconds:.1f} s; AUC on {response.num_held_out} "
        f"held out: {', '.join(auc)}"
    )
