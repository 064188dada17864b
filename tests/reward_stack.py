"""Runs a whole reward server in its own process for the trainer's tests: both doors and a worker, on a given Redis.

It scores with `CalmScorer`, so that rewards are exact and the same in every run. Run as a script, it serves until it is
killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import structlog
from pydantic import SecretStr

from protos.types import Clip, Logits, Reward
from reward_server.errors import NotReady
from reward_server.serving.local import ready_line
from reward_server.settings import Settings
from reward_server.worker.worker import run_worker
from tests.pixel_scorer import MODEL, Pixels, PixelScorer, pixel_dynamics
from tests.running import open_doors

ROOT = Path(__file__).parents[1]
LIMITS = replace(MODEL.limits, max_frames=99, max_duration_s=60)


def calm_logits(clip: Clip) -> Logits:
    """Logits that are high for little change: 4 minus a part of the mean, and of the largest, frame difference."""
    steps = np.abs(np.diff(clip.frames.astype(np.float64), axis=0))
    return Logits(instantaneous=4 - float(steps.mean()) / 32, long_term=4 - float(steps.max()) / 64)


class CalmScorer(PixelScorer):
    """Rewards clips that do not move. A clip of fewer than 4 frames is invalid, as real profiles have such a limit."""

    def _reward(self, item: Pixels) -> Reward:
        still = Clip(frames=np.zeros_like(item.clip.frames), fps=item.clip.fps)
        logits = calm_logits(item.clip)
        return replace(
            super()._reward(Pixels(clip=still, context=item.context)),
            combined=(logits.instantaneous + logits.long_term) / 2,
            instantaneous=logits.instantaneous,
            long_term=logits.long_term,
            logits=logits,
            dynamics=pixel_dynamics(item.clip),
        )


class RewardStack:
    """The server process. It can be started, killed, and started again at the same address."""

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self._port = 0  # any free port at the first start, then the same again
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Return once it is ready to score."""
        command = [sys.executable, "-m", "tests.reward_stack", self.redis_url, str(self._port)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=environment
        )
        try:
            self._port = int(ready_line(self._process, "ready ").split()[1])
        except NotReady:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill the server without warning. Its jobs stay unfinished."""
        if self._process:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()


async def serve(redis_url: str, port: int) -> None:
    settings = Settings(redis_url=SecretStr(redis_url), lease_s=1.0, threads=1, batch_jobs=4)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with open_doors(settings, grpc=f"127.0.0.1:{port}") as doors:
        worker = asyncio.create_task(keep_working(doors.settings, stop))
        while not (await doors.service.readiness()).ready:
            await asyncio.wait([worker], timeout=0.02)
        print("ready", doors.grpc_url.rpartition(":")[2], flush=True)
        await stop.wait()
        await worker


async def keep_working(settings: Settings, stop: asyncio.Event) -> None:
    """Restart the worker if it dies, as `motion-reward serve` does."""
    while not stop.is_set():
        try:
            await run_worker(settings, CalmScorer(), stop=stop)
        except Exception:
            traceback.print_exc()
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # nobody reads the pipe after `ready`
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
