"""`python -m trainer.proof mechanism | clips | rewards`: Level 1, and the two halves of Level 2 (plan.md).

Resumable: what is finished in `--out` is not done again.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from protos.client import RewardClient, RewardClientError
from trainer.errors import ConfigError, TrainerError
from trainer.policies.loading import make_policy
from trainer.proof.arms import Task, arms, run_arm
from trainer.proof.base import policy_config, trained_base
from trainer.proof.learned import direction, groups_of, pretraining_clips, score_groups
from trainer.proof.report import write_report
from trainer.proof.scenes import SceneMix, draw_scenes
from trainer.proof.size import SIZES, ProofSize
from trainer.proof.verdicts import Interval
from trainer.seeds import derived_seed
from trainer.video import write_clip

log = logging.getLogger("trainer.proof")


app = typer.Typer(help="SHIFT on a toy base; trainer/proof/plan.md says what is claimed.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder for base, arms and report; the same folder resumes.")]
Seed = Annotated[int, typer.Option(help="Of the base, the data and the held-out first frames.")]
Size = Annotated[
    Literal["full", "pilot", "smoke"],
    typer.Option(help="full: what plan.md means. pilot: a weak base and one stream. smoke: verdicts mean nothing."),
]
Only = Annotated[list[str] | None, typer.Option(help="Run this arm, may be repeated; none: all of them.")]
Jobs = Annotated[int, typer.Option(min=1, help="Arms run side by side, each on one core.")]
OUT = Path("runs/proof")
TWO_CORES = min(2, os.cpu_count() or 1)


@app.command()
def mechanism(
    *, out: Out = OUT, seed: Seed = 0, size: Size = "full", jobs: Jobs = TWO_CORES, only: Only = None
) -> None:
    """Train a toy base, fine-tune it in every arm of plan.md, and say which claims of the plan hold."""
    started = time.monotonic()
    counts, folder = SIZES[size], out / f"{size}-{seed}"
    prepare(folder, counts, seed=seed, threads=jobs)
    if unknown := set(only or ()) - {arm.name for arm in arms(counts)}:
        raise ConfigError(f"there is no arm {sorted(unknown)}; give some of {[arm.name for arm in arms(counts)]}")
    tasks = [
        Task(arm=arm, seed=seed, stream=stream, size=counts, folder=folder)
        for stream in range(counts.streams)
        for arm in arms(counts)
        if not only or arm.name in only
    ]
    records = [json.loads(path.read_text()) for path in run_arms(tasks, jobs)]
    about = {"proof": "level-1", "seed": seed, "size": size, "steps": counts.num_steps, "streams": counts.streams}
    summary = write_report(records, folder / "report", about)
    typer.echo((folder / "report" / "report.txt").read_text())
    typer.echo(json.dumps({**summary, "seconds": round(time.monotonic() - started)}, allow_nan=False))


@app.command()
def clips(
    *,
    to: Annotated[Path, typer.Option(help="Folder for real/ and generated/.")],
    num: Annotated[int, typer.Option(min=1, help="Clips of each.")] = 128,
    out: Out = OUT,
    seed: Seed = 0,
    size: Size = "full",
) -> None:
    """Write real scenes and the base's rollouts from their first frames, for `motion-reward pretrain`."""
    counts, folder = SIZES[size], out / f"{size}-{seed}"
    prepare(folder, counts, seed=seed, threads=os.cpu_count() or 1)
    scenes = draw_scenes(num, seed=derived_seed(seed, "pretrain"))
    policy = make_policy(policy_config(folder / "base", counts.base))
    pretraining_clips(groups_of(policy, [scene.clip() for scene in scenes], 1, seed=seed), to)
    typer.echo(f"wrote {num} real and {num} generated clips to {to}")


@app.command()
def rewards(
    *,
    server: Annotated[str, typer.Option(help="The reward server, grpc://HOST:PORT or http://HOST:PORT.")],
    num: Annotated[int, typer.Option(min=2, help="Held-out scenes.")] = 32,
    per_clip: Annotated[int, typer.Option(min=2, help="Rollouts of each.")] = 6,
    timeout_s: Annotated[float, typer.Option(help="For all rewards together.")] = 600.0,
    out: Out = OUT,
    seed: Seed = 0,
    size: Size = "full",
) -> None:
    """Say whether a server's rewards point the right way on held-out scenes and rollouts of the base."""
    counts, folder = SIZES[size], out / f"{size}-{seed}"
    prepare(folder, counts, seed=seed, threads=os.cpu_count() or 1)
    scenes = draw_scenes(num, seed=derived_seed(seed, "held out"))
    policy = make_policy(policy_config(folder / "base", counts.base))
    groups = groups_of(policy, [scene.clip() for scene in scenes], per_clip, seed=seed)
    with RewardClient(server) as client:
        found = direction(score_groups(groups, client, timeout_s=timeout_s))
    for head, of in found.items():
        parts = "   ".join(f"{name} {value}" for name, value in of.items())
        typer.echo(f"{head:14} {parts}")
    plain = {
        head: {name: asdict(value) if isinstance(value, Interval) else value for name, value in of.items()}
        for head, of in found.items()
    }
    typer.echo(json.dumps({"proof": "level-2", "seed": seed, "size": size, "heads": plain}, allow_nan=False))


def prepare(folder: Path, size: ProofSize, *, seed: int, threads: int) -> None:
    """The trained base and the files of the fine-tuning set."""
    torch.set_num_threads(threads)
    mix = SceneMix(glow_share=0.5)
    scenes = draw_scenes(size.base.num_scenes, seed=derived_seed(seed, "base"), mix=mix)
    trained_base(folder, [scene.clip() for scene in scenes], size.base, seed=seed)
    for number, scene in enumerate(draw_scenes(size.num_train, seed=derived_seed(seed, "train"))):
        path = folder / "train" / f"{number:05d}.safetensors"
        if not path.exists():
            write_clip(path, scene.clip())


def run_arms(tasks: list[Task], jobs: int) -> list[Path]:
    """Results in the order of the tasks."""
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    results = []
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        for number, path in enumerate(pool.map(run_arm, tasks), 1):
            log.info("%d of %d arms: %s", number, len(tasks), path.stem)
            results.append(path)
    return results


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        app()
    except (TrainerError, RewardClientError) as error:
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
