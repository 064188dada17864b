"""Tests the trainer's rewards with a real server process and Redis: none is lost, counted twice or invented."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import redis

from protos.client import RequestRefused, RewardClient
from protos.error_codes import ErrorCode
from protos.results import results_key
from protos.types import Clip, RefreshRequest, RefreshResponse
from reward_server.serving.private_redis import PrivateRedis
from reward_server.settings import Settings
from tests.pixel_scorer import pixel_dynamics
from tests.reward_server.test_refresh import RESPONSE
from tests.reward_stack import RewardStack, calm_logits
from trainer.config import RefreshConfig, RewardsConfig
from trainer.errors import ClipsLost, ConfigError, GateFailed, MissingRewards, RewardsSilent
from trainer.objective import ClipReward, GroupRewards
from trainer.rewards.journal import ClipResult, Journal
from trainer.rewards.outcomes import OUTAGE_PAUSE_S, AwaitedOutcomes, Entry, StreamOutcomes
from trainer.rewards.remote import RemoteRewards
from trainer.rewards.source import ClipGroup, NoRewards

RUN = "run-of-tests"
PROFILE = "embedded"


@pytest.fixture(scope="module")
def stack(redis_server: PrivateRedis) -> Iterator[RewardStack]:
    with RewardStack(redis_server.url) as running:
        yield running


@pytest.fixture
def store(redis_server: PrivateRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


Open = Callable[..., RemoteRewards]


@pytest.fixture
def open_rewards(stack: RewardStack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens clients as a run does, with a folder and a run id of this test. Any setting may be given."""
    opened: list[RemoteRewards] = []

    def open_one(*, over_redis: bool = True, rank: int = 0, **settings: object) -> RemoteRewards:
        config = RewardsConfig(server=stack.url, redis_url=stack.redis_url if over_redis else "", patience_s=5.0)
        config = replace(config, **settings)  # type: ignore[arg-type]
        run_id = f"{RUN}-{request.node.name}"[:200]
        opened.append(RemoteRewards(config, RefreshConfig(), run_id=run_id, folder=tmp_path / "rewards", rank=rank))
        return opened[-1]

    yield open_one
    for rewards in opened:
        rewards.close()


def clip(seed: int, num_frames: int = 8) -> Clip:
    rng = np.random.default_rng(seed)
    return Clip(frames=rng.integers(0, 256, (num_frames, 3, 16, 16)).astype(np.uint8), fps=8.0)


def group(key: str, first: int = 0, *, num_rollouts: int = 2, policy_version: str = "0") -> ClipGroup:
    return ClipGroup(
        key=key,
        real=clip(first),
        rollouts=tuple(clip(first + 1 + at) for at in range(num_rollouts)),
        policy_version=policy_version,
        discriminator_version="pixels-1",
    )


def expected(given: ClipGroup) -> GroupRewards:
    """The group's rewards by the formula of the stack's scorer."""
    scored = [calm(one) for one in given.clips]
    return GroupRewards(real=scored[0], rollouts=tuple(scored[1:]))


def calm(one: Clip) -> ClipReward:
    logits = calm_logits(one)
    discriminators = {"instantaneous": logits.instantaneous, "long_term": logits.long_term}
    return ClipReward(
        reward=(logits.instantaneous + logits.long_term) / 2,
        version="pixels-1",
        discriminators=discriminators,
        dynamics=pixel_dynamics(one),
    )


@pytest.mark.parametrize("over_redis", [True, False], ids=["results stream", "gRPC"])
def test_every_clip_gets_its_own_reward_whatever_the_order(open_rewards: Open, over_redis: bool) -> None:
    rewards = open_rewards(over_redis=over_redis)
    groups = [group(f"g{index}", 10 * index) for index in range(4)]
    for one in groups:
        rewards.submit(one)
    collected = rewards.collect(["g2", "g0", "g3", "g1"], 3)
    assert collected.groups == tuple(expected(groups[index]) for index in (2, 0, 3, 1))
    assert collected.errors == {}
    assert len(collected.latencies_s) == 12
    assert all(0 < latency_s < 60 for latency_s in collected.latencies_s)


def test_the_version_to_pin_is_the_one_that_is_served(open_rewards: Open) -> None:
    assert open_rewards().pin() == "pixels-1"


def test_no_more_than_the_limit_is_in_flight(open_rewards: Open) -> None:
    rewards = open_rewards(max_in_flight=3)
    for index in range(4):
        rewards.submit(group(f"g{index}", 10 * index))
        assert len(rewards._uploads) <= 3
    assert len(rewards.collect([f"g{index}" for index in range(4)], 3).groups) == 4


def test_outcomes_are_acknowledged_only_once_they_are_stored(
    open_rewards: Open, store: redis.Redis, tmp_path: Path
) -> None:
    rewards = open_rewards()
    stored_before_ack = []
    ack = rewards._outcomes.ack

    def watched(entries: object) -> None:
        on_disk = {json.loads(line)["clip"] for line in (tmp_path / "rewards/rewards-0.jsonl").read_text().splitlines()}
        stored_before_ack.append(on_disk >= set(rewards._journal))
        ack(entries)  # type: ignore[arg-type]

    rewards._outcomes.ack = watched  # type: ignore[method-assign]
    rewards.submit(group("g"))
    rewards.collect(["g"], 3)
    assert stored_before_ack
    assert all(stored_before_ack)
    pending = store.xpending(results_key(PROFILE, rewards._run_id), "trainer-0")
    assert pending["pending"] == 0


def test_what_was_read_but_not_stored_comes_again_after_a_crash(open_rewards: Open, stack: RewardStack) -> None:
    """The first process dies after it has read the outcomes and before it stores them."""
    first = open_rewards()
    first.submit(group("g"))
    seen: list[object] = []
    while len(seen) < 3:
        seen += first._outcomes.read(5.0, [])
        first._uploads.land()
    first.close()
    second = open_rewards()
    second.submit(group("g"))
    assert second.collect(["g"], 3).groups == (expected(group("g")),)


def test_a_crash_after_submitting_costs_no_second_scoring(open_rewards: Open, store: redis.Redis) -> None:
    first = open_rewards()
    first.submit(group("g"))
    while any(waiting.upload for waiting in first._uploads._waiting.values()):
        first._uploads.land()
        time.sleep(0.01)
    first.close()
    admitted = int(store.hget(f"motion-reward:{{{PROFILE}}}:counts", "admitted") or 0)
    second = open_rewards()
    assert not second.knows("g", 3)
    second.submit(group("g"))
    assert second.collect(["g"], 3).groups == (expected(group("g")),)
    assert int(store.hget(f"motion-reward:{{{PROFILE}}}:counts", "admitted") or 0) == admitted


def test_what_is_in_the_journal_is_not_asked_for_again(open_rewards: Open) -> None:
    first = open_rewards()
    first.submit(group("g"))
    collected = first.collect(["g"], 3)
    first.close()
    second = open_rewards(server="grpc://127.0.0.1:1", over_redis=False)  # no server listens there
    assert second.knows("g", 3)
    assert second.collect(["g"], 3) == collected


def test_other_bytes_under_the_same_key_are_another_job(open_rewards: Open, store: redis.Redis, tmp_path: Path) -> None:
    """Decoding on a GPU may give other bits after a restart. The server refuses them under the known key."""
    first = open_rewards()
    first.submit(group("g"))
    first.collect(["g"], 3)
    first.close()
    (tmp_path / "rewards/rewards-0.jsonl").unlink()
    store.delete(results_key(PROFILE, first._run_id))  # or the old outcome under this key would be taken
    second = open_rewards()
    second.submit(group("g", 50))
    assert second.collect(["g"], 3).groups == (expected(group("g", 50)),)


def test_processes_share_a_stream_and_each_takes_its_own(open_rewards: Open) -> None:
    ours, theirs = open_rewards(rank=0), open_rewards(rank=1)
    ours.submit(group("a"))
    theirs.submit(group("b", 20))
    assert ours.collect(["a"], 3).groups == (expected(group("a")),)
    assert theirs.collect(["b"], 3).groups == (expected(group("b", 20)),)


@pytest.mark.parametrize("policy", ["mask", "retry"])
def test_a_clip_that_cannot_be_scored_is_none_and_named(open_rewards: Open, policy: str) -> None:
    rewards = open_rewards(on_missing=policy)
    rewards.submit(group("g", policy_version="raise"))
    collected = rewards.collect(["g"], 3)
    assert collected.groups == (GroupRewards(real=None, rollouts=(None, None)),)
    assert collected.errors == {"scoring_failed": 3}


def test_a_passing_failure_is_retried_as_another_job(open_rewards: Open, store: redis.Redis) -> None:
    before = int(store.hget(f"motion-reward:{{{PROFILE}}}:counts", "failed") or 0)
    rewards = open_rewards(on_missing="retry", max_retries=2)
    rewards.submit(group("g", num_rollouts=0, policy_version="raise"))
    assert rewards.collect(["g"], 1).errors == {"scoring_failed": 1}
    assert int(store.hget(f"motion-reward:{{{PROFILE}}}:counts", "failed") or 0) == before + 3


def test_a_version_that_the_server_lost_has_its_own_code(open_rewards: Open) -> None:
    rewards = open_rewards(on_missing="mask")
    rewards.submit(replace(group("g"), discriminator_version="base+run.1-gone"))
    assert rewards.collect(["g"], 3).errors == {ErrorCode.VERSION_NOT_SERVED: 3}


def test_too_many_missing_rewards_abort_the_run_if_asked(open_rewards: Open) -> None:
    rewards = open_rewards(on_missing="abort_after_fraction", max_missing_fraction=0.3)
    rewards.submit(group("good"))
    rewards.submit(group("bad", 20, num_rollouts=2, policy_version="raise"))
    assert len(rewards.collect(["good"], 3).groups) == 1
    with pytest.raises(MissingRewards, match=r"3 of 6 clips have no reward \(\{'scoring_failed': 3\}\)"):
        rewards.collect(["good", "bad"], 3)
    # The cause is fixed and the run started again. Failed clips are new jobs; scored clips are not requested again.
    rewards.close()
    again = open_rewards(on_missing="abort_after_fraction", max_missing_fraction=0.3)
    assert again.knows("good", 3)
    assert not again.knows("bad", 3)
    again.submit(group("bad", 20))
    assert again.collect(["good", "bad"], 3).groups == (expected(group("good")), expected(group("bad", 20)))


def test_missing_rewards_are_final_until_forgotten(open_rewards: Open) -> None:
    rewards = open_rewards(on_missing="mask")
    rewards.submit(group("g", policy_version="raise"))
    lacking = rewards.collect(["g"], 3)
    rewards.close()
    second = open_rewards(on_missing="mask")
    assert second.collect(["g"], 3) == lacking
    second.forget_missing(["g"], 3)
    second.close()
    third = open_rewards(on_missing="mask")
    third.submit(group("g"))
    assert third.collect(["g"], 3).groups == (expected(group("g")),)
    third.forget_missing(["g"], 3)
    assert third.knows("g", 3)


def test_a_silent_server_ends_the_run_after_max_outage_s(open_rewards: Open, stack: RewardStack) -> None:
    rewards = open_rewards(patience_s=0.5, max_outage_s=2.0)
    rewards.submit(group("g", num_rollouts=0, policy_version="slow:8"))
    with pytest.raises(RewardsSilent, match=r"1 clips waiting \(rewards.max_outage_s\)"):
        rewards.collect(["g"], 1)


@pytest.mark.slow
@pytest.mark.parametrize("over_redis", [True, False], ids=["results stream", "gRPC"])
def test_a_server_that_is_killed_and_restarted_costs_only_time(
    redis_server: PrivateRedis, tmp_path: Path, over_redis: bool
) -> None:
    with RewardStack(redis_server.url) as stack:
        config = RewardsConfig(
            server=stack.url, redis_url=stack.redis_url if over_redis else "", patience_s=3.0, max_in_flight=6
        )
        rewards = RemoteRewards(config, RefreshConfig(), run_id=f"{RUN}-restart-{over_redis}", folder=tmp_path)
        groups = [group(f"g{index}", 10 * index, policy_version="slow:0.2") for index in range(4)]
        rewards.submit(groups[0])
        rewards.submit(groups[1])
        stack.kill()
        restart = threading.Timer(2.0, stack.start)
        restart.start()
        for one in groups[2:]:
            rewards.submit(one)
        collected = rewards.collect([one.key for one in groups], 3)
        restart.join()
        rewards.close()
    assert collected.groups == tuple(expected(one) for one in groups)


@pytest.mark.slow
def test_a_redis_that_loses_everything_costs_only_time(redis_server: PrivateRedis, tmp_path: Path) -> None:
    """Jobs, outcomes and the consumer group are lost. The clips are submitted again."""
    with RewardStack(redis_server.url) as stack, redis.Redis.from_url(redis_server.url) as store:
        config = RewardsConfig(server=stack.url, redis_url=stack.redis_url, patience_s=2.0)
        rewards = RemoteRewards(config, RefreshConfig(), run_id=f"{RUN}-emptied", folder=tmp_path)
        rewards.submit(group("g", policy_version="slow:0.5"))
        while any(waiting.upload for waiting in rewards._uploads._waiting.values()):
            rewards._uploads.land()
            time.sleep(0.01)
        store.flushall()
        collected = rewards.collect(["g"], 3)
        rewards.close()
    assert collected.groups == (expected(group("g")),)


@pytest.mark.slow
def test_an_outage_of_server_and_redis_together_costs_only_time(tmp_path: Path) -> None:
    """It is longer than patience_s and shorter than max_outage_s. Clips are sent before it and during it."""
    with PrivateRedis(Settings(data_dir=tmp_path / "redis")) as store, RewardStack(store.url) as stack:
        config = RewardsConfig(
            server=stack.url, redis_url=store.url, patience_s=1.0, max_outage_s=120.0, max_in_flight=6
        )
        rewards = RemoteRewards(config, RefreshConfig(), run_id=f"{RUN}-outage", folder=tmp_path / "rewards")
        groups = [group(f"g{index}", 10 * index, policy_version="slow:0.2") for index in range(3)]
        rewards.submit(groups[0])
        stack.kill()
        store.stop()

        def come_back() -> None:
            store.start()
            stack.start()

        back = threading.Timer(3.0, come_back)
        back.start()
        assert rewards.pin() == "pixels-1"  # waits
        for one in groups[1:]:
            rewards.submit(one)
        collected = rewards.collect([one.key for one in groups], 3)
        back.join()
        rewards.close()
    assert collected.groups == tuple(expected(one) for one in groups)


def test_entries_that_expired_while_pending_are_acknowledged(store: redis.Redis, stack: RewardStack) -> None:
    key = results_key(PROFILE, "expired")
    outcomes = StreamOutcomes(stack.redis_url, key, group="trainer-0")
    assert outcomes.read(0.0, []) == []
    store.xadd(key, {"job": "1", "outcome": b""})
    assert [entry.outcome for entry in outcomes.read(1.0, [])] == [None]
    outcomes.close()
    again = StreamOutcomes(stack.redis_url, key, group="trainer-0")
    entries = again.read(0.0, [])
    again.ack(entries)
    assert len(entries) == 1
    assert store.xpending(key, "trainer-0")["pending"] == 0
    again.close()


def test_other_refresh_settings_are_another_request(open_rewards: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[tuple[str, float]] = []

    def ask(call: Callable[[object], object], *, takes_s: float = 0.0) -> object:
        def refresh(request: RefreshRequest, timeout_s: float) -> object:
            assert timeout_s == takes_s == request.deadline_s
            orders.append((request.idempotency_key, takes_s))
            raise RewardsSilent

        return call(SimpleNamespace(refresh=refresh, refresh_timeout_s=lambda steps: 3630.0))

    rewards = open_rewards()
    monkeypatch.setattr(rewards._server, "ask", ask)
    given = RefreshConfig()
    for settings in (given, replace(given, timeout_s=9.0), replace(given, lr=0.5)):
        rewards._refresh = settings
        with pytest.raises(RewardsSilent):
            rewards.refresh(1, seed=0, key="run/refresh/0")
    (first, first_s), (patient, patient_s), (other, _) = orders
    assert first == patient != other
    assert first.startswith("run/refresh/0-")
    assert (first_s, patient_s) == (3630.0, 9.0)


@dataclass
class Refusing:
    """A server that answers a refresh with a response or a refusal."""

    answer: RefreshResponse | RequestRefused

    def __call__(self, call: Callable[[object], object], *, takes_s: float = 0.0) -> object:
        if isinstance(self.answer, RequestRefused):
            raise self.answer
        return self.answer


def test_the_log_tells_how_many_of_the_scored_clips_a_refresh_trained_on(
    open_rewards: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is a warning if some groups had no rollout among them."""
    rewards = open_rewards()
    answer = replace(
        RESPONSE, steps=4, num_real=6, older_real=1, num_rollouts=7, older_rollouts=2, scored_real=5, scored_rollouts=40
    )
    server = Refusing(answer)
    monkeypatch.setattr(rewards._server, "ask", server)
    monkeypatch.setattr(rewards._versions, "fetch", lambda version: None)
    rewards._refresh = RefreshConfig(timeout_s=60.0)
    with caplog.at_level(logging.INFO, "trainer.rewards.remote"):
        for server.answer in (answer, replace(answer, num_rollouts=6)):
            rewards.refresh(9, seed=0, key="k")
    told, _, warned = (record.getMessage() for record in caplog.records if "refresh" in record.getMessage())
    assert "4 steps (of 9, by refresh.max_passes) on 5 of 5 real clips and 5 of 40 rollouts" in told
    assert "and 3 clips of earlier buffers" in told
    assert "4 of 40 rollouts, fewer than one for each of 5 real clips" in warned
    assert "MOTION_REWARD_FEATURE_MAX_BYTES" in warned


@pytest.mark.parametrize(
    ("code", "kind"),
    [("unknown_run", ClipsLost), ("too_few_clips", ClipsLost), ("gate_failed", GateFailed), ("x", RequestRefused)],
)
def test_a_refused_refresh_says_what_can_be_done(
    open_rewards: Open, monkeypatch: pytest.MonkeyPatch, code: str, kind: type[Exception]
) -> None:
    rewards = open_rewards()
    monkeypatch.setattr(rewards._server, "ask", Refusing(RequestRefused(code, "because")))
    rewards._refresh = RefreshConfig(timeout_s=60.0)
    with pytest.raises(kind, match="because"):
        rewards.refresh(1, seed=0, key="k")


# --- the journal --------------------------------------------------------------------------------


def test_a_journal_is_read_back_without_its_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    results = {
        "a/0": ClipResult(scored=ClipReward(reward=1.5, version="v", discriminators={"long_term": 2.0}), latency_s=0.5),
        "a/2": ClipResult(scored=ClipReward(reward=1.5, version="v", dynamics=pixel_dynamics(clip(0)))),
        "a/1": ClipResult(scored=None, error="clip_too_short", latency_s=0.25),
    }
    with Journal(path) as journal:
        journal.store(results)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"clip": "a/3", "sco')
    with Journal(path) as journal:
        assert dict(journal) == results
        journal.store({"b/0": results["a/1"]})
    assert path.read_bytes().startswith(whole)
    with Journal(path) as journal:
        assert list(journal) == ["a/0", "a/2", "a/1", "b/0"]


def test_a_journal_of_an_older_trainer_has_no_dynamics(tmp_path: Path) -> None:
    scored = {"reward": 1.5, "version": "v", "discriminators": {}, "clipped": False}
    line = {"clip": "a/0", "scored": scored, "error": "", "latency_s": 0.5}
    (tmp_path / "journal.jsonl").write_text(json.dumps(line) + "\n")
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal["a/0"].scored == ClipReward(reward=1.5, version="v")


def test_a_server_that_sends_no_dynamics_is_refused_at_its_first_outcome(open_rewards: Open) -> None:
    rewards = open_rewards(min_dynamics=0.5)
    read = rewards._outcomes.read

    def of_old_server(wait_s: float, job_ids: Sequence[str]) -> list[Entry]:
        entries = [entry for entry in read(wait_s, job_ids) if entry.outcome and entry.outcome.reward]
        return [
            replace(entry, outcome=replace(entry.outcome, reward=replace(entry.outcome.reward, dynamics=None)))
            for entry in entries
        ]

    rewards._outcomes.read = of_old_server  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="rewards without dynamics"):
        rewards.submit(group("g"))
        rewards.collect(["g"], 3)


def test_without_a_server_every_reward_is_missing() -> None:
    collected = NoRewards().collect(["a", "b"], 3)
    assert collected.groups == (GroupRewards(real=None, rollouts=(None, None)),) * 2


def test_the_rewards_are_those_that_any_client_gets(open_rewards: Open, stack: RewardStack) -> None:
    from protos.client import submission  # noqa: PLC0415

    given = group("g")
    rewards = open_rewards()
    rewards.submit(given)
    (ours,) = rewards.collect(["g"], 3).groups
    with RewardClient(stack.url) as client:
        theirs = client.score([submission(one.frames, fps=one.fps) for one in given.clips])
    assert [scored and scored.reward for scored in (ours.real, *ours.rollouts)] == [
        outcome.reward and outcome.reward.combined for outcome in theirs
    ]


def test_reads_from_a_missing_server_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("trainer.rewards.outcomes.time.sleep", pauses.append)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"grpc://127.0.0.1:{taken.getsockname()[1]}"
    with RewardClient(url, attempts=1) as away:
        assert AwaitedOutcomes(away).read(5.0, ["job"]) == []
    assert pauses == [OUTAGE_PAUSE_S]
