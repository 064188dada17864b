"""Exports Prometheus metrics of the whole queue. Every door shows the same queue.

Counts are kept in Redis. Every change of a job's state updates them in the same transaction, so they
stay exact when a process restarts. Histograms and the reward counters are filled from the stream of
finished jobs, which every door reads in full: they start with the door and cover all workers. Read the
metrics of one door only, because the sum over two doors counts every job twice. Only the calls (traffic.py) are those
of this server alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from protos.types import PERCENTILES, REWARDS, Reward
from reward_server.doors.queue_metrics import Snapshot, families
from reward_server.doors.traffic import SECONDS, Traffic
from reward_server.queue.finished import Finished

LOGITS = tuple(float(x) for x in range(-10, 11))
RATIOS = (0.01, 0.05, *(tenth / 10 for tenth in range(1, 10)), 0.95, 0.99, 1.0)
CLIPS = (1, 2, 4, 8, 16, 32, 64)
STAGES = ("decode", "motion", "discriminator")


class Metrics(Collector):
    """The metrics of one door. It has its own registry, so that several servers in one process stay apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.traffic = Traffic(self.registry)
        self._snapshot: Snapshot | None = None
        self._queue_wait = Histogram(
            "motion_reward_queue_wait_seconds",
            "Time from admission to claim.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._stage = Histogram(
            "motion_reward_stage_seconds",
            "Time of a stage. Motion and discriminator times are of the clip's whole batch.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "motion_reward_batch_clips", "Size of a clip's batch, in clips.", buckets=CLIPS, registry=self.registry
        )
        self._reward = Histogram(
            "motion_reward_reward", "Clipped logits and their mean.", ["reward"], buckets=LOGITS, registry=self.registry
        )
        self._standing = Histogram(
            "motion_reward_standing_ratio",
            "Share of real clips with a lower value: a reward's percentile divided by 100.",
            ["reward"],
            buckets=RATIOS,
            registry=self.registry,
        )
        for name in REWARDS:  # a series that begins at 0 shows its first increase
            self._reward.labels(name)
            self._standing.labels(name)
        for stage in STAGES:
            self._stage.labels(stage)
        self._scored = Counter(
            "motion_reward_rewards",
            "Rewards given, by base version.",
            ["discriminator_version"],
            registry=self.registry,
        )
        self._clipped = Counter(
            "motion_reward_rewards_clipped",
            "Rewards with a clipped logit. Divide by motion_reward_rewards for the clipped fraction.",
            ["discriminator_version"],
            registry=self.registry,
        )
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def observe(self, finished: Finished) -> None:
        """Record one job that ended. Register this method with DoorQueue.observe."""
        self._queue_wait.observe(finished.queue_ms / 1000)
        if finished.batch:
            self._batch.observe(finished.batch)
        if finished.outcome.reward:
            self._observe_reward(finished.outcome.reward)

    def render(self, snapshot: Snapshot | None) -> str:
        """The metrics in Prometheus's text format. Without a snapshot Redis is shown as down."""
        self._snapshot = snapshot
        return generate_latest(self.registry).decode()

    def collect(self) -> Iterator[Metric]:
        """The metrics of the snapshot given to the last `render`. The Prometheus registry calls this."""
        yield from families(self._snapshot)

    def _observe_reward(self, reward: Reward) -> None:
        version, _, _ = reward.provenance.discriminator_version.partition("+")  # a label per refresh would be too many
        timings = reward.provenance.timings
        self._scored.labels(version).inc()
        self._clipped.labels(version).inc(int(reward.clipped))
        for name, percentile in zip(REWARDS, PERCENTILES, strict=True):
            self._reward.labels(name).observe(getattr(reward, name))
            share = getattr(reward.standing, percentile, None)
            if share is not None:
                self._standing.labels(name).observe(share / 100)
        for stage in STAGES:
            self._stage.labels(stage).observe(getattr(timings, f"{stage}_ms") / 1000)
