"""Measures the peak memory of reading the largest lawful files, for every user of the reader.

    python -m benchmarks.reading_memory [--folder /tmp/reading_memory]

The files are within the server's default limits: 4K frames in gif, animated webp and mp4, a webp of 1440p without loss
and tensors, both of about 250 MiB. Each reading runs in its own process. Its peak is what it needs on top of what the
process and the file's bytes take before: the server gets a clip as bytes in memory, the other users read a path. The
users are:

- "server" decodes the windows of the `embedded` profile.
- "pretrain" reads all random views of the file.
- "shot" reads a clip as `sanity` and `evaluate` do; its result of at most 96 MiB of frames counts too.
- "trainer" reads one clip of 14 frames at 576x320.

The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

from benchmarks.memory import peak_mib
from benchmarks.reading import MIB, read_views
from protos.codec import RANGES
from protos.types import Limits, Media, Submission
from reward_server.data.shots import Shot
from reward_server.decoding.decode import decode
from reward_server.decoding.sampling import Sampling
from reward_server.settings import Settings
from trainer.video import ClipForm, read_clip

TARGET_MIB = 300
HEIGHT, WIDTH, FPS = 2160, 3840, 24  # the largest frame within the default limits
LARGE_HEIGHT, LARGE_WIDTH = 1440, 2560
TENSOR_HEIGHT, TENSOR_WIDTH = 720, 1280
TENSOR_BYTES = 250 * MIB
TENSORS = {"uint8": ("U8", np.uint8), "float16": ("F16", np.float16), "float32": ("F32", np.float32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/reading_memory"))
    parser.add_argument("--files", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--read", nargs=2, metavar=("FILE", "USER"), help="read one file in this process")
    args = parser.parse_args()
    if args.read:
        print(json.dumps(extra_mib(Path(args.read[0]), args.read[1])))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    found = {name: row(args.folder / name) for name in args.files}
    print(table(found))
    print(json.dumps({"benchmark": "reading_memory", "target_mib": TARGET_MIB, "extra_mib": found}))


def row(path: Path) -> dict[str, float]:
    """The file's size and the extra memory of each user, in MiB."""
    if not path.exists():
        FILES[path.name](path)
    size = round(path.stat().st_size / MIB, 1)
    return {"file": size, **{user: _in_a_process(path, user) for user in USERS}}


def _in_a_process(path: Path, user: str) -> float:
    command = [sys.executable, "-m", "benchmarks.reading_memory", "--read", str(path), user]
    return float(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def extra_mib(path: Path, user: str) -> float:
    """Peak memory of one reading on top of this process, and of the file's bytes for the server, in MiB."""
    cv2.setNumThreads(1)
    read = USERS[user](path)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is in use now
    before = peak_mib(os.getpid())
    read()
    return peak_mib(os.getpid()) - before


def _server(path: Path) -> Callable[[], object]:
    settings = Settings()
    limits = Limits(**{name: getattr(settings, name) for name in Limits.__dataclass_fields__})
    media = Media.TENSOR if path.suffix == ".safetensors" else Media.CONTAINER
    submission = Submission(payload=path.read_bytes(), media=media)
    return partial(decode, submission, Sampling(), limits, 3600.0)


def _trainer(path: Path) -> Callable[[], object]:
    return partial(read_clip, path, ClipForm(num_frames=14, fps=24, height_px=320, width_px=576))


USERS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "server": _server,
    "pretrain": lambda path: partial(read_views, path),
    "shot": lambda path: Shot(path=path).clip,
    "trainer": _trainer,
}


def _moving(num_frames: int, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Frames of a camera that pans over a smooth texture."""
    coarse = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    size = (width + 8 * num_frames, height + 4 * num_frames)
    ground = np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    for at in range(num_frames):
        yield np.ascontiguousarray(ground[4 * at : 4 * at + height, 8 * at : 8 * at + width])


def _video(encoder: str, pix_fmt: str, num_frames: int, path: Path, /, **options: str) -> None:
    with av.open(str(path), "w") as output:
        stream = cast(av.VideoStream, output.add_stream(encoder, rate=Fraction(FPS), options=options))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        for pixels in _moving(num_frames, HEIGHT, WIDTH):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))


def _webp(path: Path) -> None:
    first, *others = (Image.fromarray(pixels) for pixels in _moving(36, HEIGHT, WIDTH))
    first.save(path, save_all=True, append_images=others, duration=1000 // FPS, quality=60, method=0)


def _large_webp(path: Path) -> None:
    """22 frames of noise, which cannot be compressed without loss: 233 MiB."""
    rng = np.random.default_rng(0)
    size = (LARGE_HEIGHT, LARGE_WIDTH, 3)
    first, *others = (Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for _ in range(22))
    lasts_ms = 1000 // FPS
    first.save(path, save_all=True, append_images=others, duration=lasts_ms, lossless=True, quality=0, method=0)


def _tensor(path: Path) -> None:
    name, dtype = TENSORS[path.stem]
    num = TENSOR_BYTES // (3 * TENSOR_HEIGHT * TENSOR_WIDTH * np.dtype(dtype).itemsize)
    frames = np.zeros((num, 3, TENSOR_HEIGHT, TENSOR_WIDTH), dtype)
    for at, pixels in enumerate(_moving(num, TENSOR_HEIGHT, TENSOR_WIDTH)):
        frames[at] = (pixels if name == "U8" else pixels / 255).transpose(2, 0, 1)
    save_file({"frames": frames}, path, metadata={"layout": "TCHW", "range": RANGES[name], "fps": str(FPS)})


PQ = "log-level=none:bframes=4:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
FILES: dict[str, Callable[[Path], None]] = {
    "4k.gif": partial(_video, "gif", "rgb8", 36),
    "4k.webp": _webp,
    "large.webp": _large_webp,
    "4k.mp4": partial(_video, "libx264", "yuv420p", 72),
    "hdr.mp4": partial(_video, "libx265", "yuv420p10le", 36, **{"preset": "ultrafast", "x265-params": PQ}),
    "interlaced.mp4": partial(_video, "libx264", "yuv420p", 36, **{"preset": "ultrafast", "flags": "+ildct+ilme"}),
    "alpha.mov": partial(_video, "prores_ks", "yuva444p10le", 36),
    **{f"{name}.safetensors": _tensor for name in TENSORS},
}


def table(found: dict[str, dict[str, float]]) -> str:
    lines = [f"{'MiB':22}{'file':>8}" + "".join(f"{user:>10}" for user in USERS)]
    for name, one in found.items():
        lines.append(f"{name:22}{one['file']:8.1f}" + "".join(f"{one[user]:10.0f}" for user in USERS))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
