"""Trains a toy base model from scratch: its autoencoder, its latent scale, its denoiser.

`train_base(config, clips, captions, folder=...)` reads the pipeline that `trainer/policies/tiny.py` wrote and writes
the trained one as a diffusers folder. All parameters of the denoiser are trained, with the policy's own loss. The code
that differs between Stable Video Diffusion and Wan is at the end.
B clips, T frames, H and W pixels; N clips of latents with F frames, C channels and sides h and w.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from protos.types import Clip
from trainer.policies.base import DiffusersPolicy, PolicyConfig, frames_of, unit_pixels
from trainer.policies.loading import make_policy
from trainer.policies.protocol import Example, PolicyError, stack
from trainer.policies.svd import SvdPolicy

Report = Callable[[str, int, float], None]
"""Called after each step with the stage ("autoencoder" or "denoiser"), the step from 1, and the loss."""


@dataclass(frozen=True, kw_only=True)
class BasePlan:
    """How long and how fast to train. Learning rates warm up over a tenth of the steps, then fall along a cosine."""

    autoencoder_steps: int = 500
    autoencoder_batch: int = 2
    autoencoder_lr: float = 2e-3
    kl_weight: float = 1e-6
    """Weight of the divergence from a unit Gaussian per latent value; the mean absolute pixel error has weight 1."""
    denoiser_steps: int = 2000
    denoiser_batch: int = 4
    denoiser_lr: float = 1e-3
    ema: float = 0.995
    """Decay of the average of the denoiser's weights. The average is what is saved."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("autoencoder_steps", "autoencoder_batch", "denoiser_steps", "denoiser_batch"):
            if getattr(self, name) < 1:
                raise PolicyError(f"{name} must be at least 1, got {getattr(self, name)}")


def train_base(
    config: PolicyConfig,
    clips: Sequence[Clip],
    captions: Sequence[str],
    *,
    folder: Path,
    plan: BasePlan | None = None,
    device: torch.device | str = "cpu",
    report: Report = lambda stage, step, loss: None,
) -> Path:
    """Train the pipeline at `config.base` on the clips and save it to `folder`. A seed gives the same weights again."""
    plan = plan or BasePlan()
    policy = make_policy(replace(config, lora=None, sft_lora=None), device)
    generator = torch.Generator().manual_seed(plan.seed)
    train_autoencoder(policy, clips, plan, generator, report)
    fit_latent_scale(policy, clips, captions)
    train_denoiser(policy, policy.encode(clips, captions), plan, generator, report)
    save_base(policy, folder)
    return folder


def train_autoencoder(
    policy: DiffusersPolicy, clips: Sequence[Clip], plan: BasePlan, generator: torch.Generator, report: Report
) -> None:
    """Fit the VAE to reconstruct the clips."""
    vae: nn.Module = policy.pipe.vae
    vae.requires_grad_(True)
    train = _Training(vae, plan.autoencoder_lr, plan.autoencoder_steps)
    for step, chosen in enumerate(_batches(len(clips), plan.autoencoder_batch, plan.autoencoder_steps, generator), 1):
        pixels = torch.stack([unit_pixels(frames_of(clips[i])) for i in chosen]).to(policy.device)
        reconstruction, divergence = autoencode(policy, pixels, generator)
        report("autoencoder", step, train((reconstruction - pixels).abs().mean() + plan.kl_weight * divergence))
    vae.requires_grad_(False)


def fit_latent_scale(policy: DiffusersPolicy, clips: Sequence[Clip], captions: Sequence[str]) -> None:
    """Set the pipeline's latent statistics so that latents have unit variance, as the noise levels assume."""
    latents = torch.stack([example.latents for example in policy.encode(clips, captions)])
    rescale = _rescale_svd if isinstance(policy, SvdPolicy) else _rescale_wan
    rescale(policy.pipe.vae, latents)


def train_denoiser(
    policy: DiffusersPolicy, examples: Sequence[Example], plan: BasePlan, generator: torch.Generator, report: Report
) -> None:
    """Fit every parameter of the denoiser with the policy's loss, and leave their running average in it."""
    train = _Training(policy.denoiser, plan.denoiser_lr, plan.denoiser_steps)
    average = EMAModel(policy.denoiser.parameters(), decay=plan.ema)
    for step, chosen in enumerate(_batches(len(examples), plan.denoiser_batch, plan.denoiser_steps, generator), 1):
        draw = policy.draw(len(chosen), generator)
        report("denoiser", step, train(policy.losses(stack([examples[i] for i in chosen]), draw).mean()))
        average.step(policy.denoiser.parameters())
    average.copy_to(policy.denoiser.parameters())


class _Training:
    """AdamW with clipped gradients and a cosine schedule. Calling it with a loss takes one step."""

    def __init__(self, module: nn.Module, lr: float, num_steps: int) -> None:
        self.module = module
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, num_steps // 10, num_steps)

    def __call__(self, loss: Tensor) -> float:
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


def _batches(num: int, size: int, num_batches: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Indices of random batches. Each example appears once before any appears again."""
    if num < size:
        raise PolicyError(f"a batch of {size} needs as many clips, got {num}; give more clips or a smaller batch")
    order: list[int] = []
    for _ in range(num_batches):
        if len(order) < size:
            order = torch.randperm(num, generator=generator).tolist()
        yield [order.pop() for _ in range(size)]


# --- what differs between the two kinds of pipeline ---------------------------------------------


def autoencode(policy: DiffusersPolicy, pixels_BT3HW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixels in [-1,1] after a pass through the VAE with a sampled latent, and the divergence of its posterior."""
    through = _autoencode_svd if isinstance(policy, SvdPolicy) else _autoencode_wan
    decoded_BT3HW, posterior = through(policy.pipe.vae, pixels_BT3HW, generator)
    return decoded_BT3HW, _divergence(posterior)


def _autoencode_svd(vae: Any, pixels_BT3HW: Tensor, generator: torch.Generator) -> tuple[Tensor, Any]:
    posterior = vae.encode(pixels_BT3HW.flatten(0, 1)).latent_dist
    decoded = vae.decode(posterior.sample(generator), num_frames=pixels_BT3HW.shape[1]).sample
    return decoded.view_as(pixels_BT3HW), posterior


def _autoencode_wan(vae: Any, pixels_BT3HW: Tensor, generator: torch.Generator) -> tuple[Tensor, Any]:
    posterior = vae.encode(pixels_BT3HW.transpose(1, 2)).latent_dist
    return vae.decode(posterior.sample(generator)).sample.transpose(1, 2), posterior


def _divergence(posterior: Any) -> Tensor:
    """Divergence from a unit Gaussian in nats per latent value, averaged over all."""
    divergence: Tensor = (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean() / 2
    return divergence


def _rescale_svd(vae: Any, latents_NFChw: Tensor) -> None:
    """Set one factor for all channels."""
    vae.register_to_config(scaling_factor=vae.config.scaling_factor / latents_NFChw.std().item())


def _rescale_wan(vae: Any, latents_NFChw: Tensor) -> None:
    """Set mean and standard deviation of each channel."""
    mean, deviation = (latents_NFChw.new_tensor(value) for value in (vae.config.latents_mean, vae.config.latents_std))
    deviations, means = torch.std_mean(latents_NFChw.transpose(0, 2).flatten(1), dim=1)
    vae.register_to_config(
        latents_mean=(mean + deviation * means).tolist(), latents_std=(deviation * deviations).tolist()
    )


def save_base(policy: DiffusersPolicy, folder: Path) -> None:
    """Write the whole pipeline as a diffusers folder. Raises PolicyError if a LoRA is injected."""
    if hasattr(policy.denoiser, "peft_config"):
        raise PolicyError("a pipeline with a LoRA injected cannot be saved whole; use save_lora, or set lora=None")
    scheduler = policy.pipe.scheduler
    if isinstance(policy, SvdPolicy):
        policy.pipe.scheduler = scheduler.euler  # the one that diffusers can load
    try:
        policy.pipe.save_pretrained(folder)
    finally:
        policy.pipe.scheduler = scheduler
