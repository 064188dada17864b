"""`python -m trainer.proof`: base, arms, report. Resumable: what is finished in `--out` is not done again."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import torch
import typer

from trainer.proof.arms import Task, arms, run_arm
from trainer.proof.base import trained_base
from trainer.proof.report import write_report
from trainer.proof.scenes import SceneMix, draw_scenes
from trainer.proof.size import FULL, SMOKE, ProofSize
from trainer.seeds import derived_seed
from trainer.video import write_clip

log = logging.getLogger("trainer.proof")


def proof(
    *,
    out: Annotated[Path, typer.Option(help="Folder for base, arms and report; the same folder resumes.")] = Path(
        "runs/proof"
    ),
    seed: Annotated[int, typer.Option(help="Of the base, the data and the held-out first frames.")] = 0,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="The same code with small counts; its verdicts mean nothing.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Arms run side by side, each on one core.")] = min(2, os.cpu_count() or 1),
) -> None:
    """Train a toy base, fine-tune it in every arm of plan.md, and say which claims of the plan hold."""
    started = time.monotonic()
    size, folder = (SMOKE, out / f"smoke-{seed}") if smoke else (FULL, out / f"seed-{seed}")
    prepare(folder, size, seed=seed, threads=jobs)
    tasks = [
        Task(arm=arm, seed=seed, stream=stream, size=size, folder=folder)
        for stream in range(size.streams)
        for arm in arms(size)
    ]
    records = [json.loads(path.read_text()) for path in run_arms(tasks, jobs)]
    about = {"proof": "level-1", "seed": seed, "smoke": smoke, "steps": size.num_steps, "streams": size.streams}
    summary = write_report(records, folder / "report", about)
    typer.echo((folder / "report" / "report.txt").read_text())
    typer.echo(json.dumps({**summary, "seconds": round(time.monotonic() - started)}, allow_nan=False))


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
    typer.run(proof)


if __name__ == "__main__":
    main()
