"""Runs the third plan (plan3.md) on one seed: its bases, data, discriminators and arms.

Part `damped` fine-tunes a base that moves at half speed on data at full speed. Part `static` fine-tunes a base at full
speed on data that stand still in part, with a moving reference set for the discriminators.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from experiments.proof.arms import Arm, Task
from experiments.proof.base import policy_config
from experiments.proof.discriminators import served
from experiments.proof.heads import measure_heads, positives_of, pretrained, recipes
from experiments.proof.motion import measured_clips
from experiments.proof.running import arm_records, chosen_arms, prepare
from experiments.proof.scenes import SceneMix
from experiments.proof.size import ProofSize
from trainer.policies.loading import make_policy
from trainer.policies.protocol import Policy

PartName = Literal["damped", "static"]
PARTS: tuple[PartName, ...] = ("damped", "static")
DAMPED_PACE = 0.5


def restoring_arms(part: PartName, size: ProofSize) -> list[Arm]:
    """The arms of a part. All that train on rollouts have the same dose."""
    dosed = {"lambda_aw": 0.0, "aw_dose": size.dose}
    first = "plain" if part == "damped" else "reference"
    learned = partial(Arm, reward="learned", objective=dosed)
    shift = partial(learned, heads=first, referenced=part == "static")
    shared = [
        Arm(name="base", reward="none", trained=False),
        Arm(name="sft", reward="none", objective={"lambda_aw": 0.0}),
        Arm(name="replay", objective={"weighting": "uniform", **dosed}),
        Arm(name="known", objective=dosed),
        shift(name="shift-refreshed", refreshed=True),
        shift(name="shift-fixed"),
    ]
    if part == "static":
        return [*shared, learned(name="shift-own", heads="own", refreshed=True)]
    return [*shared, learned(name="fixed-noise", heads="noise"), learned(name="fixed-pixels", heads="pixels")]


def data_mix(part: PartName, size: ProofSize) -> SceneMix:
    """The scenes that a part fine-tunes on."""
    return SceneMix(static_share=size.static_share if part == "static" else 0.0)


def run_part(
    part: PartName,
    folder: Path,
    size: ProofSize,
    *,
    seed: int,
    jobs: int,
    only: Sequence[str] | None = None,
    streams: int | None = None,
) -> None:
    """Run a part of the plan on a seed into `folder`. What is there already is kept."""
    size = replace(size, base=replace(size.base, mix=SceneMix(pace=DAMPED_PACE if part == "damped" else 1.0)))
    prepare(folder, size, seed=seed, mix=data_mix(part, size))
    policy = make_policy(policy_config(folder / "base", size.base))
    write_speeds(folder / "data.json", part, policy, size, seed=seed)
    chosen = chosen_arms(restoring_arms(part, size), only)
    num_streams, heads = streams or size.streams, folder / "heads"
    task = partial(Task, seed=seed, size=size, folder=folder)
    arm_records([arm for arm in chosen if not arm.heads], num_streams, jobs, task)
    for name, recipe in recipes(part, size).items():
        using = [arm for arm in chosen if arm.heads == name]
        results = [task(arm=arm, stream=stream).result for arm in using for stream in range(num_streams)]
        if all(path.exists() for path in (heads / f"{name}.json", *results)):
            continue  # no server need start
        discriminators = pretrained(heads, name, recipe, policy, size, seed=seed)
        with served(discriminators, size.discriminators) as url:
            measure_heads(heads, name, url, policy, size, seed=seed)
            arm_records(using, num_streams, jobs, partial(task, server=url))


def write_speeds(path: Path, part: PartName, policy: Policy, size: ProofSize, *, seed: int) -> None:
    """Save the MEASURES of the clips whose motion the arms should have, after the base's autoencoder, once."""
    if not path.exists():
        path.write_text(json.dumps(measured_clips(policy, positives_of(part, size, seed), size)))
