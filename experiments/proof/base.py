"""Trains the toy base of the proof: a tiny Stable Video Diffusion, trained from scratch on scenes."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.proof.base_training import BasePlan, train_base
from experiments.proof.scenes import FPS, NUM_FRAMES, SIDE_PX, SceneMix
from protos.types import Clip
from trainer.policies.lora import LoraSize
from trainer.policies.svd import SvdConfig
from trainer.policies.tiny import tiny_svd

log = logging.getLogger(__name__)

REPORT_STEPS = 100
SIGMA_MAX = 80.0  # img2vid-xt samples from 700, which would spend half of these few steps on noise alone


@dataclass(frozen=True, kw_only=True)
class BaseSize:
    """The size of a base and how long it trains."""

    num_scenes: int = 512
    mix: SceneMix = field(default_factory=lambda: SceneMix(glow_share=0.5))
    channels: tuple[int, ...] = (32, 64)
    vae_channels: tuple[int, ...] = (32, 32, 32)
    sampler_steps: int = 8
    plan: BasePlan = field(
        default_factory=lambda: BasePlan(
            autoencoder_steps=2000, autoencoder_batch=4, denoiser_steps=4000, denoiser_batch=8
        )
    )


def policy_config(base: Path, size: BaseSize, *, rank: int = 16) -> SvdConfig:
    """The toy policy on `base`. It has no guidance and no condition dropout: the first frame is its only condition."""
    return SvdConfig(
        base=str(base),
        num_frames=NUM_FRAMES,
        height_px=SIDE_PX,
        width_px=SIDE_PX,
        fps=FPS,
        num_steps=size.sampler_steps,
        group_size=16,
        lora=LoraSize(rank=rank, alpha=rank),
        precision="fp32",
        gradient_checkpointing=False,
        guidance=(1.0, 1.0),
        condition_dropout=0.0,
    )


def trained_base(folder: Path, clips: Sequence[Clip], size: BaseSize, *, seed: int) -> Path:
    """Train the base once and return its diffusers folder."""
    final = folder / "base"
    if final.exists():
        return final
    untrained, partial = folder / "untrained", folder / "base.partial"
    shutil.rmtree(partial, ignore_errors=True)
    tiny_svd(untrained, seed=seed, num_frames=NUM_FRAMES, channels=size.channels, vae_channels=size.vae_channels)
    scheduler = untrained / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "sigma_max": SIGMA_MAX}))
    config = policy_config(untrained, size)
    train_base(config, clips, [""] * len(clips), folder=partial, plan=size.plan, report=Progress())
    shutil.rmtree(untrained)
    return partial.rename(final)


class Progress:
    """Logs the mean loss of every REPORT_STEPS steps."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._started = time.monotonic()

    def __call__(self, stage: str, step: int, loss: float) -> None:
        self._losses.append(loss)
        if step % REPORT_STEPS == 0:
            mean = sum(self._losses) / len(self._losses)
            log.info("%s step %d: loss %.4f, %.0f s", stage, step, mean, time.monotonic() - self._started)
            self._losses.clear()
