"""Pretrains discriminators by the recipes of the third plan, and measures what each rewards on held-out scenes.

The recipes differ in their positives, in whether real clips pass through the autoencoder as rollouts do, and in what
keeps the logits small. G groups, each with a real clip and its P rollouts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments.proof.arms import reference_clips
from experiments.proof.discriminators import pretraining_clips, run_pretraining
from experiments.proof.learned import ScoredGroups, groups_of, score_groups
from experiments.proof.scenes import SceneMix, draw_scenes
from experiments.proof.size import ProofSize
from experiments.proof.verdicts import Floats
from protos.client import RewardClient
from protos.types import Clip
from reward_server.profiles.discriminators import SHIPPED
from trainer.policies.protocol import Policy
from trainer.seeds import derived_seed

NOISE = 0.1  # of the recipes with instance noise, in standard deviations of each channel
SMOOTHING = 0.1  # of the labels
PENALTY = 0.01  # weight of the mean squared logit
TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How discriminators are pretrained. Their negatives are the base's rollouts from the positives' first frames."""

    mix: SceneMix = field(default_factory=SceneMix)  # of the positives
    pixels: bool = False  # real clips as drawn, not after a pass through the autoencoder
    noise: float = 0.0
    smoothing: float = 0.0
    penalty: float = 0.0
    shipped: bool = False  # not pretrained here: those of the package, trained against faults of real clips

    @property
    def options(self) -> dict[str, str]:
        """Its options of `motion-reward pretrain`."""
        named = {"instance-noise": self.noise, "label-smoothing": self.smoothing, "logit-penalty": self.penalty}
        return {f"--{name}": f"{value:g}" for name, value in named.items()}


def recipes(part: str, size: ProofSize) -> dict[str, Recipe]:
    """The recipes of a part of the plan, by name."""
    if part == "static":
        return {"reference": Recipe(), "own": Recipe(mix=SceneMix(static_share=size.static_share))}
    return {
        "plain": Recipe(),
        "noise": Recipe(noise=NOISE),
        "pixels": Recipe(pixels=True),
        "pixels-noise": Recipe(pixels=True, noise=NOISE),
        "smoothing": Recipe(smoothing=SMOOTHING),
        "penalty": Recipe(penalty=PENALTY),
        "shipped": Recipe(shipped=True),
    }


def pretrained(folder: Path, name: str, recipe: Recipe, policy: Policy, size: ProofSize, *, seed: int) -> Path:
    """Pretrain once and return the checkpoint. Raises CalledProcessError if the pretraining fails."""
    if recipe.shipped:
        return SHIPPED["embedded"]
    discriminators = folder / f"{name}.safetensors"
    if discriminators.exists():
        return discriminators
    of, work = size.discriminators, folder / name
    clips = [scene.clip() for scene in draw_scenes(of.num_scenes, seed=derived_seed(seed, "pretrain"), mix=recipe.mix)]
    groups = groups_of(policy, clips, 1, seed=seed)
    if recipe.pixels:
        groups = [[clip, *rollouts] for clip, (_, *rollouts) in zip(clips, groups, strict=True)]
    pretraining_clips(groups, work)
    places = {"--real": work / "real", "--generated": work / "generated", "--work": work, "--out": discriminators}
    options = {"--steps": str(of.steps), "--seed": str(seed), **recipe.options}
    run_pretraining(places, *(part for option in options.items() for part in option))
    return discriminators


def measure_heads(folder: Path, name: str, url: str, policy: Policy, size: ProofSize, *, seed: int) -> None:
    """Score held-out scenes and the base's rollouts with the recipe's discriminators at `url`, once."""
    path = folder / f"{name}.json"
    if path.exists():
        return
    scenes = draw_scenes(size.discriminators.num_held_out, seed=derived_seed(seed, "held out"))
    groups = groups_of(policy, [scene.clip() for scene in scenes], size.discriminators.per_clip, seed=seed)
    with RewardClient(url) as client:
        scored = score_groups(groups, client, timeout_s=TIMEOUT_S)
    path.write_text(json.dumps({"rewards": _plain(scored.rewards), "measures": _plain(scored.measures)}))


def _plain(arrays: Mapping[str, Floats]) -> dict[str, list[list[float]]]:
    return {name: values.tolist() for name, values in arrays.items()}


def read_heads(folder: Path) -> dict[str, ScoredGroups]:
    """What `measure_heads` saved, by recipe."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        saved = json.loads(path.read_text())
        arrays = [{name: np.array(of) for name, of in saved[key].items()} for key in ("rewards", "measures")]
        found[path.stem] = ScoredGroups(rewards=arrays[0], measures=arrays[1])
    return found


def positives_of(part: str, size: ProofSize, seed: int) -> list[Clip]:
    """The clips whose motion the arms of a part should have: the fine-tuning data's, or the reference set's."""
    if part == "static":
        return reference_clips(size, seed)
    return [scene.clip() for scene in draw_scenes(size.num_train, seed=derived_seed(seed, "train"))]
