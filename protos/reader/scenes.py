"""Finds cuts, repeated frames and still parts while a clip is decoded.

Scenes sees every decoded picture, keeps a few numbers for each, and turns them into warnings at the end.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.reader.reel import Picture
from protos.types import ClipWarning

SMALL = (32, 18)  # width and height of the compared frames: small, to average out noise and grain
CUT_LEVELS = 24.0  # a cut changes a frame by more than this many grey levels on average
CUT_RATIO = 4.0  # and by more than this many times the median change of the frames around it
AROUND = 4  # frames on each side that count as "around"
STILL_LEVELS = 0.1  # grey levels on average; a smaller or equal change counts as no motion
# Grain changes a frame as much from one frame to the next as over LAG frames; motion adds up.
LAG = 8
GRAIN_LEVELS = 3.0  # a larger change is no grain
GRAIN_GROWTH = 1.4  # grain's change over LAG frames is at most this many times that of one frame
MOSTLY_STILL = 0.5  # share of still frames at which a warning is given
REPEATED = 0.1  # share of repeated frames at which a warning is given


def averaged(luma: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness [h,w], averaged to SMALL and rounded.

    Halving it first is several times faster. Each halving rounds, but averages of at least 8x8 pixels hide that.
    """
    height, width = luma.shape
    while height % 2 == width % 2 == 0 and width >= 16 * SMALL[0] and height >= 16 * SMALL[1]:
        height, width = height // 2, width // 2
        luma = np.asarray(cv2.resize(luma, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return cv2.resize(luma, SMALL, interpolation=cv2.INTER_AREA).astype(np.float32)


class Scenes:
    """Collects what `watch` sees. Call `watch` with each picture, in order of time.

    `follows` says whether the frame directly before this one was decoded too.
    """

    def __init__(self) -> None:
        self._times_s: list[float] = []
        self._changes: list[float] = []  # grey levels from the frame before; NaN if that was not decoded
        self._far_changes: list[float] = []  # the same from the frame LAG frames before
        self._repeats: list[bool] = []
        self._interlaced = self._hdr = 0
        self._checksum: int | None = None  # of the last brightness, which takes up to 33 MB itself
        self._recent: deque[NDArray[np.float32]] = deque(maxlen=LAG)  # the small frames before, without a gap

    def watch(self, time_s: float, picture: Picture, follows: bool) -> None:
        self._interlaced, self._hdr = self._interlaced + picture.interlaced, self._hdr + picture.hdr
        luma = np.ascontiguousarray(picture.luma())
        small = averaged(luma)
        checksum = zlib.crc32(luma.data)
        self._repeats.append(follows and checksum == self._checksum)
        if not follows:
            self._recent.clear()
        self._changes.append(self._change(small, 1))
        self._far_changes.append(self._change(small, LAG))
        self._times_s.append(time_s)
        self._recent.append(small)
        self._checksum = checksum

    def _change(self, small: NDArray[np.float32], lag: int) -> float:
        """Grey levels on average from the frame `lag` frames before, NaN if that was not decoded."""
        return float(np.abs(small - self._recent[-lag]).mean()) if len(self._recent) >= lag else math.nan

    @property
    def _num_decoded(self) -> int:
        return len(self._times_s)

    def cuts_s(self) -> list[float]:
        """The times of the frames that begin a new scene, in seconds."""
        changes = np.array(self._changes)
        return [self._times_s[at] for at in np.flatnonzero(changes > CUT_LEVELS) if self._stands_out(changes, int(at))]

    def warnings(self, earlier_cuts_s: Sequence[float] = ()) -> tuple[ClipWarning, ...]:
        """The warnings, measured over the decoded frames: all of them, or only the groups that hold a window.

        `earlier_cuts_s` are cuts found when other parts of the clip were decoded.
        """
        told: list[ClipWarning] = []
        changes = np.array(self._changes)
        known = changes[~np.isnan(changes)]
        steps = max(1, known.size)
        if cuts := sorted({*earlier_cuts_s, *self.cuts_s()}):
            times = ", ".join(f"{time_s:.2f}" for time_s in cuts[:8])
            message = f"{len(cuts)} cut(s), at {times} s; windows avoid them where the clip is long enough"
            told.append(ClipWarning(code="cuts", message=message, share=len(cuts) / steps))
        repeated = sum(self._repeats) / steps
        if repeated >= REPEATED:
            message = (
                f"{repeated:.0%} of the {self._num_decoded} decoded frames equal the frame before pixel for pixel; "
                "score a clip without repeated frames"
            )
            told.append(ClipWarning(code="repeated_frames", message=message, share=repeated))
        still = self._still_share()
        if still >= MOSTLY_STILL:
            message = (
                f"nothing moves in {still:.0%} of the {self._num_decoded} decoded frames, so the reward says little "
                "about motion"
            )
            told.append(ClipWarning(code="still_share", message=message, share=still))
        num = max(1, self._num_decoded)
        if self._interlaced:
            message = (
                "frames are interlaced; rows of the second field that stand out are averaged from their neighbours"
            )
            told.append(ClipWarning(code="interlaced", message=message, share=self._interlaced / num))
        if self._hdr:
            message = "frames are HDR (PQ or HLG) and are mapped to standard dynamic range"
            told.append(ClipWarning(code="hdr_mapped", message=message, share=self._hdr / num))
        return tuple(told)

    def _still_share(self) -> float:
        """The share of frames in which nothing moves: equal to the frame before, or different by grain alone."""
        changes, far = np.array(self._changes), np.array(self._far_changes)
        known = np.flatnonzero(~np.isnan(changes))
        if not known.size:
            return 0.0
        ahead = np.concatenate([far[LAG - 1 :], np.full(min(far.size, LAG - 1), math.nan)])
        typical = np.array([np.nanmedian(changes[max(0, at - AROUND) : at + AROUND + 1]) for at in known])
        grows = ~(np.fmin(far, ahead)[known] <= GRAIN_GROWTH * typical)  # also if LAG frames in a row are not known
        moves = (changes[known] > STILL_LEVELS) & (grows | (changes[known] > GRAIN_LEVELS))
        return float(1 - moves.mean())

    @staticmethod
    def _stands_out(changes: NDArray[np.float64], at: int) -> bool:
        around = np.concatenate([changes[max(0, at - AROUND) : at], changes[at + 1 : at + 1 + AROUND]])
        around = around[~np.isnan(around)]
        return around.size == 0 or bool(changes[at] > CUT_RATIO * np.median(around))


def crosses(cuts_s: Sequence[float], first_s: float, last_s: float) -> bool:
    """Whether a cut lies between two frames: later than the first, and not later than the last."""
    return any(first_s < cut_s <= last_s for cut_s in cuts_s)
