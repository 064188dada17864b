"""Measures the cost of reading a clip: seconds and peak memory, by length, codec and way of reading.

    python -m benchmarks.reading [--seconds 10 60 120] [--folder /tmp/reading]

Each reading runs in its own process without torch, so that its peak memory is that of the reader and OpenCV. There
are three ways of reading:

- "views" reads as pretraining does: all random views of the file, in one pass.
- "windows" reads the server's four windows, at the profile's size.
- "whole" reads every frame from the start, at the profile's size.

The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.memory import peak_mib
from protos.reader import open_source
from reward_server.decoding.sampling import Sampling, profile_size, resize_frame, schedule
from reward_server.decoding.time_warnings import positions_of
from reward_server.training.source_views import ViewPlan, source_views

HEIGHT, WIDTH, FPS = 360, 640, 16  # 120 s are 1920 frames, within the default limits
MIB = 1024**2
CODECS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "h264": ("mp4", "libx264", "yuv420p", {"preset": "veryfast"}),
    "vp9": ("webm", "libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8", "b": "800k"}),
    "gif": ("gif", "gif", "rgb8", {}),
}
MODES = ("views", "windows", "whole")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file: its size, and the seconds and peak memory of each way of reading it."""

    codec: str
    seconds: int
    file_mib: float
    seconds_of: dict[str, float]
    peak_mib: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60, 120])
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), choices=list(CODECS))
    parser.add_argument("--folder", type=Path, default=Path("/tmp/reading"))
    parser.add_argument(
        "--read",
        nargs=2,
        metavar=("FILE", "MODE"),
        help="read one file in this process (MODE: views, windows or whole)",
    )
    args = parser.parse_args()
    if args.read:
        print(json.dumps(reading(Path(args.read[0]), args.read[1])))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = [row(args.folder, codec, seconds) for codec in args.codecs for seconds in args.seconds]
    print(table(rows))
    print(
        json.dumps({"benchmark": "reading", "size": f"{WIDTH}x{HEIGHT}", "fps": FPS, "rows": list(map(asdict, rows))})
    )


def row(folder: Path, codec: str, seconds: int) -> Row:
    path = folder / f"{codec}-{seconds}.{CODECS[codec][0]}"
    if not path.exists():
        write(path, codec, seconds)
    found = {mode: in_a_process(path, mode) for mode in MODES}
    return Row(
        codec=codec,
        seconds=seconds,
        file_mib=round(path.stat().st_size / MIB, 1),
        seconds_of={mode: one["seconds"] for mode, one in found.items()},
        peak_mib={mode: one["peak_mib"] for mode, one in found.items()},
    )


def in_a_process(path: Path, mode: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.reading", "--read", str(path), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def reading(path: Path, mode: str) -> dict[str, float]:
    """Read a file once. Returns seconds of CPU time, and the peak memory of this process in MiB."""
    cv2.setNumThreads(1)
    started = time.process_time()
    {"views": read_views, "windows": read_windows, "whole": read_whole}[mode](path)
    return {"seconds": round(time.process_time() - started, 2), "peak_mib": round(peak_mib(os.getpid()))}


def read_views(path: Path) -> None:
    plan = ViewPlan(
        sampling=Sampling(),
        frames_per_view=12,
        most_views=14,
        max_side_px=640,
        seed=(0,),
        tries=4,
        good=moves,
    )
    with open_source(path) as source:
        for _ in source_views(source, 0, None, plan):
            pass


def moves(view: Any) -> bool:
    return float(np.abs(np.diff(view.frames.astype(np.int16), axis=0)).mean()) >= 0.5


def read_windows(path: Path) -> None:
    with open_source(path) as source:
        wanted = positions_of(source.times_s, schedule(source.times_s, Sampling()))
        frames_of(source, np.unique(wanted).tolist())


def read_whole(path: Path) -> None:
    with open_source(path) as source:
        frames_of(source, list(range(source.times_s.size)))


def frames_of(source: Any, wanted: list[int]) -> None:
    size = profile_size(source.height_px, source.width_px, Sampling())
    for _ in source.frames(wanted, lambda picture: resize_frame(picture.rgb(), *size)):
        pass


def write(path: Path, codec: str, seconds: int) -> None:
    form, encoder, pix_fmt, options = CODECS[codec]
    partial = path.with_suffix(".partial")
    with av.open(str(partial), "w", format=form) as output:
        stream = cast(av.VideoStream, output.add_stream(encoder, rate=Fraction(FPS), options=options))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        for pixels in moving(seconds * FPS):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    partial.replace(path)


def moving(num_frames: int) -> Iterator[NDArray[np.uint8]]:
    """Frames of a camera that pans back and forth over a smooth texture."""
    coarse = np.random.default_rng(0).integers(0, 256, (60, 120, 3), dtype=np.uint8)
    ground = np.asarray(cv2.resize(coarse, (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_CUBIC), np.uint8)
    for at in range(num_frames):
        left, top = (abs(2 * at % (2 * WIDTH) - WIDTH), abs(at % (2 * HEIGHT) - HEIGHT))
        yield np.ascontiguousarray(ground[top : top + HEIGHT, left : left + WIDTH])


def table(rows: list[Row]) -> str:
    lines = [f"{'':6}{'s':>5}{'MiB':>7}" + "".join(f"{mode + ' s':>12}{'peak MiB':>10}" for mode in MODES)]
    for one in rows:
        figures = "".join(f"{one.seconds_of[mode]:12.2f}{one.peak_mib[mode]:10.0f}" for mode in MODES)
        lines.append(f"{one.codec:6}{one.seconds:5d}{one.file_mib:7.1f}{figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
