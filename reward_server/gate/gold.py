"""Defines the gold file: a frozen set of clips with their rewards and verdicts, and the discriminators behind them.

`check --write-gold FILE` writes it and `check --gold FILE` scores the same clips again. Paths are relative to the
folder of the file, so that it can live beside its clips in a repository. A digest binds each entry to the content of
its clip: a clip that was changed since is not compared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protos.json_codec import from_json, to_json
from protos.reader.sequences import is_sequence, pictures_of
from protos.types import Model
from reward_server.errors import BadRequest
from reward_server.gate.rules import Verdict
from reward_server.replacing import replacing

FORMAT = "gold-1 of motion-reward"


@dataclass(frozen=True, kw_only=True)
class GoldModel:
    """What scored the set. Another digest of the weights means other discriminators."""

    profile: str
    discriminator_version: str
    weights_digest: str
    preprocessing_digest: str

    @classmethod
    def of(cls, model: Model) -> GoldModel:
        names = ("profile", "discriminator_version", "weights_digest", "preprocessing_digest")
        return cls(**{name: getattr(model, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class GoldFile:
    """A clip by its path, as seen from the gold file, and the sha256 of its content."""

    path: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class GoldRule:
    """The rule of the set: `min_percentile`, or `max_refused` (per cent) with the accepted clips.

    The accepted clips belong to the set, because the threshold made of them is in logits, which mean something else
    under other discriminators. So they are scored again too.
    """

    min_percentile: float | None = None
    max_refused: float | None = None
    accepted: tuple[GoldFile, ...] = ()

    def __post_init__(self) -> None:
        by_percentile = self.min_percentile is not None and 0 <= self.min_percentile <= 100
        by_accepted = self.max_refused is not None and 0 < self.max_refused <= 50 and bool(self.accepted)
        if by_percentile == by_accepted:
            raise ValueError(f"a rule needs a min_percentile in 0..100, or accepted clips with max_refused, got {self}")


@dataclass(frozen=True, kw_only=True)
class GoldClip:
    """One clip of the set with its rewards, its percentile (None if it had none) and its verdict."""

    path: str
    digest: str
    combined: float
    instantaneous: float
    long_term: float
    combined_percentile: float | None = None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Gold:
    """A gold file. `fps` is the frame rate of its image sequences, None if it has none."""

    format: str = FORMAT
    model: GoldModel
    rule: GoldRule
    fps: float | None = None
    clips: tuple[GoldClip, ...]


def read_gold(file: Path) -> Gold:
    """Raises BadRequest if the file is no gold file or has no clips, and OSError."""
    try:
        gold = from_json(Gold, json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:  # ContractError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise _bad(file, str(error)) from error
    if gold.format != FORMAT:
        raise _bad(file, f"its format is '{gold.format}', not '{FORMAT}'")
    if not gold.clips or any(clip.verdict is Verdict.UNSCORED for clip in gold.clips):
        raise _bad(file, "it needs at least one clip, and only clips with a verdict")
    return gold


def write_gold(file: Path, gold: Gold) -> None:
    """Write the file; a file that is there is replaced as a whole. Raises OSError."""
    with replacing(file) as partial:
        partial.write_text(json.dumps(to_json(gold), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def gold_path(clip: Path, gold_file: Path) -> str:
    """How a gold file names a clip: relative to its own folder, with slashes."""
    return Path(os.path.relpath(clip.absolute(), gold_file.absolute().parent)).as_posix()


def clip_path(named: str, gold_file: Path) -> Path:
    """Where a clip of a gold file is, relative to the working folder if that is shorter."""
    return Path(os.path.relpath(gold_file.absolute().parent / named))


def digest_of(clip: Path) -> str | None:
    """sha256 of a file, or of the pictures of an image sequence in their order; None if it cannot be read."""
    try:
        if is_sequence(clip):
            return hashlib.sha256(" ".join(map(_file_digest, pictures_of(clip))).encode()).hexdigest()
        return _file_digest(clip)
    except OSError:
        return None


def different(clips: Sequence[Path]) -> list[Path]:
    """The clips without exact copies: of clips with the same content the first one."""
    found: dict[str, Path] = {}
    for clip in clips:
        found.setdefault(digest_of(clip) or str(clip), clip)
    return list(found.values())


def _file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _bad(file: Path, why: str) -> BadRequest:
    return BadRequest(f"{file} is not a gold file ({why}); write one with `motion-reward check ... --write-gold FILE`")
