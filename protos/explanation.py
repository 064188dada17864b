"""Defines `Explanation`: what the discriminators saw of a clip, in a form that a page or a program can draw.

A submitter asks for it with `Context.explain`. It comes with the reward, and no reward depends on it.

Legend: T frames of a window, P = T-1 frame pairs, h, w size of a small map in cells.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protos.error_codes import ContractError, ErrorCode


@dataclass(frozen=True, kw_only=True)
class TrackExplanation:
    """One track through the T frames of a window.

    x_px, y_px  [T] its place in pixels of the clip as displayed; 0 is the centre of the leftmost or topmost pixel, and
                a place can lie outside the frame
    visibility  [T] 0..1, 1 while the point is followed
    confidence  [T] 0..1, how reliable the place is
    share       the long-term logit of the window minus the logit without this track: above 0 if the track raised it

    The share is a leave-out at the step where the discriminator pools over all tracks, and exact for that step. What
    other tracks took over from this one before that step (by attention, and by comparing neighbours) stays. So do the
    terms of `embedded`. The shares of all tracks do not add up to the logit.
    """

    x_px: tuple[float, ...]
    y_px: tuple[float, ...]
    visibility: tuple[float, ...]
    confidence: tuple[float, ...]
    share: float

    def __post_init__(self) -> None:
        lengths = {len(values) for values in (self.x_px, self.y_px, self.visibility, self.confidence)}
        if len(lengths) != 1 or not math.isfinite(self.share):
            raise _bad(f"a track needs equally many numbers of each kind and a finite share, got {self}")


@dataclass(frozen=True, kw_only=True)
class PairMaps:
    """One small map [h,w] per frame pair. It covers the whole frame, and byte b stands for b / 255 * `top`.

    `cells` are the P * h * w bytes, row by row, as base64. They are empty if there was no room for maps.
    """

    height: int
    width: int
    top: float
    cells: str = field(repr=False)

    def __post_init__(self) -> None:
        area, num_bytes = self.height * self.width, len(_decoded(self.cells))
        whole = num_bytes % area == 0 if area else num_bytes == 0
        if min(self.height, self.width) < 0 or not 0 <= self.top < math.inf or not whole:
            raise _bad(f"maps of {self.height}x{self.width} cells up to {self.top} cannot have {num_bytes} bytes")

    @classmethod
    def of(cls, cells: NDArray[np.uint8], top: float) -> PairMaps:
        """Maps from their bytes, uint8 [P,h,w]."""
        height, width = cells.shape[1:]
        return cls(height=height, width=width, top=top, cells=base64.b64encode(cells.tobytes()).decode())

    @property
    def data(self) -> bytes:
        """The bytes of all maps."""
        return _decoded(self.cells)

    def values(self) -> NDArray[np.float32]:
        """The maps' values, float32 [P,h,w]; [0,h,w] if there was no room for maps."""
        num = len(self.data) // (self.height * self.width) if self.height * self.width else 0
        cells = np.frombuffer(self.data, np.uint8).reshape(num, self.height, self.width)
        return np.asarray(cells * np.float32(self.top / 255), np.float32)


@dataclass(frozen=True, kw_only=True)
class WindowPercentiles:
    """Where a window alone stands among real clips of one window, or among shorter ones if it is shorter.

    A percentile, 0..100, is the share of these with a lower value; those of the discriminators are of the logits before
    clipping. It is None if the reference table cannot tell; `Reward.standing.missing` says why.
    """

    combined: float | None = None
    instantaneous: float | None = None
    long_term: float | None = None

    def __post_init__(self) -> None:
        for value in (self.combined, self.instantaneous, self.long_term):
            if not (value is None or 0 <= value <= 100):
                raise _bad(f"percentiles must be in 0..100, got {self}")


@dataclass(frozen=True, kw_only=True)
class WindowExplanation:
    """What was seen in one window. Its logits are in `Reward.windows`, at the same position.

    times_s                [T] of the window's frames, in seconds from the clip's first frame, evenly spaced. The frame
                           used is the nearest one of the file.
    tracks                 at most 64, a random sample of all
    residual               magnitude of the brightness-constancy residual, in gray levels, mean over a cell
    flow_confidence        0..1, mean over a cell
    residual_curve         [P] the same, mean over the frame
    flow_confidence_curve  [P]
    percentiles            of the window alone; None from an older server
    """

    times_s: tuple[float, ...]
    tracks: tuple[TrackExplanation, ...]
    residual: PairMaps
    flow_confidence: PairMaps
    residual_curve: tuple[float, ...]
    flow_confidence_curve: tuple[float, ...]
    percentiles: WindowPercentiles | None = None

    def __post_init__(self) -> None:
        num_frames, num_pairs = len(self.times_s), len(self.residual_curve)
        if num_pairs != num_frames - 1 or len(self.flow_confidence_curve) != num_pairs:
            raise _bad(f"a window of {num_frames} frames needs curves of {num_frames - 1} numbers, got {num_pairs}")
        if any(len(track.x_px) != num_frames for track in self.tracks):
            raise _bad(f"a window of {num_frames} frames needs tracks of as many places")


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What the discriminators saw of a clip, window by window.

    `reduced` says what was made smaller so that the explanation stays within the server's limit; it is empty if nothing
    was.
    """

    windows: tuple[WindowExplanation, ...]
    reduced: str = ""


def _decoded(cells: str) -> bytes:
    try:
        return base64.b64decode(cells, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(f"the cells of a map are not base64: {error}") from error


def _bad(what: str) -> ContractError:
    return ContractError(ErrorCode.BAD_REWARD, f"not an explanation: {what}")
