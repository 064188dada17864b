"""Names and writes the annotated clips of `motion-reward score --annotate`.

A clip's drawing is named after the clip: its path below the folder that all clips share, and `.annotated.mp4` or
`.annotated.png`. So two clips of one call never get the same name, and a clip is never written over. A file that is
there already is replaced only if it has exactly this name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protos.reader.errors import ReaderError
from protos.types import Outcome
from reward_server.errors import InvalidClip
from reward_server.explain.annotate import AnnotateFormat, annotate

TOO_OLD = "the server sent no explanation, it is older than this command; score in this process, or upgrade it"


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """The folder of the annotated clips and their format."""

    folder: Path
    form: AnnotateFormat

    def path_of(self, clip: Path, below: Path) -> Path:
        """Where the drawing of a clip goes, if all clips of the call are `below` this folder."""
        name = clip.resolve().relative_to(below.resolve())
        return self.folder / name.with_name(f"{name.name}.annotated.{self.form}")

    def draw(self, clip: Path, outcome: Outcome, *, below: Path, fps: float | None) -> str:
        """Draw a clip that has a reward. Returns why it could not be drawn, or "" if it was or has no reward."""
        reward = outcome.reward
        if reward is None:
            return ""
        if reward.explanation is None:
            return TOO_OLD
        try:
            annotate(clip, reward, self.path_of(clip, below), self.form, fps=fps)
        except (InvalidClip, ReaderError, OSError) as error:
            return str(error)
        return ""
