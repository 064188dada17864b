"""Finds cuts, repeated frames and still parts while a clip is decoded.

Scenes sees every decoded picture, keeps a few numbers for each, and turns them into warnings at the end.
"""

from __future__ import annotations

import math
import zlib
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
MOSTLY_STILL = 0.5  # share of still frames at which a warning is given
REPEATED = 0.1  # share of repeated frames at which a warning is given


class Scenes:
    """Collects what `watch` sees. Call `watch` with each picture, in order of time.

    `follows` says whether the frame directly before this one was decoded too.
    """

    def __init__(self) -> None:
        self._times_s: list[float] = []
        self._changes: list[float] = []  # grey levels from the frame before; NaN if that was not decoded
        self._repeats: list[bool] = []
        self._interlaced = self._hdr = 0
        self._checksum: int | None = None  # of the last brightness, which takes up to 33 MB itself
        self._small: NDArray[np.float32] | None = None

    def watch(self, time_s: float, picture: Picture, follows: bool) -> None:
        self._interlaced, self._hdr = self._interlaced + picture.interlaced, self._hdr + picture.hdr
        luma = np.ascontiguousarray(picture.luma())
        small = cv2.resize(luma, SMALL, interpolation=cv2.INTER_AREA).astype(np.float32)
        checksum = zlib.crc32(luma.data)
        self._repeats.append(follows and checksum == self._checksum)
        change = math.nan if self._small is None else float(np.abs(small - self._small).mean())
        self._changes.append(change if follows else math.nan)
        self._times_s.append(time_s)
        self._checksum, self._small = checksum, small

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
        still = float((known <= STILL_LEVELS).mean()) if known.size else 0.0
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

    @staticmethod
    def _stands_out(changes: NDArray[np.float64], at: int) -> bool:
        around = np.concatenate([changes[max(0, at - AROUND) : at], changes[at + 1 : at + 1 + AROUND]])
        around = around[~np.isnan(around)]
        return around.size == 0 or bool(changes[at] > CUT_RATIO * np.median(around))


def crosses(cuts_s: Sequence[float], first_s: float, last_s: float) -> bool:
    """Whether a cut lies between two frames: later than the first, and not later than the last."""
    return any(first_s < cut_s <= last_s for cut_s in cuts_s)
