"""Measures how much a change that leaves the motion as it is moves the reward, against a mild fault.

    python -m benchmarks.nuisances --real FOLDER [--clips 8]

Each clip is written without loss, then once for each nuisance: another container or codec, other sizes, mirrored,
letterboxed, with noise, denoised in time, stabilised. All are scored by the pipeline of this process, with the same
draw of query points; "another draw" changes that alone. A mild fault is that of `benchmarks.variable_rate`, which
measures lost frames.

The target is a mean change of at most 0.2 mild faults. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.variable_rate import TARGET, Frames, combined, encoded, mild_fault, read, spread_files
from protos.reader.source import resized
from protos.submissions import submission
from protos.types import Clip, Context, Outcome
from reward_server.capture.smoothing import smoothed
from reward_server.decoding import encode
from reward_server.evaluation.looks import letterboxed, noisy
from reward_server.pipeline import Pipeline
from reward_server.settings import Settings

SIDE_PX = 640
NOISE = 5.0  # gray levels
BARS = 0.2  # of the height
Nuisance = Callable[[Frames, float], bytes]
"""Writes the frames [T,H,W,3] of a clip with a rate, changed in some way, into a file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, required=True, help="a folder of real clips")
    parser.add_argument("--clips", type=int, default=8)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    pipeline = Pipeline.load(Settings())
    rows = [changes(pipeline, *read(path, SIDE_PX)) for path in spread_files(args.real, args.clips)]
    mild, moved = float(np.mean([row["mild"] for row in rows])), in_mild_faults(rows)
    Console().print(table(moved, mild))
    found = {"benchmark": "nuisances", "clips": len(rows), "target": TARGET, "mild": round(mild, 3)}
    print(json.dumps({**found, "in_mild_faults": moved}))


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


def as_codec(container: str, codec: str, pixels: str = "yuv420p", **options: str) -> Nuisance:
    return lambda frames, fps: encode.encoded(
        frames, fps, codec=codec, options=options, container=container, pixels=pixels
    )


def as_frames(change: Callable[[Frames], NDArray[np.generic]]) -> Nuisance:
    """The changed frames without loss."""

    def write(frames: Frames, fps: float) -> bytes:
        changed = np.rint(change(frames).astype(np.float32)).clip(0, 255).astype(np.uint8)
        return encoded(changed, range(len(changed)), fps)

    return write


def as_smoothed(name: str) -> Nuisance:
    """The frames through the denoiser or the stabiliser of pretraining."""

    def change(frames: Frames) -> Frames:
        clip = Clip(frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), fps=1.0)
        return smoothed(clip, name).frames.transpose(0, 2, 3, 1)

    return as_frames(change)


def scaled(share: float) -> Nuisance:
    def change(frames: Frames) -> Frames:
        height, width = (round(share * side / 2) * 2 for side in frames.shape[1:3])
        return np.stack([resized(frame, height, width) for frame in frames])

    return as_frames(change)


NUISANCES: Mapping[str, Nuisance] = {
    "mkv, lossless": as_codec("matroska", "ffv1", "bgr0"),
    "avi, mpeg4": as_codec("avi", "mpeg4", flags="+qscale", global_quality="354"),  # 3 times FFmpeg's FF_QP2LAMBDA
    "h264, crf 23": as_codec("mp4", "libx264", crf="23"),
    "h264, crf 35": as_codec("mp4", "libx264", crf="35"),
    "h265, crf 28": as_codec("mp4", "libx265", crf="28", **{"x265-params": "log-level=none"}),
    "vp9, crf 32": as_codec("webm", "libvpx-vp9", crf="32", b="0", deadline="realtime", **{"cpu-used": "6"}),
    "mjpeg": as_codec("mov", "mjpeg", "yuvj420p", qmin="3", qmax="3"),
    "half the size": scaled(0.5),
    "one and a half times the size": scaled(1.5),
    "mirrored": as_frames(lambda frames: frames[:, :, ::-1]),
    "letterboxed": as_frames(lambda frames: letterboxed(frames.astype(np.float32), BARS)),
    f"noise of {NOISE:g} levels": as_frames(
        lambda frames: noisy(frames.astype(np.float32), NOISE, np.random.default_rng(0))
    ),
    "denoised in time": as_smoothed("denoised"),
    "stabilised": as_smoothed("stabilised"),
}


# --- the figures --------------------------------------------------------------------------------


def in_mild_faults(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """By nuisance, the mean and the largest change over clips, in mean mild faults."""
    mild = np.mean([row["mild"] for row in rows])
    moved = {name: np.array([row[name] for row in rows]) / mild for name in (*NUISANCES, "another draw")}
    return {
        name: {"mean": round(float(of.mean()), 3), "largest": round(float(of.max()), 3)} for name, of in moved.items()
    }


def table(moved: Mapping[str, Mapping[str, float]], mild: float) -> Table:
    shown = Table("nuisance", "mean", "largest", title=f"change in mild faults of {mild:.2f}", box=None)
    for name, of in moved.items():
        missed = "" if of["mean"] <= TARGET else " (missed)"
        shown.add_row(name, f"{of['mean']:.2f}{missed}", f"{of['largest']:.2f}")
    return shown


if __name__ == "__main__":
    main()
