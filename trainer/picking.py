"""Chooses which frames of a file become a clip in a policy's form.

Every n-th frame of a file is used if that changes the speed by at most a tolerance, because unevenly picked frames
judder, which training should reduce. Otherwise the frames nearest in time are used. A file too slow for that is
refused, because repeated frames would teach stuttering, and so is one that has lost too many frames.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from protos.reader import Source, Stretch, UnreadableClip
from protos.reader.evenness import MOST_UNEVEN, check_uneven, uneven_share, uneven_share_at
from protos.reader.times import frame_interval, is_even, nearest_frames, stride_of
from trainer.errors import DataError

log = logging.getLogger(__name__)

SPEED_TOLERANCE = 0.17  # so that every 2nd frame of a 24 fps file can be used at 14 fps, 17 % faster than recorded
REMEDY = "leave it out, or lower policy.num_frames"
ROUNDING = 1e-3  # share of a frame rate, so that 23.976 counts as 24


@dataclass(frozen=True, kw_only=True)
class ClipForm:
    """The form of the clips that a policy needs: frames, rate and size."""

    num_frames: int
    fps: float
    height_px: int
    width_px: int

    @property
    def span_s(self) -> float:
        """Seconds from the first frame to the last."""
        return (self.num_frames - 1) / self.fps


def picked_frames(
    source: Source,
    stretches: Sequence[Stretch],
    form: ClipForm,
    *,
    start: float,
    tolerance: float,
    cuts_s: Sequence[float] = (),
) -> NDArray[np.int64]:
    """Positions in the file, all in one stretch: the one at `start` (0..1), or else the longest.

    They cross none of the cuts at `cuts_s` (seconds) if a part between two is long enough. Raises DataError, and
    UnreadableClip if too many frames are missing, by the rule of protos/reader/evenness.py.
    """
    if cuts_s:
        with suppress(DataError, UnreadableClip):
            return _picked_within(source, _parted(source, stretches, cuts_s), form, start, tolerance)
    return _picked_within(source, stretches, form, start, tolerance)


def _parted(source: Source, stretches: Sequence[Stretch], cuts_s: Sequence[float]) -> list[Stretch]:
    """The stretches, ended at each cut."""
    cuts = nearest_frames(source.times_s, cuts_s).tolist()
    parts: list[Stretch] = []
    for stretch in stretches:
        edges = [stretch.first, *(at for at in cuts if stretch.first < at < stretch.last), stretch.last]
        parts += [replace(stretch, first=a, last=b) for a, b in itertools.pairwise(edges)]
    return parts


def _picked_within(
    source: Source, stretches: Sequence[Stretch], form: ClipForm, start: float, tolerance: float
) -> NDArray[np.int64]:
    if not stretches:
        raise DataError(
            f"has 0 frames in the part to use, {form.num_frames} are needed; correct first and last, or leave it out"
        )
    lengths = np.array([stretch.last - stretch.first for stretch in stretches], np.float64)
    ends = np.cumsum(lengths) / lengths.sum()
    at = min(int(np.searchsorted(ends, start, side="right")), len(stretches) - 1)
    within = float(np.clip((start - (ends[at] - lengths[at] / lengths.sum())) / (lengths[at] / lengths.sum()), 0, 1))
    longest = stretches[int(lengths.argmax())]
    for stretch, place in ((stretches[at], within), (longest, start)):
        try:
            times_s = source.times_s[stretch.first : stretch.last]
            _check_even(source, times_s, form)
            return stretch.first + _picked(times_s, form, place, tolerance)
        except (DataError, UnreadableClip):
            if stretch is longest:
                raise
    raise AssertionError("the longest stretch is tried last")


def _check_even(source: Source, times_s: NDArray[np.float64], form: ClipForm) -> None:
    """Refuse lost frames as scoring and pretraining do: at about the form's rate, thinned evenly."""
    share = uneven_share_at(times_s, form.fps)
    if share > MOST_UNEVEN:
        source.require_counted_times()
        check_uneven(share, source.fps / stride_of(source.fps, form.fps))


def _picked(times_s: NDArray[np.float64], form: ClipForm, start: float, tolerance: float) -> NDArray[np.int64]:
    """Positions in `times_s` (rising): every n-th frame if that is within tolerance, else the nearest in time.

    Raises DataError.
    """
    if times_s.size < 2:
        raise DataError(f"has {times_s.size} frames, {form.num_frames} are needed; {REMEDY}")
    stride = max(1, round(1 / (form.fps * float(np.median(np.diff(times_s))))))
    needed = 1 + stride * (form.num_frames - 1)
    first = round(start * max(0, times_s.size - needed))
    window_s = times_s[first : first + needed]
    interval_s = frame_interval(window_s)  # unlike the mean, not affected by a missing frame
    change = form.fps * interval_s * stride - 1  # change of speed, if these frames are shown at the form's rate
    if abs(change) > tolerance + ROUNDING or not is_even(window_s, interval_s):
        return _nearest(times_s, form, start, tolerance)
    if window_s.size < needed:
        thinned = f" to take 1 in {stride}" * (stride > 1)
        raise DataError(f"has {times_s.size} frames, {needed} are needed{thinned}; {REMEDY}")
    return first + stride * np.arange(form.num_frames)


def unevenness(times_s: NDArray[np.float64]) -> float:
    """The share of picked frames that are far from their places at a constant rate."""
    wanted_s = np.linspace(times_s[0], times_s[-1], times_s.size)
    return uneven_share(times_s, wanted_s.tolist(), float(wanted_s[1] - wanted_s[0])) if times_s.size > 1 else 0.0


def _nearest(times_s: NDArray[np.float64], form: ClipForm, start: float, tolerance: float) -> NDArray[np.int64]:
    lasts_s = times_s[-1] - times_s[0]
    slack_s = lasts_s - form.span_s
    if slack_s < -0.5 / form.fps:
        raise DataError(f"lasts {lasts_s:.2f} s, the policy needs {form.span_s:.2f} s; {REMEDY}")
    wanted = times_s[0] + start * max(0.0, slack_s) + np.arange(form.num_frames) / form.fps
    picked = nearest_frames(times_s, wanted.tolist())
    fps = (times_s.size - 1) / lasts_s
    if (np.diff(picked) == 0).any():
        raise DataError(
            f"has {fps:.2f} frames per second, the policy needs {form.fps:g}; frames would repeat; leave it out, or "
            "raise data.speed_tolerance if it is little too slow"
        )
    _say_uneven(f"{fps:.2f}", f"{form.fps:g}", tolerance)
    return picked


@cache  # once a frame rate
def _say_uneven(fps: str, wanted_fps: str, tolerance: float) -> None:
    log.warning(
        "files of %s frames per second are thinned to %s unevenly: taking every n-th frame would change their speed by "
        "more than data.speed_tolerance=%g, or their frame times are uneven",
        fps,
        wanted_fps,
        tolerance,
    )
