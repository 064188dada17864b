"""Reads video files as clips in a policy's form, and writes clips as mp4, gif or lossless files.

Every n-th frame of a file is used if that changes the speed by at most a tolerance, because unevenly picked frames
judder, which training should reduce. Otherwise the frames nearest in time are used. A file too slow for that is
refused, because repeated frames would teach stuttering.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protos.codec import clip_to_tensor
from protos.reader import Picture, ReaderError, Source, Stretch, open_source, with_true_times
from protos.reader.evenness import uneven_share, uneven_times
from protos.reader.scenes import Scenes
from protos.reader.sniff import TENSOR_SUFFIX
from protos.reader.source import as_displayed
from protos.reader.times import frame_interval, is_even, nearest_frames
from protos.types import Clip, ClipWarning
from trainer.errors import DataError

log = logging.getLogger(__name__)

SPEED_TOLERANCE = 0.17  # so that every 2nd frame of a 24 fps file can be used at 14 fps, 17 % faster than recorded
ROUNDING = 1e-3  # share of a frame rate, so that 23.976 counts as 24
GIF_WIDTH_PX = 960  # maximum width


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


def read_clip(
    path: Path,
    form: ClipForm,
    *,
    start: float = 0.0,
    first: int = 0,
    last: int | None = None,
    speed_tolerance: float = SPEED_TOLERANCE,
    track: int | None = None,
    fps: float | None = None,
    warn: Callable[[Sequence[ClipWarning]], None] | None = None,
) -> Clip:
    """Read `form.num_frames` frames of a file, scaled to cover the form's size and cropped at the centre.

    Only the frames `first`..`last` (exclusive) are used. `start` (0..1) chooses where the clip begins among the
    possible places, from first to last. Every n-th frame is used if that changes the speed by at most
    `speed_tolerance` (a share); otherwise the frames nearest in time are used. `track` chooses a video track, and
    `fps` is the frame rate of an image sequence. `warn` gets the reader's warnings about the file;
    without it they are not looked for. Raises DataError
    with the reason if the file is unreadable, too short or too slow.
    """

    def fitted_frame(picture: Picture) -> NDArray[np.uint8]:
        return fit(as_displayed(picture), form.height_px, form.width_px)

    def read(source: Source) -> list[NDArray[np.uint8]]:
        picked = _picked_within(source, source.within(first, last), form, start, speed_tolerance).tolist()
        scenes = Scenes()
        fitted = dict(source.frames(picked, fitted_frame, watch=scenes.watch if warn else None, to_the_end=False))
        if missing := len(picked) - len({id(frame) for frame in fitted.values()}):
            raise DataError(
                f"{missing} of {len(picked)} frames cannot be decoded: the file is damaged; leave it out or repair it"
            )
        if warn:
            warn((*source.warnings, *uneven_times(_uneven(source.times_s[picked])), *scenes.warnings()))
        return [fitted[index] for index in picked]

    try:
        with open_source(path, track=track, fps=fps) as source:
            frames = np.stack(with_true_times(source, read))
    except (OSError, ReaderError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return Clip(frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), fps=form.fps)


def _picked_within(
    source: Source, stretches: Sequence[Stretch], form: ClipForm, start: float, tolerance: float
) -> NDArray[np.int64]:
    """Positions in the file, all in one stretch: the one at `start`, or else the longest. Raises DataError."""
    if not stretches:
        raise DataError(f"has 0 frames, {form.num_frames} are needed")
    lengths = np.array([stretch.last - stretch.first for stretch in stretches], np.float64)
    ends = np.cumsum(lengths) / lengths.sum()
    at = min(int(np.searchsorted(ends, start, side="right")), len(stretches) - 1)
    within = float(np.clip((start - (ends[at] - lengths[at] / lengths.sum())) / (lengths[at] / lengths.sum()), 0, 1))
    longest = stretches[int(lengths.argmax())]
    for stretch, place in ((stretches[at], within), (longest, start)):
        try:
            times_s = source.times_s[stretch.first : stretch.last]
            return stretch.first + _picked(times_s, form, place, tolerance)
        except DataError:
            if stretch is longest:
                raise
    raise AssertionError("the longest stretch is tried last")


def _picked(times_s: NDArray[np.float64], form: ClipForm, start: float, tolerance: float) -> NDArray[np.int64]:
    """Positions in `times_s` (rising): every n-th frame if that is within tolerance, else the nearest in time.

    Raises DataError.
    """
    if times_s.size < 2:
        raise DataError(f"has {times_s.size} frames, {form.num_frames} are needed")
    stride = max(1, round(1 / (form.fps * float(np.median(np.diff(times_s))))))
    needed = 1 + stride * (form.num_frames - 1)
    first = round(start * max(0, times_s.size - needed))
    window_s = times_s[first : first + needed]
    interval_s = frame_interval(window_s)  # unlike the mean, not affected by a missing frame
    change = form.fps * interval_s * stride - 1  # change of speed, if these frames are shown at the form's rate
    if abs(change) > tolerance + ROUNDING or not is_even(window_s, interval_s):
        return _nearest(times_s, form, start, tolerance)
    if window_s.size < needed:
        raise DataError(f"has {times_s.size} frames, {needed} are needed" + f" to take 1 in {stride}" * (stride > 1))
    return first + stride * np.arange(form.num_frames)


def _uneven(times_s: NDArray[np.float64]) -> float:
    """The share of picked frames that are far from their places at a constant rate."""
    wanted_s = np.linspace(times_s[0], times_s[-1], times_s.size)
    return uneven_share(times_s, wanted_s.tolist(), float(wanted_s[1] - wanted_s[0])) if times_s.size > 1 else 0.0


def _nearest(times_s: NDArray[np.float64], form: ClipForm, start: float, tolerance: float) -> NDArray[np.int64]:
    lasts_s = times_s[-1] - times_s[0]
    slack_s = lasts_s - form.span_s
    if slack_s < -0.5 / form.fps:
        raise DataError(f"lasts {lasts_s:.2f} s, the policy needs {form.span_s:.2f} s")
    wanted = times_s[0] + start * max(0.0, slack_s) + np.arange(form.num_frames) / form.fps
    picked = nearest_frames(times_s, wanted.tolist())
    fps = (times_s.size - 1) / lasts_s
    if (np.diff(picked) == 0).any():
        raise DataError(f"has {fps:.2f} frames per second, the policy needs {form.fps:g}; frames would repeat")
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


def fit(image: NDArray[np.uint8], height_px: int, width_px: int) -> NDArray[np.uint8]:
    """Scale an image [H,W,3] to cover the size, and crop it at the centre."""
    height, width = image.shape[:2]
    scale = max(height_px / height, width_px / width)
    size = max(width_px, round(width * scale)), max(height_px, round(height * scale))
    if size != (width, height):
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(np.ascontiguousarray(image), size, interpolation=method).astype(np.uint8)
    top, left = (image.shape[0] - height_px) // 2, (image.shape[1] - width_px) // 2
    return image[top : top + height_px, left : left + width_px]


def write_clip(path: Path, clip: Clip, *, crf: int = 18) -> None:
    """Write a clip; the suffix chooses .safetensors (exact), .gif, or else mp4 (h264, `crf` 0..51).

    An existing file is replaced atomically.
    """
    if path.suffix == TENSOR_SUFFIX:
        data = clip_to_tensor(clip)
    else:
        data = gif_bytes(clip) if path.suffix == ".gif" else mp4_bytes(clip, crf=crf)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def mp4_bytes(clip: Clip, *, crf: int = 18) -> bytes:
    """Encode a clip as mp4 (h264, yuv420p). Odd sides lose their last row or column."""
    height, width = (side - side % 2 for side in clip.frames.shape[2:])
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        rate = Fraction(clip.fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in clip.frames[:, :, :height, :width].transpose(0, 2, 3, 1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def gif_bytes(clip: Clip, *, width_px: int = GIF_WIDTH_PX) -> bytes:
    """Encode a clip as gif: 256 colours per frame, at most `width_px` wide, durations in whole 1/100 s."""
    _, _, height, width = clip.frames.shape
    shrink = min(1.0, width_px / width)
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    images = [Image.fromarray(np.ascontiguousarray(fit(frame, *size))) for frame in clip.frames.transpose(0, 2, 3, 1)]
    buffer = io.BytesIO()
    duration_ms = 10 * max(1, round(100 / clip.fps))
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], duration=duration_ms, loop=0)
    return buffer.getvalue()


def side_by_side(clips: Sequence[Clip]) -> Clip:
    """Join clips of one form from left to right, with a white line between them."""
    line = np.full((*clips[0].frames.shape[:3], 2), 255, dtype=np.uint8)
    columns = [part for clip in clips for part in (clip.frames, line)][:-1]
    return Clip(frames=np.concatenate(columns, axis=3), fps=clips[0].fps)
