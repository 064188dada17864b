"""Makes the metrics that show the state of the queue: its depth and counters in Redis, and the last refresh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from protos.types import DISCRIMINATORS, OutcomeKind, RefreshResponse
from reward_server.doors.traffic import OTHER
from reward_server.errors import RefreshFailed
from reward_server.queue.door_queue import Vitals
from reward_server.queue.quota import QueueDepth
from reward_server.queue.refreshes import PASSED_ON

FAILURES = tuple(str(kind.code) for kind in (*PASSED_ON, RefreshFailed))  # the codes with which a worker ends a refresh


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of the queue at one moment, as DoorQueue tells it."""

    depth: QueueDepth
    counts: Mapping[str, int]
    workers: int
    unjudged: Mapping[str, int]  # jobs by the version that no live worker has loaded
    vitals: Vitals
    ready: bool


def families(snapshot: Snapshot | None) -> Iterator[Metric]:
    """The metrics of a snapshot. Without one, Redis is shown as down and the queue is not shown."""
    ready = float(snapshot is not None and snapshot.ready)
    yield GaugeMetricFamily("motion_reward_ready", "1 if /readyz answers yes: a clip would be scored now.", ready)
    yield GaugeMetricFamily("motion_reward_redis_up", "1 if Redis answers.", float(snapshot is not None))
    if snapshot:
        yield from _queue(snapshot)
        yield from _counters(snapshot.counts)
        if snapshot.vitals.last_refresh:
            yield from _last_refresh(snapshot.vitals.last_refresh, snapshot.vitals.last_refresh_s)


def _queue(snapshot: Snapshot) -> Iterator[Metric]:
    depth, vitals = snapshot.depth, snapshot.vitals
    yield GaugeMetricFamily("motion_reward_workers", "Live workers.", snapshot.workers)
    yield GaugeMetricFamily(
        "motion_reward_silent_workers",
        "Workers that have sent no heartbeat for the length of a lease and still hold jobs.",
        vitals.silent_workers,
    )
    yield GaugeMetricFamily("motion_reward_queue_jobs", "Unfinished jobs.", depth.jobs)
    yield GaugeMetricFamily("motion_reward_queue_pixels", "Estimated pixels of unfinished jobs.", depth.cost)
    yield GaugeMetricFamily("motion_reward_queue_bytes", "Payload bytes of unfinished jobs.", depth.bytes)
    yield GaugeMetricFamily(
        "motion_reward_queue_oldest_job_age_seconds",
        "Time since the admission of the oldest unfinished job; 0 without one.",
        vitals.oldest_age_s,
    )
    yield _labelled(
        GaugeMetricFamily,
        "motion_reward_queue_unjudged_jobs",
        "Unfinished jobs that wait for a version which no live worker has loaded.",
        ["discriminator_version"],
        [([version], jobs) for version, jobs in snapshot.unjudged.items()],
    )


def _counters(counts: Mapping[str, int]) -> Iterator[Metric]:
    yield CounterMetricFamily("motion_reward_jobs_admitted", "Jobs admitted.", counts.get("admitted", 0))
    yield CounterMetricFamily(
        "motion_reward_redeliveries",
        "Claims of a job after its first: the worker before died or was stopped.",
        counts.get("redelivered", 0),
    )
    yield CounterMetricFamily(
        "motion_reward_dead_letters", "Jobs given up after too many workers died.", counts.get("dead", 0)
    )
    yield _labelled(
        CounterMetricFamily,
        "motion_reward_outcomes",
        "Jobs ended, by outcome.",
        ["kind"],
        [([kind.value], counts.get(kind.value, 0)) for kind in OutcomeKind],
    )
    yield CounterMetricFamily(
        "motion_reward_refreshes", "Refreshes that published a version.", counts.get("refreshed", 0)
    )
    failed = {code: counts.get(f"refresh_failed:{code}", 0) for code in FAILURES}
    failed[OTHER] = counts.get("refresh_failed", 0) - sum(failed.values())
    yield _labelled(
        CounterMetricFamily,
        "motion_reward_refreshes_failed",
        "Refreshes that published no version, by error code.",
        ["code"],
        [([code], number) for code, number in failed.items()],
    )
    yield CounterMetricFamily(
        "motion_reward_clips_not_kept",
        "Scored clips that no refresh can train on: Redis or feature_max_bytes had no room, or their files failed.",
        counts.get("not_kept", 0),
    )


def _last_refresh(made: RefreshResponse, published_s: float) -> Iterator[Metric]:
    """The figures of the version that was published last, of any run: runs are too many for a label."""
    found = [
        ([name, when], getattr(getattr(made, name), when)) for name in DISCRIMINATORS for when in ("before", "after")
    ]
    yield _labelled(
        GaugeMetricFamily,
        "motion_reward_last_refresh_auc",
        "How well a discriminator told held-out real clips from rollouts, before and after the last refresh (0..1).",
        ["discriminator", "when"],
        [(labels, separation.auc) for labels, separation in found],
    )
    yield _labelled(
        GaugeMetricFamily,
        "motion_reward_last_refresh_logit_gap",
        "Mean logit of held-out real clips minus that of rollouts, before and after the last refresh.",
        ["discriminator", "when"],
        [(labels, separation.logit_gap) for labels, separation in found],
    )
    yield _labelled(
        GaugeMetricFamily,
        "motion_reward_last_refresh_clips",
        "Clips that the last refresh trained on.",
        ["origin"],
        [(["real"], made.num_real), (["rollout"], made.num_rollouts)],
    )
    yield GaugeMetricFamily(
        "motion_reward_last_refresh_duration_seconds", "Time that the last refresh took in its worker.", made.seconds
    )
    yield GaugeMetricFamily(
        "motion_reward_last_refresh_timestamp_seconds",
        "When the last refresh was published, since the epoch.",
        published_s,
    )


def _labelled(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    told: str,
    labels: list[str],
    values: Iterable[tuple[list[str], float]],
) -> Metric:
    """A family with one value for each set of labels."""
    family = kind(name, told, labels=labels)
    for given, value in values:
        family.add_metric(given, value)
    return family
