"""The EDM loss of Stable Video Diffusion (Karras et al. 2022, arXiv 2206.00364) and its random levels: pure functions.

B samples, F latent frames, C channels, h and w latent sides. SVD predicts v: with noise level s,
denoised = c_skip * noised + c_out * prediction, c_skip = 1/(s^2+1), c_out = -s/sqrt(s^2+1), c_in = 1/sqrt(s^2+1),
timestep = ln(s)/4, and the loss weight is (1+s^2)/s^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOISE_LEVEL = (0.7, 1.6)
"""Mean and deviation of ln(s)."""
CONDITION_NOISE_LEVEL = (-3.0, 0.5)
"""Mean and deviation of the logarithm of the noise added to the conditioning frame, in pixels of [-1,1]."""


def lognormal(num: int, level: tuple[float, float], generator: torch.Generator) -> Tensor:
    """`num` draws of exp(mean + deviation * normal), float32 [num]."""
    mean, deviation = level
    return (mean + deviation * torch.randn(num, generator=generator)).exp()


def timestep(sigma_B: Tensor) -> Tensor:
    """The number by which SVD is told the noise level, [B]."""
    return 0.25 * sigma_B.log()


def scaled_input(noised_BFChw: Tensor, sigma_B: Tensor) -> Tensor:
    """What the denoiser sees: the noised latents at about unit variance."""
    return noised_BFChw / (_broad(sigma_B) ** 2 + 1).sqrt()


def denoised(prediction_BFChw: Tensor, noised_BFChw: Tensor, sigma_B: Tensor) -> Tensor:
    """The clean latents that a v-prediction stands for."""
    sigma = _broad(sigma_B)
    return noised_BFChw / (sigma**2 + 1) - prediction_BFChw * sigma / (sigma**2 + 1).sqrt()


def losses(prediction_BFChw: Tensor, noised_BFChw: Tensor, clean_BFChw: Tensor, sigma_B: Tensor) -> Tensor:
    """Weighted squared error of the denoised latents, mean over each sample, [B]."""
    error = (denoised(prediction_BFChw, noised_BFChw, sigma_B) - clean_BFChw) ** 2
    return error.flatten(1).mean(1) * (1 + sigma_B**2) / sigma_B**2


def kept_conditions(uniform_B: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Which samples keep their embedding and which their image, as 0 or 1, [B] each.

    The three-way scheme of InstructPix2Pix (arXiv 2211.09800): each sample loses its embedding alone, both, or its
    image alone with probability `rate` each, so that guidance has an unconditional model to lean on.
    """
    without_embedding = uniform_B < 2 * rate
    without_image = (uniform_B >= rate) & (uniform_B < 3 * rate)
    return (~without_embedding).float(), (~without_image).float()


def _broad(sigma_B: Tensor) -> Tensor:
    return sigma_B[:, None, None, None, None]
