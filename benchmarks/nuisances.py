"""Measures how much a change that leaves the motion as it is moves the reward, against a mild fault.

    python -m benchmarks.nuisances --real FOLDER [--clips 8]

Each clip is written without loss, then once for each nuisance: another container or codec, other sizes, mirrored,
letterboxed, with grain. All are scored by the pipeline of this process, with the same draw of query points; "another
draw" changes that alone. A mild fault is that of `benchmarks.variable_rate`, which measures lost frames.

The target is a mean change of at most 0.2 mild faults. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.variable_rate import combined, encoded, mild_fault, read
from protos.submissions import submission
from protos.types import Context, Outcome
from reward_server.evaluation.looks import letterboxed, noisy
from reward_server.pipeline import Pipeline
from reward_server.settings import Settings

TARGET = 0.2  # mild faults
SIDE_PX = 640
GRAIN = 5.0  # gray levels
BARS = 0.2  # of the height
Frames = NDArray[np.uint8]
Nuisance = Callable[[Frames, float], bytes]
"""Writes the frames [T,H,W,3] of a clip with a rate, changed in some way, into a file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, required=True, help="a folder of real clips")
    parser.add_argument("--clips", type=int, default=8)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    pipeline = Pipeline.load(Settings())
    files = sorted(path for path in args.real.iterdir() if path.is_file())
    spread = np.unique(np.linspace(0, len(files) - 1, args.clips).round().astype(int))
    rows = [changes(pipeline, *read(files[at], SIDE_PX)) for at in spread]
    Console().print(table(rows))
    print(json.dumps({"benchmark": "nuisances", "clips": len(rows), "target": TARGET, **summary(rows)}))


def changes(pipeline: Pipeline, frames: Frames, fps: float) -> dict[str, float]:
    """By nuisance, how much it moves the combined reward of a clip; and a mild fault, by the name `mild`."""
    plain = encoded(frames, range(len(frames)), fps)
    files = [plain, *(write(frames, fps) for write in NUISANCES.values())]
    outcomes = [score(pipeline, data, seed=0) for data in files]
    real, *moved = (combined(outcome) for outcome in outcomes)
    found = {name: abs(one - real) for name, one in zip(NUISANCES, moved, strict=True)}
    other = combined(score(pipeline, plain, seed=1))
    return {**found, "another draw": abs(other - real), "mild": mild_fault(pipeline, plain)}


def score(pipeline: Pipeline, data: bytes, *, seed: int) -> Outcome:
    (outcome,) = pipeline.score_submissions([submission(data, context=Context(query_seed=seed))])
    return outcome


# --- the nuisances ------------------------------------------------------------------------------


def written(frames: Frames, fps: float, *, form: str, codec: str, pixels: str, options: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as output:
        stream = output.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=dict(options))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            output.mux(stream.encode(picture.reformat(format=pixels)))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def as_codec(form: str, codec: str, pixels: str = "yuv420p", **options: str) -> Nuisance:
    return lambda frames, fps: written(frames, fps, form=form, codec=codec, pixels=pixels, options=options)


def as_frames(change: Callable[[Frames], NDArray[np.generic]]) -> Nuisance:
    """The changed frames without loss."""

    def write(frames: Frames, fps: float) -> bytes:
        changed = np.rint(change(frames).astype(np.float32)).clip(0, 255).astype(np.uint8)
        return encoded(changed, range(len(changed)), fps)

    return write


def resized(share: float) -> Nuisance:
    def change(frames: Frames) -> Frames:
        height, width = (round(share * side / 2) * 2 for side in frames.shape[1:3])
        return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])

    return as_frames(change)


NUISANCES: Mapping[str, Nuisance] = {
    "mkv, lossless": as_codec("matroska", "ffv1", "bgr0"),
    "avi, mpeg4": as_codec("avi", "mpeg4", flags="+qscale", global_quality="354"),
    "h264, crf 23": as_codec("mp4", "libx264", crf="23"),
    "h264, crf 35": as_codec("mp4", "libx264", crf="35"),
    "vp9, crf 32": as_codec("webm", "libvpx-vp9", crf="32", b="0", deadline="realtime", **{"cpu-used": "6"}),
    "mjpeg": as_codec("mov", "mjpeg", "yuvj420p", qmin="3", qmax="3"),
    "half the size": resized(0.5),
    "one and a half times the size": resized(1.5),
    "mirrored": as_frames(lambda frames: frames[:, :, ::-1]),
    "letterboxed": as_frames(lambda frames: letterboxed(frames.astype(np.float32), BARS)),
    "grain of 5 levels": as_frames(lambda frames: noisy(frames.astype(np.float32), GRAIN, np.random.default_rng(0))),
}


# --- the figures --------------------------------------------------------------------------------


def summary(rows: list[dict[str, float]]) -> dict[str, object]:
    """The mean mild fault, and by nuisance the mean and the largest change in mild faults."""
    mild = float(np.mean([row["mild"] for row in rows]))
    found = {}
    for name in (*NUISANCES, "another draw"):
        moved = np.array([row[name] for row in rows]) / mild
        found[name] = {"mean": round(float(moved.mean()), 3), "largest": round(float(moved.max()), 3)}
    return {"mild": round(mild, 3), "in_mild_faults": found}


def table(rows: list[dict[str, float]]) -> Table:
    found = summary(rows)
    shown = Table("nuisance", "mean", "largest", title=f"change in mild faults of {found['mild']}", box=None)
    by_name = found["in_mild_faults"]
    assert isinstance(by_name, dict)
    for name, moved in by_name.items():
        met = "" if moved["mean"] <= TARGET else " (missed)"
        shown.add_row(name, f"{moved['mean']:.2f}{met}", f"{moved['largest']:.2f}")
    return shown


if __name__ == "__main__":
    main()
