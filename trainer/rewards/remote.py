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
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from protos.client import RequestRefused, RewardClientError
from protos.client.api_key import api_key_of
from protos.error_codes import ErrorCode
from protos.results import owned_run, results_key
from protos.types import Outcome, OutcomeKind, RefreshResponse
from trainer.config import RefreshConfig, RewardsConfig
from trainer.errors import ClipsLost, GateFailed, MissingRewards, RewardsSilent, TrainerError
from trainer.measures.dynamics_floor import require_dynamics
from trainer.objective import ClipReward, GroupRewards
from trainer.rewards.journal import ClipResult, Journal
from trainer.rewards.outcomes import AwaitedOutcomes, Entry, Outcomes, StreamOutcomes
from trainer.rewards.own_versions import OwnVersions
from trainer.rewards.patient_client import PatientClient
from trainer.rewards.source import ClipGroup, Collected
from trainer.rewards.uploads import Uploads, Waiting

log = logging.getLogger(__name__)

TICK_S = 1.0
ALIVE_EVERY_S = 60.0
MAX_RESTORED = 8  # times that a clip is sent again because the server lost the version that it is pinned to
REFUSALS: dict[str, type[TrainerError]] = {  # of a refresh
    ErrorCode.UNKNOWN_RUN: ClipsLost,
    ErrorCode.TOO_FEW_CLIPS: ClipsLost,
    ErrorCode.GATE_FAILED: GateFailed,
}
PASSING = {OutcomeKind.TIMEOUT, OutcomeKind.FAILED}  # a retry may succeed


class RemoteRewards:
    """Rewards from a reward server. Each process has one; `folder` holds its journal."""

    def __init__(
        self, config: RewardsConfig, refresh: RefreshConfig, *, run_id: str, folder: Path, rank: int = 0
    ) -> None:
        self._config, self._refresh, self._run_id = config, refresh, run_id
        self._server = PatientClient(config.client(attempts=1), max_outage_s=config.max_outage_s)
        self._journal = Journal(folder / f"rewards-{rank}.jsonl")
        self._uploads = Uploads(self._server, run_id)
        self._versions = OwnVersions(self._server, run_id, folder / "versions")
        self._heard_s = self._asked_s = time.monotonic()
        self._alive_s = -math.inf  # when the server was last given a sign of life
        self._alive = ThreadPoolExecutor(1, thread_name_prefix="alive")
        self._outcomes = self._open_outcomes(rank)

    def _open_outcomes(self, rank: int) -> Outcomes:
        if not self._config.redis_url:
            return AwaitedOutcomes(self._server.client)
        profile = self._server.ask(lambda client: client.model()).profile
        api_key = api_key_of(self._config.api_key())
        key = results_key(profile, owned_run(self._run_id, api_key.id if api_key else ""))
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
        return collected

    def forget_missing(self, keys: Sequence[str], num_clips: int) -> None:
        self._journal.forget(clip_id for key in keys for clip_id in _clip_ids(key, num_clips))

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        timeout_s = self._refresh.timeout_s or self._server.ask(lambda client: client.refresh_timeout_s(steps))
        request = self._refresh.request(run_id=self._run_id, steps=steps, seed=seed)
        asked = hashlib.sha256(repr(request).encode()).hexdigest()[:8]  # other settings after a resume: another request
        request = replace(request, idempotency_key=f"{key}-{asked}", deadline_s=timeout_s)
        try:
            response = self._server.ask(lambda client: client.refresh(request, timeout_s), takes_s=timeout_s)
        except RequestRefused as error:
            if error.code in REFUSALS:
                raise REFUSALS[error.code](str(error)) from error
            raise
        log.info("%s", _told(response, steps))
        self._warn_of_few(response)
        self._versions.fetch(response.discriminator_version)
        return response.discriminator_version

    def _warn_of_few(self, response: RefreshResponse) -> None:
        """Warn if some groups had no rollout in the refresh, although the server could have taken all of them."""
        used, scored = response.num_rollouts - response.older_rollouts, response.scored_rollouts
        groups = min(response.scored_real, scored, self._refresh.max_rollouts or math.inf)
        if used < groups:
            log.warning(
                "the refresh used %d of %d rollouts, fewer than one for each of %d real clips: the server has no room "
                "for more motion; raise its MOTION_REWARD_FEATURE_MAX_BYTES and MOTION_REWARD_FEATURE_MAX_CLIPS, or "
                "lower MOTION_REWARD_FEATURE_MIN_TRACKS",
                used,
                scored,
                response.scored_real,
            )

    def restore(self, version: str) -> None:
        self._versions.restore(version)

    def own_versions(self, versions: Collection[str]) -> list[Path]:
        return self._versions.kept(versions)

    def adopt(self, folder: Path) -> None:
        self._versions.adopt(folder)

    def sign_of_life(self) -> None:
        if time.monotonic() - self._alive_s > ALIVE_EVERY_S:
            self._alive_s = time.monotonic()
            self._alive.submit(self._show_life)

    def _show_life(self) -> None:
        """Ask for the run's model, which makes its clips and versions live on. The next time will do too."""
        with suppress(RewardClientError):
            self._server.client.model(self._run_id)

    def close(self) -> None:
        """Close without waiting for outcomes. The next process asks for them again."""
        self._alive.shutdown(wait=False, cancel_futures=True)
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
        if outcome.error.code == ErrorCode.VERSION_NOT_SERVED and self._restored(waiting):
            self._uploads.retry(clip_id)
            return None
        retries = self._config.max_retries if self._config.on_missing == "retry" else 0
        if outcome.kind in PASSING and waiting.attempt < retries:
            self._uploads.retry(clip_id)
            return None
        return ClipResult(scored=None, error=outcome.error.code, latency_s=latency_s)

    def _restored(self, waiting: Waiting) -> bool:
        """Whether the server has the version again that a clip is pinned to."""
        version = waiting.submission.context.discriminator_version
        return waiting.attempt < MAX_RESTORED and self._versions.restore(version)

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


def _told(response: RefreshResponse, asked: int) -> str:
    """A refresh as one line of the log."""
    auc = (
        f"{name} {discriminator.before.auc:.2f} -> {discriminator.after.auc:.2f}"
        for name, discriminator in (("instantaneous", response.instantaneous), ("long-term", response.long_term))
    )
    older = response.older_real + response.older_rollouts
    real, rollouts = response.num_real - response.older_real, response.num_rollouts - response.older_rollouts
    return (
        f"discriminators refreshed to {response.discriminator_version}: {response.steps} steps"
        f"{'' if response.steps == asked else f' (of {asked}, by refresh.max_passes)'} on {real} of "
        f"{response.scored_real} real clips and {rollouts} of {response.scored_rollouts} rollouts"
        f"{f', and {older} clips of earlier buffers,' if older else ''} in {response.seconds:.1f} s; AUC on "
        f"{response.num_held_out} held out: {', '.join(auc)}{_missed(response)}"
    )


def _missed(response: RefreshResponse) -> str:
    missing = (*response.missing_real, *response.missing_rollouts)
    return f"; {len(missing)} clips were scored but not kept for it: {', '.join(missing[:4])}..." if missing else ""
