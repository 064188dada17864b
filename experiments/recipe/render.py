"""Renders many scenes into a data folder, in parallel. A run can be resumed.

Each clip depends on its seed alone, which also decides its frame rate and size. Held-out scenes wear only held-out
photographs.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from experiments.recipe.catalogue import PHOTOS
from experiments.recipe.scenes import render_scene
from experiments.recipe.video import write_video
from reward_server.data.manifest import NAME, Entry, Split, clips_of, write_manifest
from reward_server.errors import RewardServerError

RATES = (8.0, 10.0, 12.0, 12.0, 15.0, 18.0)
SIZES = ((240, 320), (180, 320), (320, 240), (320, 180), (256, 256), (192, 256), (160, 288))  # height, width
HELD_OUT_EVERY = 6  # every 6th scene is held out
WRITE_EVERY = 20


class PhotographMissing(RewardServerError):
    """The given folder lacks a photograph of the catalogue."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One scene to render, whose textures are partly cut from `photos`."""

    seed: int
    frames: int
    path: Path
    photos: tuple[Path, ...]
    source: str
    split: Split

    def entry(self) -> Entry:
        """The clip's entry in the manifest."""
        return Entry(
            source=self.source,
            path=self.path,
            first=0,
            last=self.frames,
            split=self.split,
            kind="scene",
            licence="Apache-2.0, with textures out of the photographs",
        )


def scene_jobs(folder: Path, *, num: int, seed: int, frames: int, photos: Path | None) -> list[Job]:
    """Jobs for `num` scenes of seeds seed, seed + 1, ... With a folder of photos, half of the textures use them.

    Raises PhotographMissing.
    """
    return [_scene_job(folder, each, frames, photos) for each in range(seed, seed + num)]


def render_all(folder: Path, jobs: Sequence[Job], *, processes: int = 2) -> Iterator[Entry]:
    """Render missing clips and update the folder's manifest. Yields each entry as soon as its clip is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    before = _listed(folder)
    ready = {job.path: job.entry() for job in jobs if job.path.is_file()}
    yield from ready.values()
    missing = [job for job in jobs if job.path not in ready]
    for job in map(render, missing) if processes == 1 else _render_apart(missing, processes):
        ready[job.path] = job.entry()
        if len(ready) % WRITE_EVERY == 0:
            _write(folder, before | ready)
        yield ready[job.path]
    _write(folder, before | ready)


def _render_apart(jobs: Sequence[Job], processes: int) -> Iterator[Job]:
    """Yield each job when it is done. Jobs run in spawned processes, which inherit no OpenGL context."""
    with ProcessPoolExecutor(max_workers=processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(render, job) for job in jobs]):
            yield done.result()


def render(job: Job) -> Job:
    """Render one scene to its path."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng([job.seed, 1])  # independent of the clip's own stream
    fps, (height, width) = float(rng.choice(RATES)), SIZES[rng.integers(len(SIZES))]
    clip = render_scene(job.seed, job.frames, fps, height, width, photos=job.photos).clip
    write_video(job.path, clip.frames.transpose(0, 2, 3, 1), clip.fps)
    return job


def _scene_job(folder: Path, seed: int, frames: int, photos: Path | None) -> Job:
    split: Split = "held_out" if seed % HELD_OUT_EVERY == 0 else "train"
    paths = [_photo(photos, media.source) for media in PHOTOS if media.split == split] if photos else []
    return Job(
        seed=seed,
        frames=frames,
        path=folder / f"scene-{seed:06d}.mp4",
        photos=tuple(paths),
        source=f"scene-{seed:06d}",
        split=split,
    )


def _photo(folder: Path, source: str) -> Path:
    found = next(folder.glob(f"{source}.*"), None)
    if found is None:
        raise PhotographMissing(f"{folder} lacks the photograph '{source}'; run the recipe's step `clips` first")
    return found


def _listed(folder: Path) -> dict[Path, Entry]:
    """Entries of the clips that earlier calls rendered."""
    entries = clips_of(folder) if (folder / NAME).is_file() else []
    return {entry.path: entry for entry in entries if entry.path.is_file()}


def _write(folder: Path, ready: dict[Path, Entry]) -> None:
    write_manifest(folder / NAME, [ready[path] for path in sorted(ready)])
