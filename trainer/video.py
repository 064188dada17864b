"""Reads video files as clips in a policy's form, and writes clips as mp4, gif or lossless files.

picking.py chooses the frames. If decoding finds a cut among them, others are chosen, as long as the file has a part
without a cut that is long enough.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protos.codec import clip_to_tensor
from protos.reader import Picture, ReaderError, Source, open_source, with_true_times
from protos.reader.evenness import uneven_times
from protos.reader.scenes import Scenes, crosses
from protos.reader.sniff import TENSOR_SUFFIX
from protos.reader.source import as_displayed
from protos.types import Clip, ClipWarning
from trainer.errors import DataError
from trainer.picking import SPEED_TOLERANCE, ClipForm, picked_frames, unevenness

__all__ = [
    "SPEED_TOLERANCE",
    "ClipForm",
    "fit",
    "gif_bytes",
    "mp4_bytes",
    "read_clip",
    "side_by_side",
    "write_clip",
]

MAX_TRIES = 12  # frames chosen anew can meet new cuts
GIF_WIDTH_PX = 960  # maximum width


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
    possible places, from first to last. Up to MAX_TRIES places are tried until the clip crosses no cut. Every n-th
    frame is used if that changes the speed by at most `speed_tolerance` (a share); otherwise the frames nearest in
    time are used. `track` chooses a video track, and `fps` is the frame rate of an image sequence. `warn` gets the
    reader's warnings about the file. Raises DataError with the reason if the file is unreadable, too short or too
    slow, or has lost too many frames.
    """

    def fitted_frame(picture: Picture) -> NDArray[np.uint8]:
        return fit(as_displayed(picture), form.height_px, form.width_px)

    def read(source: Source) -> list[NDArray[np.uint8]]:
        cuts_s: list[float] = []
        for _ in range(MAX_TRIES):
            picked = picked_frames(
                source, source.within(first, last), form, start=start, tolerance=speed_tolerance, cuts_s=cuts_s
            )
            scenes = Scenes()
            fitted = dict(source.frames(picked.tolist(), fitted_frame, watch=scenes.watch, to_the_end=False))
            new_cuts_s = sorted({*scenes.cuts_s()} - {*cuts_s})
            cuts_s += new_cuts_s
            if not crosses(new_cuts_s, float(source.times_s[picked[0]]), float(source.times_s[picked[-1]])):
                break
        if missing := picked.size - len({id(frame) for frame in fitted.values()}):
            raise DataError(
                f"{missing} of {picked.size} frames cannot be decoded: the file is damaged; leave it out or repair it"
            )
        if warn:
            warn((*source.warnings, *uneven_times(unevenness(source.times_s[picked])), *scenes.warnings(cuts_s)))
        return [fitted[index] for index in picked.tolist()]

    try:
        with open_source(path, track=track, fps=fps) as source:
            frames = np.stack(with_true_times(source, read))
    except (OSError, ReaderError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return Clip(frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), fps=form.fps)


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
