"""The flow-matching loss of Wan (Lipman et al. 2023, arXiv 2210.02747) over its shifted timesteps: pure functions.

B samples, F latent frames, C channels, h and w latent sides. At level s: noised = (1-s) * clean + s * noise, and the
model predicts noise - clean. The first latent frame is the given first frame: it stays clean, at timestep 0, and the
loss leaves it out, for there is nothing to predict there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowLevels:
    """The training levels: s in (0,1], timesteps 1000 s, and the weight of each in the loss; float32 [N] each."""

    sigmas: Tensor
    timesteps: Tensor
    weights: Tensor


def shifted_levels(shift: float, num_levels: int = 1000) -> FlowLevels:
    """N levels from 1 down, s = shift * u / (1 + (shift-1) u) for evenly spaced u.

    The weight is a bell over the timestep, exp(-2 ((t - N/2) / N)^2), lowered to 0 at its least and of mean 1: the
    levels in the middle, where the content is decided, count most.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_levels, shift=shift)
    bell = torch.exp(-2 * ((scheduler.timesteps - num_levels / 2) / num_levels) ** 2)
    bell = bell - bell.min()
    return FlowLevels(sigmas=scheduler.sigmas, timesteps=scheduler.timesteps, weights=bell / bell.mean())


def noised(clean_BFChw: Tensor, noise_BFChw: Tensor, sigma_B: Tensor) -> Tensor:
    """Latents at their level, the first frame clean."""
    sigma = sigma_B[:, None, None, None, None]
    mixed = (1 - sigma) * clean_BFChw + sigma * noise_BFChw
    return torch.cat([clean_BFChw[:, :1], mixed[:, 1:]], dim=1)


def token_timesteps(timestep_B: Tensor, num_frames: int, tokens_per_frame: int) -> Tensor:
    """A timestep for each token of the transformer, 0 for those of the first frame, [B, F * tokens per frame]."""
    later = timestep_B[:, None].expand(-1, (num_frames - 1) * tokens_per_frame)
    return torch.cat([timestep_B.new_zeros(len(timestep_B), tokens_per_frame), later], dim=1)


def losses(prediction_BFChw: Tensor, clean_BFChw: Tensor, noise_BFChw: Tensor, weight_B: Tensor) -> Tensor:
    """Weighted squared error of the velocity over all frames but the first, [B]."""
    error = (prediction_BFChw - (noise_BFChw - clean_BFChw))[:, 1:] ** 2
    return error.flatten(1).mean(1) * weight_B
