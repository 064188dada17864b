"""Measures how much lost frames move the reward of a clip, against a mild fault.

    python -m benchmarks.variable_rate --real FOLDER [--clips 8] [--share 0.3] [--seeds 2]

Each file is written twice without loss: all of its first frames at a constant rate, and the same with a share of them
dropped at random and the others at their right times. Both are scored by the pipeline of this process. A mild fault
is the mean |reward(real) - reward(fault at strength 0.25)| over the faults that change the clip visibly.

The target is a change of at most 0.2 mild faults. A clip with dropped frames can be
refused, and is then counted. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from protos.reader import open_source
from protos.reader.source import shrunk
from protos.submissions import submission
from protos.types import Clip, Outcome
from reward_server.decoding.decode import decode
from reward_server.faults import LEAST_DIFFERENCE, NAMES, STRENGTHS, difference, with_fault
from reward_server.pipeline import Pipeline
from reward_server.settings import Settings

TARGET = 0.2  # mild faults
MOST_SECONDS, MAX_SIDE_PX = 6.0, 320  # of a file
TICKS = 90_000  # a second
Frames = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A clip: its rate, a mild fault, and its combined rewards with all frames and some dropped (None: refused)."""

    name: str
    fps: float
    seed: int
    even: float
    dropped: float | None
    fps_even: float
    fps_dropped: float | None
    mild: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, required=True, help="a folder of real clips")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2, help="how often frames are drawn for dropping")
    parser.add_argument("--share", type=float, default=0.3, help="the share of frames that is dropped")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    pipeline = Pipeline.load(Settings())
    files = spread_files(args.real, args.clips)
    rows = [one for path in files for one in rows_of(pipeline, path, args.share, args.seeds)]
    print(table(rows))
    found = {"benchmark": "variable_rate", "share": args.share, **summary(rows), "rows": list(map(asdict, rows))}
    print(json.dumps(found))


def spread_files(folder: Path, most: int) -> list[Path]:
    """At most `most` of the files, evenly spread over their names."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [files[at] for at in np.unique(np.linspace(0, len(files) - 1, most).round().astype(int))]


def rows_of(pipeline: Pipeline, path: Path, share: float, seeds: int) -> list[Row]:
    frames, fps = read(path)
    even = encoded(frames, range(len(frames)), fps)
    (whole,), mild = pipeline.score_submissions([submission(even)]), mild_fault(pipeline, even)
    rows: list[Row] = []
    for seed in range(seeds):
        kept = np.random.default_rng(seed).random(len(frames)) >= share
        kept[[0, -1]] = True
        dropped = encoded(frames, np.flatnonzero(kept).tolist(), fps)
        (outcome,) = pipeline.score_submissions([submission(dropped)])
        rows.append(
            Row(
                name=path.stem,
                fps=round(fps, 2),
                seed=seed,
                even=combined(whole),
                dropped=combined(outcome) if outcome.reward else None,
                fps_even=rate(whole),
                fps_dropped=rate(outcome) if outcome.reward else None,
                mild=mild,
            )
        )
    return rows


def mild_fault(pipeline: Pipeline, data: bytes) -> float:
    """The mean change of the combined reward by a fault of the least strength, over the first window of the clip."""
    sampling = pipeline.profile.sampling
    window = decode(submission(data), sampling, pipeline.model.limits, 60.0).windows[0].clip
    twins = [with_fault(window, name, STRENGTHS[0], seed=0) for name in NAMES]
    seen = [twin for twin in twins if visible(window, twin)]
    real, *faulty = (
        combined(one) for one in pipeline.score_submissions([submission(c.frames, fps=c.fps) for c in (window, *seen)])
    )
    return float(np.mean([abs(real - one) for one in faulty]))


def visible(window: Clip, twin: Clip) -> bool:
    return twin.fps != window.fps or difference(window, twin) >= LEAST_DIFFERENCE


def combined(outcome: Outcome) -> float:
    assert outcome.reward is not None, outcome.error
    return outcome.reward.combined


def rate(outcome: Outcome) -> float:
    assert outcome.reward is not None, outcome.error
    return round(outcome.reward.provenance.fps_used, 2)


def read(path: Path, side_px: int = MAX_SIDE_PX) -> tuple[Frames, float]:
    """The file's first frames, shrunk, [T,H,W,3] with even sides, and its rate."""
    with open_source(path) as source:
        wanted = range(min(source.times_s.size, int(MOST_SECONDS * source.fps)))
        frames = [frame for _, frame in source.frames(list(wanted), lambda one: shrunk(one, side_px))]
        height, width = frames[0].shape[0] // 2 * 2, frames[0].shape[1] // 2 * 2
        return np.stack([frame[:height, :width] for frame in frames]), source.fps


def encoded(frames: Frames, kept: Sequence[int], fps: float) -> bytes:
    """The kept frames at their times, without loss."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as output:
        stream = output.add_stream("qtrle", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "rgb24"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        for at in kept:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[at]), format="rgb24")
            frame.pts, frame.time_base = round(TICKS * at / fps), Fraction(1, TICKS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """The mean change over the scored clips, the mean mild fault, their ratio, and the median and largest ratio."""
    mild = float(np.mean([one.mild for one in rows]))
    moved = np.array([abs(one.even - one.dropped) for one in rows if one.dropped is not None]) / mild
    return {
        "pairs": len(rows),
        "refused": len(rows) - moved.size,
        "mild": mild,
        "mean_in_mild_faults": float(moved.mean()),
        "median_in_mild_faults": float(np.median(moved)),
        "largest_in_mild_faults": float(moved.max()),
        "share_within_target": float((moved <= TARGET).mean()),
        "target": TARGET,
    }


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'clip':44}{'seed':>5}{'fps':>7}{'even':>8}{'dropped':>9}{'rates':>14}{'mild':>7}"]
    for one in rows:
        dropped = "refused" if one.dropped is None else f"{one.dropped:.3f}"
        rates = f"{one.fps_even:g}/{one.fps_dropped or 0:g}"
        start = f"{one.name[:43]:44}{one.seed:5}{one.fps:7.2f}{one.even:8.3f}"
        lines.append(f"{start}{dropped:>9}{rates:>14}{one.mild:7.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
