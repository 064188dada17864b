"""Tests the service with a real queue and a real worker: the guarantees for callers of both doors."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from protos.types import Media, Outcome, OutcomeKind, RefreshRequest, Submission
from reward_server import log
from reward_server.doors.metrics import Metrics
from reward_server.doors.service import Service
from reward_server.errors import IdempotencyConflict, NotReady, Overloaded, UnknownJob, UnknownRun
from reward_server.queue.door_queue import DoorQueue, JobState
from reward_server.queue.finished import Finished
from reward_server.queue.redis_link import connect
from reward_server.settings import Settings
from reward_server.worker.worker import run_worker
from tests.conftest import MakeSettings, OpenQueue
from tests.pixel_scorer import MODEL, PixelScorer, moving
from tests.reward_server.test_jobs import reward

PATIENCE_S = 30.0
REFRESH = RefreshRequest(run_id="r", steps=1)


@contextlib.asynccontextmanager
async def serving(settings: Settings, open_queue: OpenQueue, *, worker: bool = True) -> AsyncIterator[Service]:
    """The service of a door, with a worker that has announced itself."""
    service = Service((await open_queue(settings)).door, settings, Metrics())
    stop = asyncio.Event()
    working = asyncio.create_task(run_worker(settings, PixelScorer(), stop=stop)) if worker else None
    async with asyncio.timeout(PATIENCE_S):
        while worker and not (await service.readiness()).ready:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
    try:
        yield service
    finally:
        stop.set()
        if working:
            await working


async def test_score_answers_in_the_order_of_the_request(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    async with serving(make_settings(), open_queue) as service:
        clips = [
            moving(3, policy_version="slow:0.1"),
            moving(1),
            Submission(payload=b"junk", media=Media.TENSOR),
            moving(2),
        ]
        outcomes = await service.score(clips)
    assert [o.reward and o.reward.combined for o in outcomes] == [3, 1, None, 2]
    assert [o.context for o in outcomes] == [clip.context for clip in clips]
    assert len({o.job_id for o in outcomes}) == 4


async def test_one_key_twice_in_a_request_is_one_job_answered_twice(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    async with serving(make_settings(), open_queue) as service:
        first, other, again = await service.score(
            [moving(1, idempotency_key="k"), moving(2), moving(1, idempotency_key="k")]
        )
    assert first == again and first.job_id != other.job_id


async def test_concurrent_requests_get_their_own_answers(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    async with serving(make_settings(), open_queue) as service:
        answers = await asyncio.gather(*(service.score([moving(i % 10), moving((i + 1) % 10)]) for i in range(40)))
    rewards = [[outcome.reward.combined for outcome in answer if outcome.reward] for answer in answers]
    assert rewards == [[i % 10, (i + 1) % 10] for i in range(40)]


async def test_empty_and_too_large_clips_are_outcomes_not_errors(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    settings = make_settings(max_bytes=2000)
    async with serving(settings, open_queue) as service:
        good, empty, large = await service.score(
            [
                moving(1),
                Submission(payload=b"", media=Media.CONTAINER),
                Submission(payload=b"x" * 2001, media=Media.CONTAINER),
            ]
        )
    assert good.kind is OutcomeKind.OK
    assert empty.kind is OutcomeKind.INVALID and empty.error and empty.error.code == "empty_payload"
    assert large.kind is OutcomeKind.INVALID and large.error and large.error.code == "clip_too_large"
    assert "2001" in large.error.message and "2000" in large.error.message


async def test_a_wait_that_is_over_is_a_timeout_and_the_job_goes_on(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    async with serving(make_settings(), open_queue) as service:
        [answer] = await service.score([moving(4, policy_version="slow:0.5", group_id="g")], timeout_s=0.05)
        assert answer.kind is OutcomeKind.TIMEOUT and answer.error and answer.job_id in answer.error.message
        assert answer.context.group_id == "g"
        [outcome] = [o async for o in service.outcomes([answer.job_id], timeout_s=PATIENCE_S)]
        view = await service.job(answer.job_id)
    assert outcome.reward and outcome.reward.combined == 4
    assert (view.state, view.outcome) == (JobState.DONE, outcome)


async def test_a_caller_that_gives_up_leaves_no_trace_but_its_job(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    async with serving(make_settings(), open_queue) as service:
        asking = asyncio.create_task(service.score([moving(5, policy_version="slow:0.3", run_id="r")]))
        await asyncio.sleep(0.15)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        stream = service.run_outcomes("r", timeout_s=PATIENCE_S)
        outcome = await anext(stream)
        await stream.aclose()
        assert service._queue._reader._by_job == {} == service._queue._reader._by_run
    assert outcome.reward and outcome.reward.combined == 5


async def test_a_stopping_server_refuses_clips_and_still_gives_results(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    async with serving(make_settings(), open_queue) as service:
        [job_id] = await service.submit([moving(3)])
        asking = asyncio.create_task(service.score([moving(5, policy_version="slow:0.3")]))
        await asyncio.sleep(0.1)
        service.stop()
        for refused in (service.submit([moving(1)]), service.score([moving(1)]), service.refresh(REFRESH)):
            with pytest.raises(NotReady, match="stopping"):
                await refused
        readiness = await service.readiness()
        async with asyncio.timeout(PATIENCE_S):
            await service.idle()
        assert not readiness.ready and "stopping" in readiness.reasons[0]
        [answer] = await asking
        [outcome] = [o async for o in service.outcomes([job_id], timeout_s=PATIENCE_S)]
    assert (answer.reward and answer.reward.combined, outcome.reward and outcome.reward.combined) == (5, 3)


async def test_views_of_a_job(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    async with serving(make_settings(), open_queue, worker=False) as service:
        [job_id] = await service.submit([moving(1)])
        assert (await service.job(job_id)).state is JobState.QUEUED and (await service.job(job_id)).outcome is None
        with pytest.raises(UnknownJob):
            await service.job("nope")


async def test_admission_errors_pass_through(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    async with serving(make_settings(queue_max_jobs=1), open_queue, worker=False) as service:
        await service.submit([moving(1, idempotency_key="k")])
        with pytest.raises(IdempotencyConflict):
            await service.score([moving(2, idempotency_key="k")])
        with pytest.raises(Overloaded):
            await service.score([moving(2)])


async def test_readiness_and_model_follow_the_workers(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    async with serving(make_settings(), open_queue, worker=False) as service:
        readiness = await service.readiness()
        assert not readiness.ready and "motion-reward worker" in readiness.reasons[0]
        with pytest.raises(NotReady, match="no live worker"):
            await service.model()
    async with serving(make_settings(), open_queue) as service:
        assert (await service.readiness()).ready and await service.model() == MODEL


async def test_without_redis_it_says_so(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    settings = make_settings(redis_url=SecretStr("redis://127.0.0.1:1/0"))
    queue = DoorQueue(connect(settings), settings)
    service = Service(queue, settings, Metrics())
    readiness = await service.readiness()
    assert not readiness.ready and "Redis does not answer" in readiness.reasons[0]
    with pytest.raises(NotReady):
        await service.score([moving(1)])
    assert "motion_reward_redis_up 0.0" in await service.metrics_text()
    await queue.close()


async def test_a_refresh_needs_a_worker_and_clips(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    request = RefreshRequest(run_id="r", steps=1)
    async with serving(make_settings(), open_queue, worker=False) as service:
        with pytest.raises(NotReady, match="no live worker"):
            await service.refresh(request)
    async with serving(make_settings(), open_queue) as service:
        with pytest.raises(UnknownRun, match="origin"):
            await service.refresh(request)


async def test_metrics_count_every_end_once(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    async with serving(make_settings(), open_queue) as service:
        await service.score([moving(2), moving(3), Submission(payload=b"", media=Media.TENSOR)])
        values = samples(await service.metrics_text())
    assert values["motion_reward_outcomes_total{kind=ok}"] == 2
    assert values["motion_reward_outcomes_total{kind=invalid}"] == 1
    assert values["motion_reward_jobs_admitted_total"] == 3
    assert values["motion_reward_queue_jobs"] == 0 and values["motion_reward_workers"] == 1
    assert values["motion_reward_queue_wait_seconds_count"] == 3
    assert values["motion_reward_stage_seconds_count{stage=motion}"] == 2
    assert [values[f"motion_reward_reward_bucket{{le={le},reward=combined}}"] for le in ("1.0", "2.0", "3.0")] == [
        0,
        1,
        2,
    ]
    assert values["motion_reward_rewards_total{discriminator_version=pixels-1}"] == 2
    assert values["motion_reward_rewards_clipped_total{discriminator_version=pixels-1}"] == 0
    assert values["motion_reward_batch_clips_count"] == 2


def test_a_label_stands_for_all_refreshes_of_its_base_version() -> None:
    """A long run has a refresh for every buffer. A label for each version would make the metrics grow for ever."""
    metrics = Metrics()
    for name in ("base", "base+run.1-0a", "base+run.2-0b"):
        given = reward()
        given = replace(given, provenance=replace(given.provenance, discriminator_version=name))
        outcome = Outcome(job_id="j", kind=OutcomeKind.OK, reward=given)
        metrics.observe(Finished(outcome=outcome, queue_ms=1.0, batch=1))
    values = samples(metrics.render(None))
    labels = [name for name in values if name.startswith("motion_reward_rewards_total")]
    assert labels == ["motion_reward_rewards_total{discriminator_version=base}"] and values[labels[0]] == 3


def samples(text: str) -> dict[str, float]:
    """The values in Prometheus's text format, by "name{label=value}"."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_metrics_of_two_servers_do_not_meet() -> None:
    first, second = Metrics(), Metrics()
    assert first.registry is not second.registry and first.render(None) and second.render(None)


# --- logs -----------------------------------------------------------------------------------------


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.configure(**config)


@pytest.mark.usefixtures("restored_logging")
def test_logs_are_json_lines_with_the_ids_of_their_context() -> None:
    stream = io.StringIO()
    log.configure("info", stream=stream)
    with structlog.contextvars.bound_contextvars(request_id="r1", job_id="j1"):
        structlog.get_logger("ours").info("scored", clips=2)
        logging.getLogger("theirs").warning("from %s", "elsewhere")
    structlog.get_logger("ours").debug("too quiet")
    ours, theirs = map(json.loads, stream.getvalue().splitlines())
    assert (ours["event"], ours["clips"], ours["level"], ours["logger"]) == ("scored", 2, "info", "ours")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("from elsewhere", "warning", "theirs")
    assert [(line["request_id"], line["job_id"]) for line in (ours, theirs)] == [("r1", "j1")] * 2


@pytest.mark.usefixtures("restored_logging")
def test_an_exception_is_one_json_line() -> None:
    stream = io.StringIO()
    log.configure("info", stream=stream)
    try:
        raise ValueError("why")
    except ValueError:
        structlog.get_logger("ours").exception("broke")
    [line] = map(json.loads, stream.getvalue().splitlines())
    assert line["exception"][0]["exc_type"] == "ValueError" and line["exception"][0]["exc_value"] == "why"


def fall(depth: int) -> None:
    """Raise an error at the end of a long chain of errors, each with a long traceback and a long text."""
    try:
        deep(60) if depth == 0 else fall(depth - 1)
    except ValueError as error:
        raise ValueError("x" * 20_000) from error


def deep(depth: int) -> None:
    if depth == 0:
        raise ValueError("the bottom")
    deep(depth - 1)


@pytest.mark.usefixtures("restored_logging")
def test_tracebacks_are_bounded() -> None:
    for stream, most in ((io.StringIO(), 120_000), (Terminal(), 400_000)):
        log.configure("info", stream=stream)
        try:
            fall(40)
        except ValueError:
            structlog.get_logger("ours").exception("broke")
        assert 4000 < len(stream.getvalue()) < most


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("restored_logging")
def test_logs_on_a_terminal_are_for_people() -> None:
    terminal = Terminal()
    log.configure("warning", stream=terminal)
    structlog.get_logger("ours").warning("careful", clips=2)
    assert "careful" in terminal.getvalue() and not terminal.getvalue().startswith("{")


def test_a_door_does_not_load_what_only_a_worker_needs() -> None:
    """The doors' process must stay small in memory."""
    code = (
        "import sys; import reward_server.doors.service, reward_server.queue.door_queue;"
        "import reward_server.serving.private_redis, reward_server.log;"
        "print([name for name in ('torch', 'cv2', 'timm', 'av') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
