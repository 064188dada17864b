"""What `sanity` and `evaluate` are given: clip files, folders, patterns, or a recipe's folder with its manifest.

Of a folder with a manifest.jsonl only the held-out shots are taken, each cut out of its file, so that a figure
never rests on a clip that the heads were trained on, nor on a cut in the middle of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protos.types import Clip, Context, Submission
from reward_server.errors import BadRequest
from reward_server.evaluation.scoring import file_submission, tensor_submission
from reward_server.recipe.manifest import NAME, clips_of
from reward_server.score_files import expand
from reward_server.settings import MIB
from reward_server.views import read_source

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
            return file_submission(self.path, context)
        source = read_source(self.path, first=self.first, last=self.last)
        frames = source.frames[: max(1, SHOT_BYTES // source.frames[0].nbytes)]
        clip = Clip(frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), fps=source.fps)
        return tensor_submission(clip, context or Context())


def find_shots(paths: Sequence[str]) -> list[Shot]:
    """All that the paths name, in order, each once. Raises BadRequest for a path that names nothing."""
    shots: list[Shot] = []
    for path in paths:
        manifest = Path(path) / NAME
        found = _held_out(manifest) if manifest.is_file() else [Shot(path=file) for file in expand([path])]
        if not found:
            raise BadRequest(f"{manifest} holds no shot that is held out; name the clip files themselves")
        shots += found
    return list(dict.fromkeys(shots))


def _held_out(manifest: Path) -> list[Shot]:
    entries = [entry for entry in clips_of(manifest) if entry.split == "held_out"]
    return [Shot(path=entry.path, first=entry.first, last=entry.last) for entry in entries]
