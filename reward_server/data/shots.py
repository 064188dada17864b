"""Finds the clips that a path names: files, folders, patterns, and the shots in a folder's manifest.

If a folder has a manifest.jsonl, pretraining uses its "train" shots (`find_clips`), and `sanity` and `evaluate` use
its held-out shots (`find_shots`). So no figure is measured on a clip that the discriminators were trained on. A shot
is cut out of its file, so that no window crosses a cut.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protos.codec import clip_to_tensor
from protos.reader import Source, open_source, with_true_times
from protos.reader.evenness import MOST_UNEVEN, check_uneven, uneven_share_at, uneven_times
from protos.reader.files import clip_files
from protos.reader.sequences import is_pattern, is_sequence, pictures_of, sequence_folders
from protos.reader.sniff import SUFFIXES
from protos.reader.source import shrunk
from protos.reader.times import even_positions
from protos.reader.told import log_warnings
from protos.submissions import submission
from protos.types import Clip, ClipWarning, Context, Media, Submission
from reward_server.data.manifest import NAME, Entry, Split, clips_of
from reward_server.decoding.refusals import as_invalid_clip
from reward_server.errors import BadRequest, ClipTooLarge, ClipTooShort
from reward_server.settings import MIB

log = logging.getLogger(__name__)

SHOT_BYTES = 96 * MIB  # at most, of a shot's decoded frames: about six seconds of 640x360 at 24 fps


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A whole file, or its frames `first`..`last` (exclusive).

    `fps` is the frame rate if it is an image sequence. `track` chooses a video track by its position.
    """

    path: Path
    first: int = 0
    last: int | None = None
    fps: float | None = None
    track: int | None = None

    @property
    def name(self) -> str:
        return str(self.path) if self.last is None else f"{self.path}[{self.first}:{self.last}]"

    @property
    def short_name(self) -> str:
        """The name without folders. Seeds use it, so that they do not depend on where the clips are stored."""
        return self.name.removeprefix(f"{self.path.parent}/")

    def submission(self, context: Context | None = None) -> Submission:
        """Submit the file's bytes or, of a shot, a sequence or a chosen track, its frames as `clip` gives them.

        Raises OSError, InvalidClip.
        """
        if self.last is None and self.track is None and not is_sequence(self.path):
            return submission(self.path, context=context)
        return tensor_submission(self.clip(), context or Context())

    def clip(self, *, max_side_px: int = 640) -> Clip:
        """The shot's first frames, evenly spaced at their own rate, up to SHOT_BYTES.

        If time jumps within the shot, its longest stretch is used. Where a few frames are missing, the nearest one
        is used, and a warning is logged. Frames are shrunk to at most `max_side_px` on a side. Raises OSError,
        InvalidClip, also if too many frames are missing.
        """
        with as_invalid_clip(str(self.path)), open_source(self.path, fps=self.fps, track=self.track) as source:
            return with_true_times(source, lambda source: self._clip(source, max_side_px))

    def _clip(self, source: Source, max_side_px: int) -> Clip:
        stretches = source.within(self.first, self.last)
        if not stretches or not source.fps:
            num = sum(stretch.last - stretch.first for stretch in stretches)
            raise ClipTooShort(
                f"{self.path} has {num} frame(s) from frame {self.first} on, under the minimum of 2; leave it out"
            )
        longest = max(stretches, key=lambda stretch: stretch.last - stretch.first)
        times_s = source.times_s[longest.first : longest.last]
        share = uneven_share_at(times_s)
        if share > MOST_UNEVEN:
            source.require_counted_times()
            check_uneven(share, source.fps)
        positions = longest.first + even_positions(times_s)
        frame_bytes = 3 * min(1.0, max_side_px / max(source.height_px, source.width_px)) ** 2
        most = max(1, int(SHOT_BYTES / (frame_bytes * source.height_px * source.width_px)))
        if self.last is None and positions.size > most and (self.track is not None or is_sequence(self.path)):
            raise ClipTooLarge(
                f"the sequence or track of {self.path} has {positions.size} frames, and {most} of this size fit into "
                f"the {SHOT_BYTES // MIB} MiB that are sent; split it or make a video of it"
            )
        frames = _read(source, positions[:most], max_side_px)
        _tell_once(self.name, uneven_times(share))
        return Clip(frames=frames, fps=source.fps)


@functools.cache  # a shot can be read several times
def _tell_once(name: str, warnings: tuple[ClipWarning, ...]) -> None:
    log_warnings(log, name, warnings)


def _read(source: Source, positions: NDArray[np.int64], max_side_px: int) -> NDArray[np.uint8]:
    """The frames at the positions, uint8 [T,3,H,W]. They are put in place as they are read: no second copy is held."""
    frames: NDArray[np.uint8] | None = None
    wanted = np.unique(positions).tolist()
    for index, frame in source.frames(wanted, lambda picture: shrunk(picture, max_side_px), to_the_end=False):
        if frames is None:
            frames = np.empty((positions.size, 3, *frame.shape[:2]), np.uint8)
        frames[positions == index] = frame.transpose(2, 0, 1)
    assert frames is not None, "a source without any frame raises"
    return frames


@dataclass(frozen=True, kw_only=True)
class SourceClip(Shot):
    """A shot to train on, real or generated. `source` names what it was cut from; a source is held out as a whole."""

    source: str
    real: bool = True

    @functools.cached_property
    def part(self) -> str:
        """The name of its cached features. It depends on the file's content, since a path can get another clip."""
        files = pictures_of(self.path) if is_sequence(self.path) else [self.path]
        try:
            content = " ".join(map(_digest, files))
        except OSError:
            content = str(self.path)  # the clip will be skipped later, with the reason
        rate = f" {self.fps}" if is_sequence(self.path) else ""
        name = f"{self.source} {content} {self.first} {self.last} {self.real}{rate}"
        return hashlib.sha256(name.encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_clips(folder: Path, *, real: bool, fps: float | None = None) -> list[SourceClip]:
    """A folder's clips to train on: its manifest's training entries, or every clip file below it without a manifest.

    With `fps`, folders of pictures below it are image sequences of this rate. Raises BadRequest if there are none.
    """
    if (folder / NAME).is_file():
        clips = [
            SourceClip(source=entry.source, path=entry.path, first=entry.first, last=entry.last, real=real)
            for entry in _entries(folder, "train")
        ]
    else:
        files = _clips_below(folder, fps)
        _check_rate(files, fps)
        clips = [SourceClip(source=path.stem, path=path, real=real, fps=fps) for path in files]
    if not clips:
        raise BadRequest(f"{folder} has no clips to train on ({', '.join(SUFFIXES)}); give a folder with clips")
    return clips


def find_shots(paths: Sequence[str], fps: float | None = None) -> list[Shot]:
    """All clips that the paths name, in order, each once. A folder with a manifest gives its held-out shots.

    `fps` is the frame rate of image sequences. Raises BadRequest for a path without clips, or a sequence without rate.
    """
    shots: list[Shot] = []
    for path in paths:
        folder = Path(path)
        if not (folder / NAME).is_file():
            shots += [Shot(path=file, fps=fps) for file in find_files([path], fps)]
        elif entries := _entries(folder, "held_out"):
            shots += [Shot(path=entry.path, first=entry.first, last=entry.last) for entry in entries]
        else:
            raise BadRequest(f"{folder / NAME} has no held-out shots; give the clip files themselves")
    return list(dict.fromkeys(shots))


def find_files(paths: Sequence[str], fps: float | None = None) -> list[Path]:
    """The files that the paths name, each once. Folders are searched at any depth; patterns (**, *, ?) are expanded.

    With `fps`, a folder of pictures or a pattern of pictures (%04d.png, *.png) is one image sequence, and its path
    is returned. Raises BadRequest for a path without files, or a sequence without `fps`.
    """
    found: list[Path] = []
    for path in paths:
        if is_pattern(Path(path)) and pictures_of(Path(path)):
            files = [Path(path)]
        else:
            found_names = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - absolute too
            named = [path] if Path(path).exists() else found_names
            files = [file for name in named for file in _named(Path(name), fps)]
        if not files:
            raise BadRequest(f"'{path}' is not a file, a folder with clips or a pattern that matches; check the path")
        _check_rate(files, fps)
        found += files
    return list(dict.fromkeys(found))


def _check_rate(files: Sequence[Path], fps: float | None) -> None:
    if not fps and (sequence := next(filter(is_sequence, files), None)):
        raise BadRequest(
            f"'{sequence}' is a sequence of {len(pictures_of(sequence))} pictures; give their frame rate with --fps"
        )


def _named(path: Path, fps: float | None) -> list[Path]:
    return _clips_below(path, fps) if path.is_dir() else [path]


def _clips_below(folder: Path, fps: float | None) -> list[Path]:
    """The clip files of a folder, and its image sequences if their rate is given or there is nothing else."""
    files = clip_files(folder)
    return [*files, *sequence_folders(folder)] if fps or not files else files


def tensor_submission(clip: Clip, context: Context) -> Submission:
    """Submit decoded frames as a tensor, without loss."""
    return Submission(payload=clip_to_tensor(clip), media=Media.TENSOR, context=context)


def _entries(folder: Path, split: Split) -> list[Entry]:
    return [entry for entry in clips_of(folder) if entry.split == split]
