"""Runs the proof: `python -m experiments.proof mechanism | rewards | motion | seeds | restore`.

The first three commands are the levels of plan.md; `seeds` combines Level 3 over data seeds. `restore` is plan3.md.
A run can be resumed: results that are already in `--out` are kept.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from experiments.proof.arms import Task, arms
from experiments.proof.base import policy_config
from experiments.proof.discriminators import Negatives, named, reward_server
from experiments.proof.learned import direction, groups_of, score_groups
from experiments.proof.motion import SETS, fine_tuning_data, motion_arms, write_motion_report
from experiments.proof.report import write_report
from experiments.proof.restored import read_runs
from experiments.proof.restored_report import write_restored
from experiments.proof.restoring import PARTS, PartName, run_part
from experiments.proof.running import arm_records, chosen_arms, prepare
from experiments.proof.scenes import draw_scenes
from experiments.proof.size import SIZES
from experiments.proof.together import read_seed, write_together
from experiments.proof.verdicts import Interval
from protos.client import RewardClient, RewardClientError
from reward_server.errors import RewardServerError
from trainer.errors import TrainerError
from trainer.policies.loading import make_policy
from trainer.seeds import derived_seed

app = typer.Typer(help="Test SHIFT on a toy base; experiments/proof/plan.md has the claims.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder for base, arms and report; the same folder resumes.")]
Seed = Annotated[int, typer.Option(help="Seed of the base, the data and the held-out first frames.")]
Size = Annotated[
    Literal["full", "long", "third", "short", "pilot", "smoke"],
    typer.Option(
        help="full: the size of plan.md. long: its second plan, with twice the steps and a third of the lambdas. "
        "third: the size of plan3.md. "
        "short: the base trains a third as long. pilot: a weak base and one stream. "
        "smoke: a quick test, whose verdicts mean nothing."
    ),
]
Only = Annotated[list[str] | None, typer.Option(help="Run only this arm; may be repeated. Default: all arms.")]
Jobs = Annotated[int, typer.Option(min=1, help="Arms that run side by side, with one thread each.")]
OneOrBoth = Annotated[Literal["static", "moving", "both"], typer.Option(help="Which fine-tuning set.")]
Streams = Annotated[int | None, typer.Option(min=1, help="Fine-tunings of every arm. Default: the size's.")]
Server = Annotated[
    str | None,
    typer.Option(help="A running reward server, grpc://HOST:PORT. Default: pretrain discriminators and serve them."),
]
NegativesOption = Annotated[
    Negatives,
    typer.Option(help="Negatives in pretraining the discriminators: the base's rollouts, or faults of real clips."),
]
OUT = Path("runs/proof")
TWO_CORES = min(2, os.cpu_count() or 1)


@app.command()
def mechanism(
    *,
    out: Out = OUT,
    seed: Seed = 0,
    size: Size = "long",
    jobs: Jobs = TWO_CORES,
    only: Only = None,
    streams: Streams = None,
) -> None:
    """Train a toy base, fine-tune it in every arm of plan.md, and report which claims of the plan hold."""
    started = time.monotonic()
    counts, folder = SIZES[size], out / f"{size}-{seed}"
    num_streams = streams or counts.streams
    prepare(folder, counts, seed=seed)
    chosen = chosen_arms(arms(counts), only)
    records = arm_records(chosen, num_streams, jobs, partial(Task, seed=seed, size=counts, folder=folder))
    about = {"proof": "level-1", "seed": seed, "size": size, "steps": counts.num_steps, "streams": num_streams}
    summary = write_report(records, folder / "report", about)
    typer.echo((folder / "report" / "report.txt").read_text())
    typer.echo(json.dumps({**summary, "seconds": round(time.monotonic() - started)}, allow_nan=False))


@app.command()
def rewards(
    *,
    server: Server = None,
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait for all rewards together.")] = 600.0,
    out: Out = OUT,
    seed: Seed = 0,
    size: Size = "full",
    jobs: Jobs = TWO_CORES,
    negatives: NegativesOption = "rollouts",
) -> None:
    """Report whether learned rewards point the right way, on held-out scenes and rollouts of the base."""
    counts, folder = SIZES[size], out / f"{size}-{seed}"
    prepare(folder, counts, seed=seed)
    policy = make_policy(policy_config(folder / "base", counts.base))
    scenes = draw_scenes(counts.discriminators.num_held_out, seed=derived_seed(seed, "held out"))
    groups = groups_of(policy, [scene.clip() for scene in scenes], counts.discriminators.per_clip, seed=seed)
    with (
        reward_server(server, folder, policy, counts.discriminators, seed=seed, negatives=negatives) as url,
        RewardClient(url) as client,
    ):
        found = direction(score_groups(groups, client, timeout_s=timeout_s))
    for discriminator, of in found.items():
        parts = "   ".join(f"{name} {value}" for name, value in of.items())
        typer.echo(f"{discriminator:14} {parts}")
    plain = {
        discriminator: {name: asdict(value) if isinstance(value, Interval) else value for name, value in of.items()}
        for discriminator, of in found.items()
    }
    about = {"proof": "level-2", "seed": seed, "size": size, "negatives": negatives}
    line = json.dumps({**about, "discriminators": plain}, allow_nan=False)
    (folder / f"{named('rewards', negatives)}.json").write_text(line + "\n")
    typer.echo(line)


@app.command()
def motion(
    *,
    out: Out = OUT,
    seed: Seed = 100,
    size: Size = "full",
    jobs: Jobs = TWO_CORES,
    only: Only = None,
    on: OneOrBoth = "both",
    streams: Streams = None,
    server: Server = None,
    negatives: NegativesOption = "rollouts",
) -> None:
    """Test whether fine-tuning loses motion and SHIFT with learned rewards restores it. Reports on each set."""
    started = time.monotonic()
    counts, folder = SIZES[size], out / f"{size}-{seed}"
    num_streams = streams or counts.motion_streams
    chosen = chosen_arms(motion_arms(counts), only)
    prepare(folder, counts, seed=seed)
    policy = make_policy(policy_config(folder / "base", counts.base))
    found = {}
    with reward_server(server, folder, policy, counts.discriminators, seed=seed, negatives=negatives) as url:
        for name in SETS if on == "both" else (on,):
            level = named(f"motion-{name}", negatives)
            data = fine_tuning_data(name, folder / level, policy, counts, seed=seed)
            task = partial(Task, seed=seed, size=counts, folder=folder, level=level, server=url)
            records = arm_records(chosen, num_streams, jobs, task)
            about = {"steps": counts.num_steps, "streams": num_streams}
            found[name] = write_motion_report(records, data, folder / level / "report", about)
            typer.echo(f"{name}\n{(folder / level / 'report' / 'report.txt').read_text()}")
    summary = {"proof": "level-3", "seed": seed, "size": size, "negatives": negatives, "sets": found}
    typer.echo(json.dumps({**summary, "seconds": round(time.monotonic() - started)}, allow_nan=False))


@app.command()
def seeds(
    *,
    seed: Annotated[list[int], typer.Option(help="A seed for which `motion` has run; repeat it for each.")],
    out: Out = OUT,
    size: Size = "full",
    on: OneOrBoth = "both",
    negatives: NegativesOption = "rollouts",
) -> None:
    """Combine the results of `motion` over data seeds. The plan's claim holds if it holds on every seed."""
    found, folder = {}, out / named(f"{size}-seeds", negatives)
    for name in SETS if on == "both" else (on,):
        runs = [read_seed(out / f"{size}-{one}" / named(f"motion-{name}", negatives), one) for one in seed]
        found[name] = write_together(runs, name, folder)
        typer.echo(f"{name}\n{(folder / f'{name}.txt').read_text()}")
    about = {"proof": "level-3-seeds", "size": size, "negatives": negatives}
    typer.echo(json.dumps({**about, "sets": found}, allow_nan=False))


@app.command()
def restore(
    *,
    seed: Annotated[list[int], typer.Option(help="A data seed of plan3.md; repeat it for each.")],
    out: Out = OUT,
    size: Size = "third",
    jobs: Jobs = TWO_CORES,
    on: Annotated[Literal["damped", "static", "both"], typer.Option(help="Which part of plan3.md.")] = "both",
    only: Only = None,
    streams: Streams = None,
) -> None:
    """Run the third plan on each seed, and report its verdicts over them. Seeds that have run are only reported."""
    counts, places = SIZES[size], [out / f"{size}-{one}" for one in seed]
    parts: tuple[PartName, ...] = PARTS if on == "both" else (on,)
    found = {}
    for part in parts:
        for one, place in zip(seed, places, strict=True):
            run_part(part, place / part, counts, seed=one, jobs=jobs, only=only, streams=streams)
        folder = out / f"{size}-restored" / "-".join(map(str, seed)) / part
        found[part] = write_restored(part, read_runs(part, places, seed), folder)
        typer.echo(f"{part}\n{(folder / 'report.txt').read_text()}")
    typer.echo(json.dumps({"proof": "third-plan", "seeds": seed, "size": size, "parts": found}, allow_nan=False))


def end_on_sigterm() -> None:
    """Exit normally on SIGTERM, so that the reward server and the running arms are stopped too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def main() -> None:
    end_on_sigterm()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        app()
    except (TrainerError, RewardClientError, RewardServerError, subprocess.CalledProcessError) as error:
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
