"""Runs the blocking work of a worker in threads: prepare clips, score a batch, load discriminators.

Clips are prepared in several threads and scored in one. If a call takes longer than settings.max_stall_s, the process
ends. Its leases then end too, and other workers take over its jobs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import structlog

from protos.types import Submission
from reward_server.errors import RewardServerError, ScoringFailed
from reward_server.scorer import Prepared, Scored, Scorer
from reward_server.settings import Settings

T = TypeVar("T")

STALLED_EXIT = 75  # EX_TEMPFAIL: the failure is temporary, start another worker

log = structlog.get_logger("worker")


def load_scorer(settings: Settings) -> Scorer:
    """Load the profile's pipeline and set the CPU threads of cv2 and torch. Raises NotReady without weights."""
    import cv2  # noqa: PLC0415 - only a process that scores needs it
    import torch  # noqa: PLC0415

    from reward_server.pipeline import Pipeline  # noqa: PLC0415

    threads = num_threads(settings)
    cv2.setNumThreads(threads)
    torch.set_num_threads(threads)
    return Pipeline.load(settings)


def num_threads(settings: Settings) -> int:
    return settings.threads or os.cpu_count() or 1


class Scoring:
    """A scorer and its threads. `close` ends the threads."""

    def __init__(self, scorer: Scorer, settings: Settings, *, worker_id: str) -> None:
        self._scorer, self._worker_id, self._max_stall_s = scorer, worker_id, settings.max_stall_s
        self.num_decoders = max(1, num_threads(settings) // 2)  # the other half is for scoring
        self._decoders = ThreadPoolExecutor(self.num_decoders, thread_name_prefix="decode")
        self._scoring = ThreadPoolExecutor(1, thread_name_prefix="score")

    def close(self) -> None:
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._scoring.shutdown(wait=False, cancel_futures=True)

    async def load(self, read: Callable[[bytes], Any], data: bytes) -> Any:
        """What `read` makes of a file."""
        return await self._in_thread(self._decoders, read, data)

    async def prepare(self, submission: Submission, discriminators: Any) -> Any:
        """The decoded clip, to be judged by `discriminators`. Raises what is wrong with it."""
        prepare = partial(self._scorer.prepare, discriminators=discriminators)
        return await self._in_thread(self._decoders, prepare, submission)

    async def results(self, prepared: Sequence[Prepared]) -> Sequence[Scored]:
        """One result per clip. If the batch fails, each clip is scored alone, so that only the faulty one fails."""
        try:
            results = await self._in_thread(self._scoring, self._scorer.score, prepared)
            if len(results) != len(prepared):
                raise ScoringFailed(f"the pipeline returned {len(results)} results for {len(prepared)} clips")
            return results
        except Exception as error:
            if len(prepared) == 1:
                return [Scored(result=as_ours(error))]
            log.warning("a batch failed, scoring its clips one by one", clips=len(prepared), exc_info=error)
            return [result for item in prepared for result in await self.results([item])]

    async def _in_thread(self, threads: Executor, work: Callable[[Any], T], item: Any) -> T:
        running = asyncio.get_running_loop().run_in_executor(threads, work, item)
        done, _ = await asyncio.wait([running], timeout=self._max_stall_s)
        if not done:
            log.critical("a thread is stuck, ending this worker", stuck_s=self._max_stall_s, worker=self._worker_id)
            os._exit(STALLED_EXIT)
        return running.result()


def as_ours(error: Exception) -> RewardServerError:
    """The error itself if it is a RewardServerError, otherwise a ScoringFailed that points to the log."""
    if isinstance(error, RewardServerError):
        return error
    log.error("scoring failed", exc_info=error)
    return ScoringFailed(f"scoring failed with {type(error).__name__}: {error}; look for the job in the worker's log")
