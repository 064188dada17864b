"""Makes toy policies for tests. Base folders are written once per session; `make_tiny` loads a new policy each time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from protos.types import Clip
from trainer.policies.lora import LoraSize
from trainer.policies.svd import SvdConfig, SvdPolicy
from trainer.policies.tiny import tiny_svd, tiny_wan
from trainer.policies.wan import WanConfig, WanPolicy

SIDE_PX = {"svd": 16, "wan": 64}
FRAMES = {"svd": 4, "wan": 5}
AnyPolicy = SvdPolicy | WanPolicy


@cache
def _root() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="tiny-policies-")


@cache
def base_folder(name: str) -> Path:
    """The folder of the toy base "svd" or "wan". Shared by all tests: do not change it."""
    make = {"svd": tiny_svd, "wan": tiny_wan}[name]
    return make(Path(_root().name) / name)


def make_tiny(name: str, device: str = "cpu", **changes: Any) -> AnyPolicy:
    """A policy with few frames, three steps and a LoRA of rank 4. `changes` replace fields of its configuration."""
    side = SIDE_PX[name]
    fields = {
        "base": str(base_folder(name)),
        "num_frames": FRAMES[name],
        "height_px": side,
        "width_px": side,
        "fps": 8.0,
        "num_steps": 3,
        "lora": LoraSize(rank=4, alpha=8),
        "precision": "fp32",
        "gradient_checkpointing": False,
        **changes,
    }
    return SvdPolicy(SvdConfig(**fields), device) if name == "svd" else WanPolicy(WanConfig(**fields), device)


def moving_square(policy: AnyPolicy, seed: int = 0) -> Clip:
    """A clip of a bright square that moves right over a dark random background, in the policy's size and length."""
    rng = np.random.default_rng(seed)
    frames = np.empty((policy.num_frames, 3, policy.height_px, policy.width_px), np.uint8)
    frames[:] = rng.integers(0, 60, frames.shape[1:], np.uint8)
    row, column = rng.integers(2, policy.height_px // 2, 2)
    for t in range(policy.num_frames):
        frames[t, :, row : row + 8, column + t : column + t + 8] = 220
    return Clip(frames=frames, fps=policy.fps)


def stir_lora(policy: AnyPolicy, seed: int = 0) -> None:
    """Set random LoRA weights that have an effect, as after training. A fresh LoRA has none."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.denoiser.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
