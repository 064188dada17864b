"""Renders many scenes or stills into a data folder, in parallel. A run can be resumed.

Each clip depends on its seed alone, which also decides its frame rate and size. Held-out clips use only held-out
photographs.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from experiments.recipe.catalogue import PHOTOS
from experiments.recipe.scenes import render_scene
from experiments.recipe.stills import glide
from experiments.recipe.video import write_video
from protos.types import Clip
from reward_server.data.manifest import NAME, Entry, Kind, Split, clips_of, write_manifest
from reward_server.errors import RewardServerError

RATES = (8.0, 10.0, 12.0, 12.0, 15.0, 18.0)
SIZES = ((240, 320), (180, 320), (320, 240), (320, 180), (256, 256), (192, 256), (160, 288))  # height, width
HELD_OUT_EVERY = 6  # every 6th scene is held out; a still has its photograph's split
WRITE_EVERY = 20


class PhotographMissing(RewardServerError):
    """The given folder lacks a photograph of the catalogue."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip to render."""

    kind: Kind
    seed: int
    frames: int
    path: Path
    photos: tuple[Path, ...]  # textures of a scene, or the one photograph of a still
    source: str
    split: Split

    def entry(self) -> Entry:
        """The clip's entry in the manifest."""
        made_from = "Apache-2.0, with textures out of the photographs" if self.kind == "scene" else "the photograph's"
        return Entry(
            source=self.source,
            path=self.path,
            first=0,
            last=self.frames,
            split=self.split,
            kind=self.kind,
            licence=made_from,
        )


def scene_jobs(folder: Path, *, num: int, seed: int, frames: int, photos: Path | None) -> list[Job]:
    """Jobs for `num` scenes of seeds seed, seed + 1, ... With a folder of photos, half of the textures use them.

    Raises PhotographMissing.
    """
    return [_scene_job(folder, each, frames, photos) for each in range(seed, seed + num)]


def still_jobs(folder: Path, *, num: int, seed: int, frames: int, photos: Path) -> list[Job]:
    """Jobs for `num` stills, which use the catalogue's photos in turn. Raises PhotographMissing."""
    return [_still_job(folder, index, seed, frames, photos) for index in range(num)]


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
    """Render one clip to its path."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng([job.seed, 1])  # independent of the clip's own stream
    fps, (height, width) = float(rng.choice(RATES)), SIZES[rng.integers(len(SIZES))]
    clip = _MAKERS[job.kind](job, fps, height, width)
    write_video(job.path, clip.frames.transpose(0, 2, 3, 1), clip.fps)
    return job


def _make_scene(job: Job, fps: float, height: int, width: int) -> Clip:
    return render_scene(job.seed, job.frames, fps, height, width, photos=job.photos).clip


def _make_still(job: Job, fps: float, height: int, width: int) -> Clip:
    return glide(job.photos[0], job.seed, frames=job.frames, fps=fps, height=height, width=width)[0]


_MAKERS: dict[Kind, Callable[[Job, float, int, int], Clip]] = {"scene": _make_scene, "still": _make_still}


def _scene_job(folder: Path, seed: int, frames: int, photos: Path | None) -> Job:
    split: Split = "held_out" if seed % HELD_OUT_EVERY == 0 else "train"
    paths = [_photo(photos, media.source) for media in PHOTOS if media.split == split] if photos else []
    return Job(
        kind="scene",
        seed=seed,
        frames=frames,
        path=folder / f"scene-{seed:06d}.mp4",
        photos=tuple(paths),
        source=f"scene-{seed:06d}",
        split=split,
    )


def _still_job(folder: Path, index: int, seed: int, frames: int, photos: Path) -> Job:
    media = PHOTOS[index % len(PHOTOS)]
    return Job(
        kind="still",
        seed=seed + index,
        frames=frames,
        path=folder / f"still-{seed + index:06d}-{media.source}.mp4",
        photos=(_photo(photos, media.source),),
        source=f"photo-{media.source}",
        split=media.split,
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
