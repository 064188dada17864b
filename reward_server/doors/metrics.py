"""Exports Prometheus metrics of the whole queue. Every door shows the same queue.

Counts are kept in Redis. Every change of a job's state updates them in the same transaction, so they
stay exact when a process restarts. Histograms and the reward counters are filled from the stream of
finished jobs, which every door reads in full: they start with the door and cover all workers. Read the
metrics of one door only, because the sum over two doors counts every job twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from protos.types import REWARDS, OutcomeKind, Reward
from reward_server.queue.admission import QueueDepth
from reward_server.queue.finished import Finished

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
LOGITS = tuple(float(x) for x in range(-10, 11))
CLIPS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of the queue at one moment. `counts` is the result of DoorQueue.counts."""

    depth: QueueDepth
    counts: Mapping[str, int]
    workers: int


class Metrics(Collector):
    """The metrics of one door. It has its own registry, so that several servers in one process stay apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        snapshot = self._snapshot
        yield GaugeMetricFamily("motion_reward_redis_up", "1 if Redis answers.", float(snapshot is not None))
        if snapshot is None:
            return
        yield GaugeMetricFamily("motion_reward_workers", "Live workers.", snapshot.workers)
        yield GaugeMetricFamily("motion_reward_queue_jobs", "Unfinished jobs.", snapshot.depth.jobs)
        yield GaugeMetricFamily("motion_reward_queue_pixels", "Their estimated pixels.", snapshot.depth.cost)
        yield GaugeMetricFamily("motion_reward_queue_bytes", "Their payload bytes.", snapshot.depth.bytes)
        counts = snapshot.counts
        yield CounterMetricFamily("motion_reward_jobs_admitted", "Jobs admitted.", counts.get("admitted", 0))
        yield CounterMetricFamily("motion_reward_redeliveries", "Claims after the first.", counts.get("redelivered", 0))
        yield CounterMetricFamily("motion_reward_dead_letters", "Jobs out of attempts.", counts.get("dead", 0))
        yield CounterMetricFamily("motion_reward_refreshes", "Versions published.", counts.get("refreshed", 0))
        failed = counts.get("refresh_failed", 0)
        yield CounterMetricFamily("motion_reward_refreshes_failed", "Refreshes that published no version.", failed)
        outcomes = CounterMetricFamily("motion_reward_outcomes", "Jobs ended, by outcome.", labels=["kind"])
        for kind in OutcomeKind:
            outcomes.add_metric([kind.value], counts.get(kind.value, 0))
        yield outcomes

    def _observe_reward(self, reward: Reward) -> None:
        version, _, _ = reward.provenance.discriminator_version.partition("+")  # a label per refresh would be too many
        timings = reward.provenance.timings
        self._scored.labels(version).inc()
        self._clipped.labels(version).inc(int(reward.clipped))
        for name in REWARDS:
            self._reward.labels(name).observe(getattr(reward, name))
        for stage in ("decode", "motion", "discriminator"):
            self._stage.labels(stage).observe(getattr(timings, f"{stage}_ms") / 1000)
