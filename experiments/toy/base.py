"""Trains the toy base that the package ships: a tiny Stable Video Diffusion on drawn scenes, stored in half precision.

`train_toy(folder, size, seed=0)` writes an ordinary diffusers folder with a card. The networks come from
`trainer/policies/tiny.py` and the training from the proof's `base_training.py`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from experiments.proof.base import SIGMA_MAX, Progress
from experiments.proof.base_training import (
    BasePlan,
    fit_latent_scale,
    save_base,
    train_autoencoder,
    train_denoiser,
)
from experiments.proof.scenes import FPS, NUM_FRAMES
from experiments.toy.scenes import HEIGHT_PX, WIDTH_PX, draw_clips
from trainer.policies.loading import make_policy
from trainer.policies.shipped import digest_of
from trainer.policies.svd import SvdConfig, SvdPolicy
from trainer.policies.tiny import tiny_svd
from trainer.policies.wan import WanPolicy
from trainer.seeds import derived_seed

SCALE_CLIPS = 128  # that the scale of latents is fitted on
CARD = """\
# Model card: toy-svd

A toy image-to-video model in the layout of Stable Video Diffusion, for the preset `tiny`, `make demo` and tests. From
a first frame it makes {frames} frames of {width} x {height} pixels: one or two balls, each half orange and half blue,
bounce, fall or roll before a grey, cloudy wall.

* **What it cannot do.** It knows nothing but these drawn scenes, in this size and length. From a frame of footage it
  makes blurs. Even its balls may split, or change their halves. What is measured on it says nothing about a real model.
* **Data.** {num_scenes} scenes drawn by `experiments/toy/scenes.py`. No other data.
* **Training.** `python -m experiments.toy base --out DIR --seed {seed}`, on one CPU thread (about 12 minutes):
  {autoencoder_steps} steps of the autoencoder, {denoiser_steps} of the denoiser. The image encoder has random weights.
* **Size.** {parameters:.2f} million parameters, stored in half precision (safetensors).
* **Digest.** `{digest}` (`trainer/policies/shipped.py`).
* **Licence.** Apache-2.0, as the project.
"""


@dataclass(frozen=True, kw_only=True)
class ToySize:
    """The size of the toy base, and how long it trains."""

    num_scenes: int = 1024
    channels: tuple[int, ...] = (32, 32)
    vae_channels: tuple[int, ...] = (32, 32, 32)
    plan: BasePlan = field(
        default_factory=lambda: BasePlan(
            autoencoder_steps=1000, autoencoder_batch=1, denoiser_steps=1600, denoiser_batch=4
        )
    )


SIZES = {
    "shipped": ToySize(),
    "smoke": ToySize(
        num_scenes=4,
        plan=BasePlan(autoencoder_steps=2, autoencoder_batch=2, denoiser_steps=2, denoiser_batch=2),
    ),
}


def toy_config(base: Path) -> SvdConfig:
    """The toy policy on `base`, in the form of the preset `tiny`, without a LoRA."""
    return SvdConfig(
        base=str(base),
        num_frames=NUM_FRAMES,
        height_px=HEIGHT_PX,
        width_px=WIDTH_PX,
        fps=FPS,
        num_steps=8,
        group_size=8,
        lora=None,
        precision="fp32",
        gradient_checkpointing=False,
    )


def train_toy(folder: Path, size: ToySize, *, seed: int) -> Path:
    """Train the toy base and write it to `folder`, which is replaced. A seed gives the same weights again.

    An interrupted run starts again after the autoencoder if that was done.
    """
    clips = list(draw_clips(size.num_scenes, seed=derived_seed(seed, "toy scenes")))
    captions = [""] * len(clips)
    first = folder.with_name(f"{folder.name}.autoencoder")
    report = Progress()
    if not first.exists():
        policy = _untrained(folder.with_name(f"{folder.name}.untrained"), size, seed)
        train_autoencoder(policy, clips, size.plan, _generator(seed, "autoencoder"), report)
        fit_latent_scale(policy, clips[:SCALE_CLIPS], captions[:SCALE_CLIPS])
        save_base(policy, first)
    policy = make_policy(toy_config(first))
    train_denoiser(policy, policy.encode(clips, captions), size.plan, _generator(seed, "denoiser"), report)
    shutil.rmtree(folder, ignore_errors=True)
    save_base(policy, folder)
    _halve(folder)
    _forget_where(folder)
    (folder / "README.md").write_text(_card(folder, size, seed))
    shutil.rmtree(first)
    return folder


def _generator(seed: int, stage: str) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, "toy base", stage))


def _untrained(folder: Path, size: ToySize, seed: int) -> SvdPolicy | WanPolicy:
    """The networks with random weights, and a scheduler for few steps."""
    tiny_svd(folder, seed=seed, num_frames=NUM_FRAMES, channels=size.channels, vae_channels=size.vae_channels)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "sigma_max": SIGMA_MAX}, indent=2))
    policy = make_policy(toy_config(folder))
    shutil.rmtree(folder)
    return policy


def _halve(folder: Path) -> None:
    """Store all weights below `folder` in half precision."""
    for path in folder.rglob("*.safetensors"):
        weights = {name: value.to(torch.float16) for name, value in load_file(path).items()}
        path.unlink()  # its mode lets only its owner read it
        path.write_bytes(save(weights, metadata={"format": "pt"}))


def _forget_where(folder: Path) -> None:
    """Remove the path that the networks were loaded from, so that the same seed gives the same files anywhere."""
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text())
        values.pop("_name_or_path", None)
        path.write_text(json.dumps(values, indent=2) + "\n")


def _card(folder: Path, size: ToySize, seed: int) -> str:
    weights = [value for path in folder.rglob("*.safetensors") for value in load_file(path).values()]
    return CARD.format(
        width=WIDTH_PX,
        height=HEIGHT_PX,
        frames=NUM_FRAMES,
        num_scenes=size.num_scenes,
        seed=seed,
        autoencoder_steps=size.plan.autoencoder_steps,
        denoiser_steps=size.plan.denoiser_steps,
        parameters=sum(value.numel() for value in weights) / 1e6,
        digest=digest_of(folder),
    )
