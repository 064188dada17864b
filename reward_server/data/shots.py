"""Which clips a path names: files, folders, patterns, and the shots of a folder with a manifest.

Of a folder with a manifest.jsonl, pretraining takes the shots of the split "train" (`find_clips`), and `sanity` and
`evaluate` take those that are held out (`find_shots`): no figure rests on a clip that the discriminators were
trained on. A shot is cut out of its file, so that no window lies across a cut.
"""

from __future__ import annotations

import functools
import glob
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protos.codec import clip_to_tensor
from protos.reader import Source, open_source, with_true_times
from protos.reader.files import clip_files
from protos.reader.sniff import SUFFIXES
from protos.reader.source import shrunk
from protos.reader.times import even_positions
from protos.submissions import submission
from protos.types import Clip, Context, Media, Submission
from reward_server.data.manifest import NAME, Entry, Split, clips_of
from reward_server.decoding.refusals import as_invalid_clip
from reward_server.errors import BadRequest, UnreadableClip
from reward_server.settings import MIB

SHOT_BYTES = 96 * MIB  # of a shot's frames, from its start: eight seconds of 640x360 at 24 fps


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A file as it is, or frames `first`..`last` (the latter excluded) of it."""

    path: Path
    first: int = 0
    last: int | None = None

    @property
    def name(self) -> str:
        return str(self.path) if self.last is None else f"{self.path}[{self.first}:{self.last}]"

    @property
    def short_name(self) -> str:
        """The name without the folders: seeds must not depend on where the clips lie."""
        return self.name.removeprefix(f"{self.path.parent}/")

    def submission(self, context: Context | None = None) -> Submission:
        """The file's bytes, or the shot's frames losslessly. Raises OSError, and InvalidClip for no frames."""
        if self.last is None:
            return submission(self.path, context=context)
        return tensor_submission(self.clip(), context or Context())

    def clip(self, *, max_side_px: int = 640) -> Clip:
        """The shot's frames at even steps of their own rate, from its start, as many as SHOT_BYTES hold.

        Of a shot in which time jumps the longest stretch is taken. Raises OSError, InvalidClip.
        """
        with as_invalid_clip(str(self.path)), open_source(self.path) as source:
            return with_true_times(source, lambda source: self._clip(source, max_side_px))

    def _clip(self, source: Source, max_side_px: int) -> Clip:
        stretches = source.within(self.first, self.last)
        if not stretches or not source.fps:
            raise UnreadableClip(f"{self.path} gives no frames from {self.first} on, or no frame rate; leave it out")
        longest = max(stretches, key=lambda stretch: stretch.last - stretch.first)
        positions = longest.first + even_positions(source.times_s[longest.first : longest.last])
        frame_bytes = 3 * min(1.0, max_side_px / max(source.height_px, source.width_px)) ** 2
        most = max(1, int(SHOT_BYTES / (frame_bytes * source.height_px * source.width_px)))
        wanted = np.unique(positions[:most])
        frames = dict(source.frames(wanted.tolist(), lambda picture: shrunk(picture, max_side_px), to_the_end=False))
        chosen = np.stack([frames[position] for position in positions[:most].tolist()])
        return Clip(frames=np.ascontiguousarray(chosen.transpose(0, 3, 1, 2)), fps=source.fps)


@dataclass(frozen=True, kw_only=True)
class SourceClip(Shot):
    """A shot to train on, real or generated. `source` names what it was cut from: it is held out as a whole."""

    source: str
    real: bool = True

    @functools.cached_property
    def part(self) -> str:
        """What its features are kept under. The file's content counts: another clip may come by the same path."""
        try:
            with self.path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            content = str(self.path)  # it will be skipped, with the reason
        name = f"{self.source} {content} {self.first} {self.last} {self.real}"
        return hashlib.sha256(name.encode()).hexdigest()[:16]


def find_clips(folder: Path, *, real: bool) -> list[SourceClip]:
    """A folder's clips to train on: those of its manifest that are for training, else every clip file below it.

    Raises BadRequest where there is none.
    """
    if (folder / NAME).is_file():
        clips = [
            SourceClip(source=entry.source, path=entry.path, first=entry.first, last=entry.last, real=real)
            for entry in _entries(folder, "train")
        ]
    else:
        clips = [SourceClip(source=path.stem, path=path, real=real) for path in clip_files(folder)]
    if not clips:
        raise BadRequest(f"{folder} holds no clips ({', '.join(SUFFIXES)}); give the folder of clips")
    return clips


def find_shots(paths: Sequence[str]) -> list[Shot]:
    """All that the paths name, in order, each once: of a folder with a manifest the shots that are held out.

    Raises BadRequest for a path that names nothing.
    """
    shots: list[Shot] = []
    for path in paths:
        folder = Path(path)
        if not (folder / NAME).is_file():
            shots += [Shot(path=file) for file in find_files([path])]
        elif entries := _entries(folder, "held_out"):
            shots += [Shot(path=entry.path, first=entry.first, last=entry.last) for entry in entries]
        else:
            raise BadRequest(f"{folder / NAME} holds no shot that is held out; name the clip files themselves")
    return list(dict.fromkeys(shots))


def find_files(paths: Sequence[str]) -> list[Path]:
    """Files as named, folders searched at any depth, patterns (**, *, ?) matched; each file once.

    Raises BadRequest for a path that names nothing.
    """
    found: list[Path] = []
    for path in paths:
        named = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - absolute too
        files = [file for name in named for file in (clip_files(Path(name)) if Path(name).is_dir() else [Path(name)])]
        if not files:
            raise BadRequest(f"'{path}' names no file, no folder with clips and no pattern that matches")
        found += files
    return list(dict.fromkeys(found))


def tensor_submission(clip: Clip, context: Context) -> Submission:
    """Decoded frames, losslessly."""
    return Submission(payload=clip_to_tensor(clip), media=Media.TENSOR, context=context)


def _entries(folder: Path, split: Split) -> list[Entry]:
    return [entry for entry in clips_of(folder) if entry.split == split]
