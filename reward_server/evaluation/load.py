"""Provides the parts of a benchmark: synthetic clips, concurrent clients and a memory meter.

`motion-reward bench` and benchmarks/against_litserve.py use it, so that the same code drives both sides of a
comparison.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil
from numpy.typing import NDArray

from protos.types import Clip, Media, Outcome, Submission
from reward_server.decoding.encode import encode_h264
from reward_server.settings import MIB

Send = Callable[[Submission], Outcome]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of a synthetic clip. Its text form is frames x height x width."""

    frames: int
    height_px: int
    width_px: int
    fps: float

    def __str__(self) -> str:
        return f"{self.frames}x{self.height_px}x{self.width_px}"


@dataclass(frozen=True, kw_only=True)
class Load:
    """One round of requests: its duration and latencies in seconds, and the outcomes."""

    wall_s: float
    latencies_s: tuple[float, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def clips_per_s(self) -> float:
        return len(self.outcomes) / self.wall_s


def made_up_clip(size: Size, seed: int) -> Submission:
    """A synthetic clip, h264 in mp4: a textured background that drifts and sways, and a textured disc that crosses it.

    The same size and seed give the same frames.
    """
    rng = np.random.default_rng(seed)
    backdrop, disc = (_texture(rng, 2 * size.height_px, 2 * size.width_px) for _ in range(2))
    drift = rng.uniform(-0.01, 0.01, 2) * size.height_px  # px per frame
    path = rng.uniform(0.2, 0.8, (2, 2)) * (size.width_px, size.height_px)  # start and end of the disc's centre, px
    images = []
    for index, share in enumerate(np.linspace(0, 1, size.frames)):
        sway = 2 * np.sin(index * 0.4)
        image = _moved(backdrop, size, drift * index, sway)
        mask = np.zeros(image.shape[:2], np.uint8)
        centre = path[0] + share * (path[1] - path[0])
        cv2.circle(mask, tuple(map(int, centre)), size.height_px // 6, 255, -1, cv2.LINE_AA)
        images.append(np.where(mask[..., None] > 127, _moved(disc, size, centre - path[0], 5 * sway), image))
    frames = np.stack(images).transpose(0, 3, 1, 2)
    return Submission(payload=encode_h264(Clip(frames=frames, fps=size.fps), crf=20), media=Media.CONTAINER)


def _texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Noise on several scales, uint8 [height,width,3]."""
    octaves = [
        cv2.resize(rng.normal(0, 40, (height // step, width // step, 3)), (width, height)) for step in (64, 16, 6)
    ]
    return np.asarray(np.clip(128 + np.sum(octaves, axis=0), 0, 255), np.uint8)


def _moved(texture: NDArray[np.uint8], size: Size, shift: NDArray[np.float64], degrees: float) -> NDArray[np.uint8]:
    """The middle part of the texture with the clip's size, rotated by `degrees` and shifted by (x, y) px."""
    height, width = texture.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    matrix[:, 2] = matrix[:, 2] + shift - np.array([size.width_px, size.height_px]) / 2
    moved = cv2.warpAffine(texture, matrix, (size.width_px, size.height_px), borderMode=cv2.BORDER_REFLECT)
    return np.asarray(moved, np.uint8)


def drive(senders: Sequence[Send], submissions: Sequence[Submission]) -> Load:
    """Send every submission once, `len(senders)` at a time. A client sends the next one once it has its answer.

    Latencies and outcomes are in the order of the submissions.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(submissions)):
        waiting.put(index)
    done: dict[int, tuple[float, Outcome]] = {}

    def work(send: Send) -> None:
        while True:
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            started = time.perf_counter()
            outcome = send(submissions[index])
            done[index] = (time.perf_counter() - started, outcome)

    started = time.perf_counter()
    with ThreadPoolExecutor(len(senders)) as pool:
        for future in [pool.submit(work, send) for send in senders]:
            future.result()
    wall_s = time.perf_counter() - started
    latencies_s, outcomes = zip(*(done[index] for index in range(len(submissions))), strict=True)
    return Load(wall_s=wall_s, latencies_s=latencies_s, outcomes=outcomes)


# --- memory -------------------------------------------------------------------------------------


@dataclass
class MemoryMeter:
    """Peak resident memory of a process and all its descendants together. Shared pages count for each process."""

    process: psutil.Process
    period_s: float = 0.05
    peak_mib: float = 0.0
    at_peak_mib: tuple[tuple[str, float], ...] = ()  # each process's command and memory at the peak

    @contextmanager
    def running(self) -> Iterator[MemoryMeter]:
        stop = threading.Event()
        thread = threading.Thread(target=self._sample_until, args=(stop,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join()

    def _sample_until(self, stop: threading.Event) -> None:
        while True:
            held = [row for process in self._family() if (row := _resident(process))]
            total = sum(mib for _, mib in held)
            if total > self.peak_mib:
                self.peak_mib, self.at_peak_mib = total, tuple(held)
            if stop.wait(self.period_s):
                return

    def _family(self) -> list[psutil.Process]:
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _resident(process: psutil.Process) -> tuple[str, float] | None:
    """The command of a process and its resident MiB, or None if it has just ended."""
    try:
        words = [Path(word).name for word in process.cmdline()[:4]]
        return " ".join(words).partition("\n")[0], process.memory_info().rss / MIB
    except psutil.NoSuchProcess:
        return None
