"""Implements the commands `rollout` and `evaluate`.

`rollout` writes a policy's samples as clip files. `evaluate` compares a checkpoint with its base on held-out first
frames: it scores the real clip, the base's samples and the checkpoint's samples as one group on the reward server. Both
commands use the same first frames and seeds every time. measures/comparison.py computes the figures.
"""

from __future__ import annotations

import csv
import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from protos.client import RewardClient
from protos.codec import clip_to_tensor
from protos.types import DYNAMICS, Clip, Context, Media, Origin, Outcome, Submission
from trainer.checkpoint import Checkpoints, load_trainable, read_about, trainable
from trainer.config import Config, differences
from trainer.data import Clips, RealClip, Split, find_sources
from trainer.errors import CheckpointError, RewardsSilent
from trainer.measures.comparison import KINDS, motion_distances, summarise
from trainer.measures.dynamics import DynamicDegree, dynamic_degree
from trainer.measures.tracks import TrackMotion, track_motion
from trainer.policies.protocol import Example, Policy
from trainer.report.evaluation import write_evaluation
from trainer.run import form_of, open_accelerator, open_policy, warn_of_pixels
from trainer.seeds import derived_seed
from trainer.video import side_by_side, write_clip

log = logging.getLogger(__name__)

SHOWN = (".mp4", ".gif")
BASE_KEYS = ("policy.model", "policy.base", "policy.lora", "policy.sft_lora")  # a checkpoint's weights fit only these


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One clip of the evaluation, with its measured motion."""

    clip: int  # number of the first frame
    path: str  # of the real clip that the first frame comes from
    kind: str  # one of KINDS: real, base or checkpoint
    at: int  # index among the samples of this kind for this first frame
    degree: DynamicDegree
    motion: TrackMotion
    job_id: str

    def row(self, outcome: Outcome) -> dict[str, Any]:
        """A row of the table. Without a reward, rewards and dynamics are None and `error` is the reason."""
        reward, error = outcome.reward, outcome.error
        dynamics = reward and reward.dynamics
        return {
            "clip": self.clip,
            "path": self.path,
            "kind": self.kind,
            "at": self.at,
            "combined": reward.combined if reward else None,
            "instantaneous": reward.instantaneous if reward else None,
            "long_term": reward.long_term if reward else None,
            "flow_px": self.degree.flow_px,
            "dynamic": self.degree.dynamic,
            "speed_px_s": _mean(self.motion.speeds_px_s),
            "acceleration_px_s2": _mean(self.motion.accelerations_px_s2),
            **{name: getattr(dynamics, name) if dynamics else None for name in DYNAMICS},
            "error": error.code if error else "",
        }


def write_rollouts(
    config: Config, to: Path, *, real_to: Path | None, checkpoint: Path | None, lossless: bool, split: Split
) -> int:
    """Write evaluate.per_clip rollouts of each of evaluate.num_clips first frames, and rollouts.jsonl.

    Rollout `at` of first frame n is `to`/at/n. Its real clip, if `real_to` is given, is `real_to`/n, in the policy's
    size, length and frame rate, and passed through its VAE unless rewards.real_as is pixels. Because names and forms
    match, `motion-reward pretrain` can pair them, and learns motion instead of sizes, lengths and codecs. Returns the
    number of rollouts. Raises CheckpointError if `checkpoint` was trained on another base.
    """
    if checkpoint:
        check_trained_on(config, checkpoint)
    if real_to:
        warn_of_pixels(config)
    policy = open_policy(config, open_accelerator(config))
    if checkpoint:
        load_trainable(policy.module, checkpoint)
    suffix = ".safetensors" if lossless else ".mp4"
    entries = []
    for number, real in _first_frames(config, policy, split):
        name = f"{number:05d}{suffix}"
        (example,) = policy.encode([real.clip], [real.caption])
        if real_to:
            write_clip(real_to / name, _compared(config, policy, real, example))
        seeds = _seeds(config, number)
        for at, (seed, clip) in enumerate(zip(seeds, policy.decode(policy.sample(example, seeds)), strict=True)):
            path = Path(f"{at:02d}", name)
            write_clip(to / path, clip)
            entries.append({"path": str(path), "caption": real.caption, "first_frame_of": str(real.path), "seed": seed})
    (to / "rollouts.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return len(entries)


def evaluate_checkpoint(config: Config, to: Path, *, checkpoint: Path | None) -> str:
    """Compare `checkpoint` (None: the latest of the run) with its base. Returns the summary as one line of JSON.

    Writes evaluation.json, evaluation.csv, evaluation.html and, for each first frame, the real clip, the base's sample
    and the checkpoint's sample side by side, as mp4 and gif. Raises CheckpointError if there is no checkpoint or it was
    trained on another base, RewardsSilent if outcomes do not arrive within rewards.max_outage_s, and RewardClientError
    if the server refuses.
    """
    checkpoint = checkpoint or Checkpoints(config.out / "checkpoints", keep=1).latest()
    if checkpoint is None:
        raise CheckpointError(f"there is no checkpoint in {config.out}; train first, or give --checkpoint FOLDER")
    check_trained_on(config, checkpoint)
    policy = open_policy(config, open_accelerator(config))
    to.mkdir(parents=True, exist_ok=True)
    with config.rewards.client() as client:
        client.model()  # fails early if the server is not there
        samples, outcomes = _judged(
            _samples(config, policy, checkpoint, client, to), client, config.rewards.max_outage_s
        )
    rows = [sample.row(outcomes[sample.job_id]) for sample in samples]
    distances = motion_distances(rows, [sample.motion for sample in samples])
    summary = {
        "checkpoint_folder": str(checkpoint),
        "discriminator_versions": sorted(
            {outcome.reward.provenance.discriminator_version for outcome in outcomes.values() if outcome.reward}
        ),
        **summarise(rows),
        "distance_to_real": distances,
    }
    _write(to, summary, rows)
    return json.dumps(summary, allow_nan=False)


def _write(to: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    with (to / "evaluation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (to / "evaluation.json").write_text(json.dumps({**summary, "samples": list(rows)}, indent=1, allow_nan=False))
    write_evaluation(to, summary, rows)


def _first_frames(config: Config, policy: Policy, split: Split) -> Iterator[tuple[int, RealClip]]:
    sources = find_sources(getattr(config.data, split), split, config.data.caption, config.data.fps)
    clips = Clips(sources, form_of(policy), seed=config.seed, data=config.data)
    num = config.evaluate.num_clips
    if split != "train":
        num = min(num, len(clips))  # each held-out clip is used at most once
    for number in track(range(num), description="sampling", transient=True):
        yield number, clips.at(number)


def _compared(config: Config, policy: Policy, real: RealClip, example: Example) -> Clip:
    """The real clip as it is compared with rollouts: after a pass through the VAE, unless `rewards.real_as=pixels`."""
    return policy.decode([example.latents])[0] if config.rewards.real_as == "decoded" else real.clip


def _seeds(config: Config, number: int) -> list[int]:
    return [derived_seed(config.seed, "evaluate", number, at) for at in range(config.evaluate.per_clip)]


def check_trained_on(config: Config, checkpoint: Path) -> None:
    """Raises CheckpointError if the checkpoint was trained on another base or LoRA, even if its weights would fit."""
    changed = differences(config, read_about(checkpoint)["config"], ignore=())
    if wrong := [change for change in changed if change.startswith(BASE_KEYS)]:
        raise CheckpointError(
            f"{checkpoint} was trained with other settings ({'; '.join(wrong)}); give those it was trained with"
        )


def _samples(config: Config, policy: Policy, checkpoint: Path, client: RewardClient, to: Path) -> Iterator[Sample]:
    """Sample and submit all clips, and write the side-by-side clips. The base is the policy as it was loaded."""
    base = {name: parameter.detach().clone() for name, parameter in trainable(policy.module)}
    evaluation = uuid.uuid4().hex[:12]
    for number, real in _first_frames(config, policy, "held_out"):
        (example,) = policy.encode([real.clip], [real.caption])
        _set(policy.module, base)
        bases = policy.decode(policy.sample(example, _seeds(config, number)))
        load_trainable(policy.module, checkpoint)
        tuned = policy.decode(policy.sample(example, _seeds(config, number)))
        compared = _compared(config, policy, real, example)
        shown = side_by_side([compared, bases[0], tuned[0]])
        for suffix in SHOWN:
            write_clip(to / f"{number:05d}-real-base-checkpoint{suffix}", shown)
        for kind, clips in zip(KINDS, ([compared], bases, tuned), strict=True):
            for at, clip in enumerate(clips):
                group = f"evaluate-{evaluation}-{number}"
                (job_id,) = client.submit([_submission(config, clip, kind, group)])
                yield Sample(
                    clip=number,
                    path=str(real.path),
                    kind=kind,
                    at=at,
                    degree=dynamic_degree(clip),
                    motion=track_motion(clip),
                    job_id=job_id,
                )


def _judged(
    sampled: Iterator[Sample], client: RewardClient, timeout_s: float
) -> tuple[list[Sample], dict[str, Outcome]]:
    """All samples, and the outcome of each by job id.

    The outcomes of a first frame are awaited once the next first frame is submitted, not at the end: sampling all of
    them may take longer than the server keeps outcomes.
    """
    samples: list[Sample] = []
    outcomes: dict[str, Outcome] = {}
    waiting: list[str] = []
    for _, of_frame in groupby(sampled, key=lambda sample: sample.clip):
        submitted = list(of_frame)
        outcomes |= _await(client, waiting, timeout_s)
        samples += submitted
        waiting = [sample.job_id for sample in submitted]
    outcomes |= _await(client, waiting, timeout_s)
    return samples, outcomes


def _set(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in trainable(module):
            parameter.copy_(values[name])


def _submission(config: Config, clip: Clip, kind: str, group: str) -> Submission:
    context = Context(
        group_id=group,
        origin=Origin.REAL if kind == "real" else Origin.ROLLOUT,
        discriminator_version=config.evaluate.discriminator_version,
    )
    return Submission(payload=clip_to_tensor(clip), media=Media.TENSOR, context=context)


def _await(client: RewardClient, job_ids: Sequence[str], timeout_s: float) -> dict[str, Outcome]:
    outcomes = {outcome.job_id: outcome for outcome in client.await_outcomes(job_ids, timeout_s)} if job_ids else {}
    if missing := set(job_ids) - outcomes.keys():
        raise RewardsSilent(
            f"{len(missing)} of {len(job_ids)} clips had no outcome within {timeout_s:g} s (rewards.max_outage_s); "
            "check the reward server and try again"
        )
    return outcomes


def _mean(values: NDArray[np.float64]) -> float | None:
    """None if there are no values."""
    return float(values.mean()) if values.size else None
