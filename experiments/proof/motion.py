"""Tests whether supervised fine-tuning loses motion and SHIFT with learned rewards restores it (Level 3).

It defines the arms and the two fine-tuning sets. Beyond the means of Level 1, it measures how far the speeds of
rollouts are from the data's, and how well an independent discriminator separates rollouts from real clips.
S streams, N held-out first frames, R rollouts of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import wasserstein_distance

from experiments.proof.arms import MEASURES, Arm, measured
from experiments.proof.plots import plot_motion
from experiments.proof.report import plain, table_of, time_over_sft, verdict_lines, write_clips
from experiments.proof.scenes import SceneMix, draw_scenes
from experiments.proof.size import ProofSize
from experiments.proof.sources import CUES, CueDiscriminator, logits, train_discriminator
from experiments.proof.verdicts import (
    Floats,
    Interval,
    Table,
    Verdict,
    above,
    difference,
    interval,
    percentile_interval,
)
from protos.types import Clip
from reward_server.stats import auc
from trainer.policies.protocol import Policy
from trainer.seeds import derived_seed
from trainer.video import write_clip

SetName = Literal["moving", "static"]
SETS: tuple[SetName, ...] = ("static", "moving")
SHOWN = ("base", "sft", "replay", "regression", "shift-fixed", "shift-low", "shift-mid", "shift-high")
COLUMNS = ("speed_px", "flow_px", "dynamic", "acceleration_px", "look_error")
FRESH_STEPS, FRESH_LR = 400, 5e-3


def motion_arms(size: ProofSize) -> list[Arm]:
    """The arms of Level 3. Those that the claim needs come first."""
    low, mid, high = size.logit_lambdas
    middle = {"lambda_aw": mid}
    return [
        Arm(name="base", reward="none", trained=False),
        Arm(name="sft", reward="none"),
        Arm(name="shift-mid", reward="learned", objective=middle, refreshed=True),
        Arm(name="shift-high", reward="learned", objective={"lambda_aw": high}, refreshed=True),
        Arm(name="shift-fixed", reward="learned", objective=middle),
        Arm(name="replay", reward="learned", objective={"weighting": "uniform", **middle}),
        Arm(name="regression", reward="learned", objective={"weighting": "exp", "beta": size.logit_beta, **middle}),
        Arm(name="shift-low", reward="learned", objective={"lambda_aw": low}, refreshed=True),
    ]


# --- the fine-tuning data -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DataMeasures:
    """MEASURES of real clips after the base's autoencoder: of the fine-tuning set, and of unseen clips like it."""

    train: Mapping[str, Sequence[float]]
    unseen: Mapping[str, Sequence[float]]


def fine_tuning_data(name: SetName, folder: Path, policy: Policy, size: ProofSize, *, seed: int) -> DataMeasures:
    """Write the set's clips to `folder`/train and measure them, once."""
    path = folder / "data.json"
    if not path.exists():
        mix = SceneMix(static_share=size.static_share if name == "static" else 0.0)
        train = _clips(size.num_train, seed, "train", mix)
        for number, clip in enumerate(train):
            write_clip(folder / "train" / f"{number:05d}.safetensors", clip)
        unseen = _clips(size.num_held_out * size.per_clip, seed, "unseen", mix)
        path.write_text(json.dumps([measured_clips(policy, clips, size) for clips in (train, unseen)]))
    return read_data(folder)


def read_data(folder: Path) -> DataMeasures:
    """The measures that `fine_tuning_data` saved."""
    train, unseen = json.loads((folder / "data.json").read_text())
    return DataMeasures(train=train, unseen=unseen)


def _clips(num: int, seed: int, what: str, mix: SceneMix) -> list[Clip]:
    return [scene.clip() for scene in draw_scenes(num, seed=derived_seed(seed, what), mix=mix)]


def measured_clips(policy: Policy, clips: Sequence[Clip], size: ProofSize) -> dict[str, list[float]]:
    """The MEASURES of clips after a pass through the policy's autoencoder."""
    examples = policy.encode(clips, [""] * len(clips))
    found = [measured(clip, size) for clip in policy.decode([example.latents for example in examples])]
    return {name: [one[name] for one in found] for name in MEASURES}


# --- what the rollouts show ---------------------------------------------------------------------


def samples_of(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Floats]]:
    """The records as arm -> measure -> [S,N,R]."""
    table: dict[str, dict[str, list[Any]]] = {}
    for record in sorted(records, key=lambda record: int(record["stream"])):
        arm = table.setdefault(record["arm"], {name: [] for name in MEASURES})
        for name in MEASURES:
            arm[name].append([row[name] for row in record["rows"]])
    return {arm: {name: np.array(values) for name, values in of.items()} for arm, of in table.items()}


def speed_distance(speeds_SNR: Floats, data: Sequence[float]) -> Interval:
    """Wasserstein distance of the rollouts' speeds from the data's, px per frame. First frames are resampled."""
    speeds_NM = np.moveaxis(speeds_SNR, 1, 0).reshape(speeds_SNR.shape[1], -1)
    rng = np.random.default_rng(0)
    rows = rng.integers(len(speeds_NM), size=(1000, len(speeds_NM)))
    drawn = [wasserstein_distance(speeds_NM[chosen].ravel(), data) for chosen in rows]
    return percentile_interval(float(wasserstein_distance(speeds_NM.ravel(), data)), drawn)


def fresh_auc(samples: Mapping[str, Floats], unseen: Mapping[str, Sequence[float]]) -> float:
    """AUC of a fresh discriminator on five measures, which no arm was trained with: unseen real clips against rollouts.

    It trains on one half of each and judges the other, in both directions, and the two AUCs are averaged. An AUC of 0.5
    means that it finds no difference. The halves of the rollouts share no first frame.
    """
    rollouts = torch.tensor(np.stack([samples[name] for name in CUES], axis=-1), dtype=torch.float32)
    real = torch.tensor(np.stack([unseen[name] for name in CUES], axis=-1), dtype=torch.float32)
    found = []
    for side in (0, 1):
        learnt_real, learnt = real[side::2], rollouts[:, side::2].flatten(0, 2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(side)
            judge = CueDiscriminator(torch.cat([learnt_real, learnt]))
        chosen = torch.Generator().manual_seed(side)
        train_discriminator(judge, learnt_real, learnt, steps=FRESH_STEPS, lr=FRESH_LR, generator=chosen)
        judged = rollouts[:, 1 - side :: 2].flatten(0, 2)
        found.append(auc(logits(judge, real[1 - side :: 2]), logits(judge, judged)))
    return float(np.mean(found))


# --- verdicts and the report --------------------------------------------------------------------


def motion_verdicts(table: Table, data_speed_px: float) -> list[Verdict]:
    """The three parts of plan.md's claim. `data_speed_px` is the mean speed of the fine-tuning set."""
    found = [above(table, "sft slower than base", "base", "sft", "speed_px")]
    claim = f"speed, data ({data_speed_px:.3f}) - sft > 0"
    if "sft" in table:
        missing = interval(data_speed_px - table["sft"]["speed_px"])
        found.append(Verdict(name="sft slower than data", claim=claim, interval=missing, holds=missing.low > 0))
    else:
        found.append(Verdict(name="sft slower than data", claim=claim, interval=None, holds=None))
    return [*found, above(table, "shift faster than sft", "shift-mid", "sft", "speed_px")]


def write_motion_report(
    records: Sequence[Mapping[str, Any]], data: DataMeasures, folder: Path, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write report.txt, motion.png and clips to `folder`. Returns the summary."""
    table, samples = table_of(records), samples_of(records)
    found = motion_verdicts(table, float(np.mean(data.train["speed_px"])))
    far = {arm: speed_distance(of["speed_px"], data.train["speed_px"]) for arm, of in samples.items()}
    fresh = {arm: fresh_auc(of, data.unseen) for arm, of in samples.items()}
    over_sft = {
        arm: {name: interval(difference(table, arm, "sft", name)) for name in ("speed_px", "flow_px", "look_error")}
        for arm in table
        if "sft" in table and arm != "sft"
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*_arm_lines(table, data, far, fresh), "", *verdict_lines(found), "", *_difference_lines(over_sft), ""]
    (folder / "report.txt").write_text("\n".join([*lines, *_buffer_lines(records)]) + "\n")
    plot_motion(samples, data.train["speed_px"], records, folder / "motion.png")
    write_clips([name for name in SHOWN if name in table], folder)
    return {
        **about,
        "data": {name: _mean(data.train[name]) for name in COLUMNS},
        "arms": {
            arm: {name: _mean(table[arm][name]) for name in COLUMNS}
            | {"wasserstein_px": round(far[arm].mean, 4), "fresh_auc": round(fresh[arm], 4)}
            for arm in table
        },
        "verdicts": {verdict.name: plain(verdict) for verdict in found},
        "time_over_sft": time_over_sft(records),
        "holds": all(verdict.holds for verdict in found),
    }


def _mean(values: Any) -> float:
    return round(float(np.mean(values)), 4)


def _arm_lines(table: Table, data: DataMeasures, far: Mapping[str, Interval], fresh: Mapping[str, float]) -> list[str]:
    lines = ["".join(["arm".ljust(14), *(name.rjust(17) for name in COLUMNS)]) + "   fresh AUC   Wasserstein, px"]
    rows = {"data": data.train} | dict(table)
    for arm, values in rows.items():
        means = "".join(f"{np.mean(values[name]):17.3f}" for name in COLUMNS)
        lines.append(f"{arm:14}{means}" + (f"{fresh[arm]:12.3f}   {far[arm]}" if arm in fresh else ""))
    return lines


def _difference_lines(over_sft: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    lines = ["minus sft's:"]
    for arm, of in over_sft.items():
        lines.append(f"  {arm:14}" + "   ".join(f"{name} {value}" for name, value in of.items()))
    return lines


def _buffer_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each buffer's advantages favoured, and the mean rewards of its real clips and rollouts."""
    lines = ["by buffer: rank correlation of the advantage with speed, look error; reward of real clips, of rollouts"]
    for record in records:
        history = record["history"]
        rewards = zip(history["reward_real/combined"], history["reward_rollouts/combined"], strict=True)
        for number, (favours, (real, rollouts)) in enumerate(zip(record["favours"], rewards, strict=False)):
            if favours:
                found = f"{favours['speed_px']:+.2f} {favours['look_error']:+.2f}   {real:+.2f} {rollouts:+.2f}"
                lines.append(f"  {record['arm']:14}{record['stream']} {number}   {found}")
    return lines
