"""Computes the EDM loss of Stable Video Diffusion (Karras et al. 2022, arXiv 2206.00364): pure functions.

B samples, F latent frames, C channels, h and w latent sides. SVD predicts v. With noise level s:
denoised = c_skip * noised + c_out * prediction, c_skip = 1/(s^2+1), c_out = -s/sqrt(s^2+1), c_in = 1/sqrt(s^2+1),
timestep = ln(s)/4, and the loss weight is (1+s^2)/s^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOISE_LEVEL = (0.7, 1.6)
"""Mean and standard deviation of ln(s)."""
CONDITION_NOISE_LEVEL = (-3.0, 0.5)
"""Mean and standard deviation of ln(s) for the noise on the conditioning frame, with pixels in [-1,1]."""


def lognormal(num: int, level: tuple[float, float], generator: torch.Generator) -> Tensor:
    """`num` draws of exp(mean + deviation * standard normal), float32 [num]."""
    mean, deviation = level
    return (mean + deviation * torch.randn(num, generator=generator)).exp()


def timestep(sigma_B: Tensor) -> Tensor:
    """The timestep [B] that tells SVD the noise level."""
    return 0.25 * sigma_B.log()


def scaled_input(noised_BFChw: Tensor, sigma_B: Tensor) -> Tensor:
    """The denoiser's input [B,F,C,h,w]: the noised latents, scaled to about unit variance (c_in)."""
    return noised_BFChw / (_broad(sigma_B) ** 2 + 1).sqrt()


def denoised(prediction_BFChw: Tensor, noised_BFChw: Tensor, sigma_B: Tensor) -> Tensor:
    """The clean latents [B,F,C,h,w] that a v-prediction implies."""
    sigma = _broad(sigma_B)
    return noised_BFChw / (sigma**2 + 1) - prediction_BFChw * sigma / (sigma**2 + 1).sqrt()


def losses(prediction_BFChw: Tensor, noised_BFChw: Tensor, clean_BFChw: Tensor, sigma_B: Tensor) -> Tensor:
    """Weighted squared error of the denoised latents, averaged within each sample, [B]."""
    error = (denoised(prediction_BFChw, noised_BFChw, sigma_B) - clean_BFChw) ** 2
    return error.flatten(1).mean(1) * (1 + sigma_B**2) / sigma_B**2


def kept_conditions(uniform_B: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Which samples keep their image embedding and which keep their conditioning frame, as 0.0 or 1.0, [B] each.

    This is the three-way dropout of InstructPix2Pix (arXiv 2211.09800), from draws `uniform_B` in [0,1). A sample loses
    its embedding only, both, or its frame only, with probability `rate` each. Classifier-free guidance needs a model
    that has been trained without conditions.
    """
    without_embedding = uniform_B < 2 * rate
    without_image = (uniform_B >= rate) & (uniform_B < 3 * rate)
    return (~without_embedding).float(), (~without_image).float()


def _broad(sigma_B: Tensor) -> Tensor:
    return sigma_B[:, None, None, None, None]
