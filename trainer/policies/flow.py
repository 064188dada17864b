"""Computes the flow-matching loss of Wan (Lipman et al. 2023, arXiv 2210.02747) at shifted timesteps: pure functions.

B samples, F latent frames, C channels, h and w latent sides. At level s: noised = (1-s) * clean + s * noise, and the
model predicts noise - clean. The first latent frame is the given first frame. It stays clean, at timestep 0, and is
left out of the loss, because there is nothing to predict.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowLevels:
    """The noise levels of training: s in (0,1], timesteps N s, and the weight of each in the loss. float32 [N] each."""

    sigmas: Tensor
    timesteps: Tensor
    weights: Tensor


def shifted_levels(shift: float, num_levels: int = 1000) -> FlowLevels:
    """`num_levels` (N) levels in falling order from 1: s = shift * u / (1 + (shift-1) u) for evenly spaced u.

    The loss weight is a bell curve over the timestep, exp(-2 ((t - N/2) / N)^2), shifted so that its minimum is 0 and
    scaled so that its mean is 1. The middle levels, which decide the content, count most.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_levels, shift=shift)
    bell = torch.exp(-2 * ((scheduler.timesteps - num_levels / 2) / num_levels) ** 2)
    bell = bell - bell.min()
    return FlowLevels(sigmas=scheduler.sigmas, timesteps=scheduler.timesteps, weights=bell / bell.mean())


def noised(clean_BFChw: Tensor, noise_BFChw: Tensor, sigma_B: Tensor) -> Tensor:
    """Latents [B,F,C,h,w] noised to their level. The first frame stays clean."""
    sigma = sigma_B[:, None, None, None, None]
    mixed = (1 - sigma) * clean_BFChw + sigma * noise_BFChw
    return torch.cat([clean_BFChw[:, :1], mixed[:, 1:]], dim=1)


def token_timesteps(timestep_B: Tensor, num_frames: int, tokens_per_frame: int) -> Tensor:
    """A timestep for each token of the transformer, [B, F * tokens per frame]. Tokens of the first frame have 0."""
    later = timestep_B[:, None].expand(-1, (num_frames - 1) * tokens_per_frame)
    return torch.cat([timestep_B.new_zeros(len(timestep_B), tokens_per_frame), later], dim=1)


def losses(prediction_BFChw: Tensor, clean_BFChw: Tensor, noise_BFChw: Tensor, weight_B: Tensor) -> Tensor:
    """Weighted squared error of the velocity, averaged over all latent frames but the first, [B]."""
    error = (prediction_BFChw - (noise_BFChw - clean_BFChw))[:, 1:] ** 2
    return error.flatten(1).mean(1) * weight_B
