"""Defines the reference table of a weights file: which rewards real clips, and clips with faults, get from the weights.

It says where a reward stands among real clips, as a percentile, and which rung of a ladder of faults it is nearest to.
The table is in the metadata of the file. A digest binds it to the weights: the table of other weights is never used.
Refreshed discriminators keep the table of those that they come from, and its version says so.
`training/reference_table.py` makes tables.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protos.json_codec import from_json
from protos.types import DISCRIMINATORS, REWARDS, Bounds, Logits, Model, Standing

KEY, INHERITED = "reference", "reference_inherited"  # of a weights file's metadata
PERCENTS = np.arange(101.0)
SHORT, ONE_WINDOW, SEVERAL_WINDOWS = "short", "one window", "several windows"
NO_TABLE = (
    "these weights have no reference table; make one with "
    "`motion-reward reference --real DIR --checkpoint FILE --out FILE`"
)


@dataclass(frozen=True, kw_only=True)
class Band:
    """Quantiles 0 %, 1 %, ... 100 % of each reward over real clips of similar length; logits are not clipped."""

    name: str
    num_clips: int
    combined: tuple[float, ...]
    instantaneous: tuple[float, ...]
    long_term: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in REWARDS:
            values = getattr(self, name)
            if len(values) != PERCENTS.size or not np.isfinite(values).all() or (np.diff(values) < 0).any():
                raise ValueError(f"band '{self.name}': {name} needs {PERCENTS.size} finite quantiles that never fall")


@dataclass(frozen=True, kw_only=True)
class Rung:
    """The median logits of one rung: of real clips, or of such clips with one fault. `like` says it in words."""

    like: str
    num_clips: int
    instantaneous: float
    long_term: float


@dataclass(frozen=True, kw_only=True)
class ReferenceTable:
    """The reference table of the weights with this digest, made with this version and these settings."""

    weights: str  # `digest_of` them
    discriminator_version: str
    num_tracks: int
    bounds: Bounds
    shares: Logits  # weights of the two discriminators in `combined`
    bands: tuple[Band, ...]
    rungs: tuple[Rung, ...]

    def standing(self, logits: Logits, combined: float, band_name: str, model: Model) -> Standing:
        """Where a clip of a length band stands. `logits` are not clipped. `model` says how it was scored.

        What the table cannot tell is None, and `missing` says why.
        """
        if missing := self._unfit(model, band_name):
            return Standing(missing=missing)
        band = self._bands[band_name]
        other = self._other_combined(model)
        return Standing(
            combined_percentile=None if other else _percentile(combined, band.combined),
            instantaneous_percentile=_percentile(logits.instantaneous, band.instantaneous),
            long_term_percentile=_percentile(logits.long_term, band.long_term),
            nearest=self._nearest(logits),
            band=band.name,
            num_clips=band.num_clips,
            discriminator_version=self.discriminator_version,
            missing=other,
        )

    def _unfit(self, model: Model, band_name: str) -> str:
        if model.input.num_tracks != self.num_tracks:
            return (
                f"the reference table was made with {self.num_tracks} query points per window, and this clip was "
                f"scored with {model.input.num_tracks}; unset MOTION_REWARD_NUM_TRACKS, or make a table with it"
            )
        if band_name not in self._bands:
            return f"the reference table has too few real clips of the length '{band_name}'; make one with more clips"
        return ""

    def _other_combined(self, model: Model) -> str:
        """Why `combined` is not comparable with the table's; empty if it is."""
        same_shares = math.isclose(
            model.weights.instantaneous * self.shares.long_term, model.weights.long_term * self.shares.instantaneous
        )
        if same_shares and model.bounds == self.bounds:
            return ""
        return (
            "no percentile of combined: the reference table was made with other weights of the discriminators or other "
            "bounds; make one with these settings"
        )

    @cached_property
    def _bands(self) -> dict[str, Band]:
        return {band.name: band for band in self.bands}

    @cached_property
    def _rung_logits(self) -> NDArray[np.float64]:
        return np.array([[rung.instantaneous, rung.long_term] for rung in self.rungs]).reshape(-1, 2)

    @cached_property
    def _spread(self) -> NDArray[np.float64]:
        """Interquartile range of each logit over real clips: how far apart two logits are is told in this unit."""
        band = self._bands.get(ONE_WINDOW, self.bands[0])
        quartiles = np.array([[getattr(band, name)[percent] for percent in (25, 75)] for name in DISCRIMINATORS])
        return np.asarray(np.maximum(quartiles[:, 1] - quartiles[:, 0], 1e-3), np.float64)

    def _nearest(self, logits: Logits) -> str:
        if not self.rungs:
            return ""
        apart = (self._rung_logits - [logits.instantaneous, logits.long_term]) / self._spread
        return self.rungs[int(np.linalg.norm(apart, axis=1).argmin())].like


def length_band(frames_used: int, window_frames: int, num_windows: int) -> str:
    """The band of a clip: clips shorter than a window, of one whole window, and of several."""
    if frames_used < window_frames:
        return SHORT
    return ONE_WINDOW if num_windows == 1 else SEVERAL_WINDOWS


def digest_of(tensors: Mapping[str, Tensor], preprocessing_digest: str, pace_weights: str = "") -> str:
    """sha256 of the weights, of the motion features that they need, and of their pace terms' weights, as in the file.

    The rest of a file's metadata is not in it.
    """
    digest = hashlib.sha256(f"{preprocessing_digest}{pace_weights}".encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def to_metadata(table: ReferenceTable | None, *, inherited: bool = False) -> dict[str, str]:
    """The entries of a weights file's metadata. An inherited table is that of the weights it was refreshed from."""
    if table is None:
        return {}
    return {KEY: json.dumps(asdict(table), separators=(",", ":"))} | ({INHERITED: "true"} if inherited else {})


def from_metadata(metadata: Mapping[str, str], own: str, source: str) -> tuple[ReferenceTable | None, str]:
    """The table of a file whose weights have the digest `own`, or None and why there is none that may be used."""
    if KEY not in metadata:
        return None, NO_TABLE
    try:
        table = from_json(ReferenceTable, json.loads(metadata[KEY]))
    except ValueError as error:  # ContractError and JSONDecodeError are ValueErrors
        return None, f"the reference table of {source} cannot be read ({error}); make it again"
    if INHERITED in metadata:
        return table, ""
    if table.weights != own:
        return None, (
            f"the reference table of {source} belongs to other weights ({table.discriminator_version}, digest "
            f"{table.weights[:12]}, not {own[:12]}), so it is not used; make its own with `motion-reward reference`"
        )
    return table, ""


def _percentile(value: float, quantiles: tuple[float, ...]) -> float:
    """The share of the real clips below `value`, 0..100."""
    return round(float(np.interp(value, quantiles, PERCENTS)), 1)
