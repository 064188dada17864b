"""Tests the trainer's rewards with a real server process and Redis: none is lost, counted twice or invented."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import redis

from protos.client import RewardClient
from protos.error_codes import ErrorCode
from protos.results import results_key
from protos.types import Clip, RefreshRequest
from reward_server.serving.private_redis import PrivateRedis
from tests.pixel_scorer import pixel_dynamics
from tests.reward_stack import RewardStack, calm_logits
from trainer.config import RefreshConfig, RewardsConfig
from trainer.errors import ConfigError, MissingRewards, RewardsSilent
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

        return call(SimpleNamespace(refresh=refresh, refresh_timeout_s=lambda: 3630.0))

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


def test_a_refresh_on_fewer_clips_than_were_scored_warns(
    open_rewards: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rewards = open_rewards()
    rewards.submit(group("g"))
    rewards.collect(["g"], 3)
    auc = SimpleNamespace(before=SimpleNamespace(auc=0.5), after=SimpleNamespace(auc=0.6))
    answer = SimpleNamespace(discriminator_version="v", steps=1, num_real=1, num_held_out=0, seconds=1.0)
    answer.instantaneous = answer.long_term = auc
    monkeypatch.setattr(rewards._server, "ask", lambda *_, **__: answer)
    rewards._refresh = RefreshConfig(timeout_s=60.0)
    for answer.num_rollouts in (2, 1):
        assert rewards.refresh(1, seed=0, key="k") == "v"
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (told,) = (message for message in warned if "the refresh" in message)  # a slow server gives other warnings
    assert "used 1 rollouts, but this process had 2 scored" in told
    assert "MOTION_REWARD_FEATURE_MAX_BYTES" in told


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
