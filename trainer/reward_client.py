"""The trainer's side of the reward: groups of clips go to the server, every clip ends as a reward or a named lack.

    submit(group) -> uploads in a thread of its own | server, queue, worker | outcomes -> journal -> ack -> collect

Nothing here depends on order: a clip is known by its id, which is its idempotency key too, so anything may be sent
twice. A server or Redis that restarts costs the time it is away; an outcome is acknowledged only once it is stored.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

import stamina

from protos.client import RequestRefused, RewardClient, ServerBusy, ServerSilent
from protos.codec import clip_to_tensor
from protos.results import results_key
from protos.types import Clip, Context, Media, Origin, Outcome, OutcomeKind, RefreshRequest, Submission
from trainer.config import RefreshConfig, RewardsConfig
from trainer.errors import ConfigError, MissingRewards, RewardsSilent
from trainer.journal import ClipResult, Journal
from trainer.outcomes import AwaitedOutcomes, Entry, Outcomes, StreamOutcomes
from trainer.shift import GroupRewards, Scored

log = logging.getLogger(__name__)

R = TypeVar("R")

TICK_S = 1.0
UPLOAD_TIMEOUT_S = 120.0
PASSING = {OutcomeKind.TIMEOUT, OutcomeKind.OVERLOADED, OutcomeKind.FAILED}  # another attempt may end otherwise
CONFLICT, UNKNOWN = "idempotency_conflict", "unknown_job"


@dataclass(frozen=True, kw_only=True)
class ClipGroup:
    """Clips to be scored against each other. The same `key` must mean the same clips, also after a restart."""

    key: str
    real: Clip
    rollouts: tuple[Clip, ...]
    policy_version: str
    discriminator_version: str

    @property
    def clips(self) -> tuple[Clip, ...]:
        return self.real, *self.rollouts


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Rewards of groups in the order asked for, and how their clips fared."""

    groups: tuple[GroupRewards, ...]
    latencies_s: tuple[float, ...]
    errors: dict[str, int]  # number of clips without a reward, by reason


class RewardSource(Protocol):
    """Where a run's rewards come from."""

    def pin(self) -> str:
        """The discriminator version that the next buffer is to be scored with."""
        ...

    def knows(self, key: str, num_clips: int) -> bool:
        """Whether all outcomes of a group are at hand, so that it need not be submitted."""
        ...

    def submit(self, group: ClipGroup) -> None:
        """Returns soon; waits only while too much is in flight."""
        ...

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        """Waits for groups of `num_clips` clips each. Raises MissingRewards and RewardsSilent."""
        ...

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        """Trains the discriminators on the run's clips; the new version. The same key trains once."""
        ...

    def close(self) -> None: ...


@dataclass
class _Waiting:
    """A clip whose outcome is not in yet."""

    submission: Submission
    sent_s: float
    attempt: int = 0
    job_id: str = ""
    upload: Future[str] | None = field(default=None, repr=False)


class RemoteRewards:
    """Rewards from a reward server. One per process; `folder` keeps the journal."""

    def __init__(
        self, config: RewardsConfig, refresh: RefreshConfig, *, run_id: str, folder: Path, rank: int = 0
    ) -> None:
        self._config, self._refresh, self._run_id = config, refresh, run_id
        self._client = RewardClient(config.server, timeout_s=UPLOAD_TIMEOUT_S, attempts=1)
        self._journal = Journal(folder / f"rewards-{rank}.jsonl")
        self._waiting: dict[str, _Waiting] = {}
        self._uploads = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._heard_s = self._asked_s = time.monotonic()
        self._closed = False
        self._outcomes = self._open_outcomes(rank)

    def _open_outcomes(self, rank: int) -> Outcomes:
        if not self._config.redis_url:
            return AwaitedOutcomes(self._client)
        profile = self._patiently(self._client.model).profile
        key = results_key(profile, self._run_id)
        return StreamOutcomes(self._config.redis_url, key, group=f"trainer-{rank}")

    def pin(self) -> str:
        return self._patiently(lambda: self._client.model(self._run_id)).discriminator_version

    def knows(self, key: str, num_clips: int) -> bool:
        return all(clip_id in self._journal for clip_id in _clip_ids(key, num_clips))

    def submit(self, group: ClipGroup) -> None:
        clip_ids = _clip_ids(group.key, len(group.clips))
        fresh = [at for at, clip_id in enumerate(clip_ids) if clip_id not in self._journal]
        while self._waiting and len(self._waiting) + len(fresh) > self._config.max_in_flight:
            self._tend(TICK_S)
        if not self._waiting:
            self._heard_s = self._asked_s = time.monotonic()  # nobody was asked for anything until now
        for at in fresh:
            submission = self._submission(group, clip_ids[at], at)
            self._waiting[clip_ids[at]] = _Waiting(submission=submission, sent_s=time.monotonic())
            self._upload(clip_ids[at])
        self._tend(0.0)

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        wanted = [clip_id for key in keys for clip_id in _clip_ids(key, num_clips)]
        while not all(clip_id in self._journal for clip_id in wanted):
            self._tend(TICK_S)
        collected = Collected(
            groups=tuple(self._group(key, num_clips) for key in keys),
            latencies_s=tuple(self._journal[clip_id].latency_s for clip_id in wanted),
            errors=_counted(self._journal[clip_id].error for clip_id in wanted),
        )
        self._check_missing(collected, len(wanted))
        return collected

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        request = RefreshRequest(
            run_id=self._run_id,
            steps=steps,
            learning_rate=self._refresh.lr,
            ema=self._refresh.ema,
            clips_per_step=self._refresh.clips_per_step,
            seed=seed,
            max_real=self._refresh.max_real,
            max_rollouts=self._refresh.max_rollouts,
            deadline_s=self._refresh.timeout_s,
            idempotency_key=key,
        )
        response = self._patiently(lambda: self._client.refresh(request, self._refresh.timeout_s))
        log.info("discriminators refreshed: %s", response)
        return response.discriminator_version

    def close(self) -> None:
        """Waits for no outcome: what is in flight is asked for again by the next process."""
        self._closed = True
        self._uploads.shutdown(wait=True, cancel_futures=True)
        self._outcomes.close()
        self._client.close()
        self._journal.close()

    # --- there ----------------------------------------------------------------------------------

    def _submission(self, group: ClipGroup, clip_id: str, at: int) -> Submission:
        context = Context(
            group_id=group.key,
            run_id=self._run_id,
            origin=Origin.ROLLOUT if at else Origin.REAL,
            idempotency_key=f"{self._run_id}/{clip_id}",
            policy_version=group.policy_version,
            discriminator_version=group.discriminator_version,
        )
        return Submission(payload=clip_to_tensor(group.clips[at]), media=Media.TENSOR, context=context)

    def _upload(self, clip_id: str) -> None:
        """One request per clip: a group of large clips would pass the server's limit of a request."""
        waiting = self._waiting[clip_id]
        waiting.job_id = ""
        waiting.upload = self._uploads.submit(self._send, waiting.submission)

    def _send(self, submission: Submission) -> str:
        (job_id,) = self._patiently(lambda: self._client.submit([submission]))
        return job_id

    def _patiently(self, call: Callable[[], R]) -> R:
        """Until the server answers, `max_outage_s` at most: one that restarts costs time, not the run."""
        outage_s = self._config.max_outage_s
        for attempt in stamina.retry_context(
            self._waits, attempts=None, timeout=outage_s, wait_initial=0.2, wait_max=10
        ):
            with attempt:
                return call()
        raise AssertionError("stamina raises the last error")

    def _waits(self, error: Exception) -> bool | float:
        """Whether to try again, and after how long where the server said so."""
        if self._closed or not isinstance(error, (ServerBusy, ServerSilent)):
            return False
        return getattr(error, "retry_after_s", None) or True

    def _land(self) -> None:
        """Learn the job ids of finished uploads. Raises what the server refuses for good."""
        for clip_id, waiting in list(self._waiting.items()):
            if waiting.upload is None or not waiting.upload.done():
                continue
            upload, waiting.upload = waiting.upload, None
            try:
                waiting.job_id = upload.result()
            except RequestRefused as error:
                if error.code != CONFLICT:
                    raise
                self._try_again(clip_id)  # decoded again after a restart, with other bits: another job

    # --- and back -------------------------------------------------------------------------------

    def _tend(self, wait_s: float) -> None:
        """Take what came, within `wait_s`; after a long silence ask."""
        self._land()
        job_ids = [waiting.job_id for waiting in self._waiting.values() if waiting.job_id]
        try:
            entries = self._outcomes.read(wait_s, job_ids)
        except RequestRefused as error:
            entries = []
            self._send_again(error)
        self._take(entries)
        self._outcomes.ack(entries)
        self._listen(bool(entries))

    def _take(self, entries: Sequence[Entry]) -> None:
        """Store what is awaited; the rest is another process's or an earlier attempt's. Acknowledge afterwards."""
        results: dict[str, ClipResult] = {}
        for entry in entries:
            clip_id = self._clip_of(entry.outcome) if entry.outcome else None
            if entry.outcome and clip_id and clip_id not in results:
                result = self._judge(clip_id, entry.outcome)
                if result:
                    results[clip_id] = result
        if results:
            self._journal.store(results)
        for clip_id in results:
            del self._waiting[clip_id]

    def _clip_of(self, outcome: Outcome) -> str | None:
        """The waiting clip that an outcome is of. It may come before the upload's answer, hence the key."""
        for clip_id, waiting in self._waiting.items():
            key = waiting.submission.context.idempotency_key
            if outcome.context.idempotency_key == key or (outcome.job_id and outcome.job_id == waiting.job_id):
                return clip_id
        return None

    def _judge(self, clip_id: str, outcome: Outcome) -> ClipResult | None:
        """What to store, or None where the clip was sent again."""
        waiting = self._waiting[clip_id]
        latency_s = time.monotonic() - waiting.sent_s
        if outcome.reward:
            return ClipResult(scored=_scored(outcome), latency_s=latency_s)
        assert outcome.error is not None, "an outcome without a reward holds an error"
        log.warning("clip %s has no reward: %s: %s", clip_id, outcome.error.code, outcome.error.message)
        if not outcome.context.idempotency_key:  # the server forgot the job: not the clip's fault
            self._upload(clip_id)
            return None
        retries = self._config.max_retries if self._config.on_missing == "retry" else 0
        if outcome.kind in PASSING and waiting.attempt < retries:
            self._try_again(clip_id)
            return None
        return ClipResult(scored=None, error=outcome.error.code, latency_s=latency_s)

    def _try_again(self, clip_id: str) -> None:
        """As another job: the server would answer a known idempotency key with the outcome it has."""
        waiting = self._waiting[clip_id]
        waiting.attempt += 1
        context = waiting.submission.context
        key = f"{self._run_id}/{clip_id}/{waiting.attempt}"
        waiting.submission = replace(waiting.submission, context=replace(context, idempotency_key=key))
        self._upload(clip_id)

    # --- silence and lacks ----------------------------------------------------------------------

    def _listen(self, heard: bool) -> None:
        """Ask after `patience_s` of silence, give up after `max_outage_s`."""
        now_s = time.monotonic()
        if heard or not self._waiting:
            self._heard_s = self._asked_s = now_s
        if now_s - self._heard_s > self._config.max_outage_s:
            raise RewardsSilent(
                f"no outcome for {now_s - self._heard_s:.0f} s with {len(self._waiting)} clips waiting "
                "(rewards.max_outage_s); see that the server has a live worker, then start the run again: it resumes"
            )
        if now_s - self._asked_s > self._config.patience_s:
            self._asked_s = now_s
            self._ask()

    def _ask(self) -> None:
        """An outcome or a job may be lost with Redis's data: the server tells, or the clips go there again."""
        job_ids = [waiting.job_id for waiting in self._waiting.values() if waiting.job_id]
        log.warning("no outcome for %.0f s; asking for %d clips", self._config.patience_s, len(job_ids))
        try:
            entries = AwaitedOutcomes(self._client).read(TICK_S, job_ids) if job_ids else []
        except RequestRefused as error:
            self._send_again(error)
        else:
            self._take(entries)

    def _send_again(self, error: RequestRefused) -> None:
        """All that was uploaded, where the server no longer knows some of it; what it does know is not scored twice."""
        if error.code != UNKNOWN:
            raise error
        log.warning("the server lost jobs (%s); submitting what is awaited again", error)
        for clip_id, waiting in self._waiting.items():
            if waiting.job_id:
                self._upload(clip_id)

    def _group(self, key: str, num_clips: int) -> GroupRewards:
        real, *rollouts = (self._journal[clip_id].scored for clip_id in _clip_ids(key, num_clips))
        return GroupRewards(real=real, rollouts=tuple(rollouts))

    def _check_missing(self, collected: Collected, num_clips: int) -> None:
        missing, limit = sum(collected.errors.values()), self._config.max_missing_fraction
        if self._config.on_missing == "abort_after_fraction" and missing > limit * num_clips:
            raise MissingRewards(
                f"{missing} of {num_clips} clips have no reward ({collected.errors}), over the limit of {limit:g} "
                "(rewards.max_missing_fraction); mend the cause and start the run again: it resumes"
            )


class NoRewards:
    """For objectives that ask for none: fine-tuning alone, and plain replay."""

    def pin(self) -> str:
        return ""

    def knows(self, key: str, num_clips: int) -> bool:
        return True

    def submit(self, group: ClipGroup) -> None:
        pass

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        nothing = GroupRewards(real=None, rollouts=(None,) * (num_clips - 1))
        return Collected(groups=(nothing,) * len(keys), latencies_s=(), errors={})

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        raise ConfigError("there are no discriminators to refresh without a reward server; set refresh.enabled=false")

    def close(self) -> None:
        pass


def _clip_ids(key: str, num_clips: int) -> list[str]:
    """The real clip is number 0."""
    return [f"{key}/{at}" for at in range(num_clips)]


def _scored(outcome: Outcome) -> Scored:
    reward = outcome.reward
    assert reward is not None
    return Scored(
        reward=reward.combined,
        version=reward.provenance.discriminator_version,
        heads={"instantaneous": reward.instantaneous, "long_term": reward.long_term},
    )


def _counted(errors: Iterable[str]) -> dict[str, int]:
    return dict(Counter(error for error in errors if error))
