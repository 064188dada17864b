"""Makes Stable Video Diffusion a policy: EDM loss, first-frame conditioning, Euler-ancestral rollouts.

B samples, T frames = F latent frames, C channels, h and w latent sides, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
)
from torch import Tensor

from protos.types import Clip
from trainer.policies import edm
from trainer.policies.base import DiffusersPolicy, PolicyConfig, frames_of, picture, unit_pixels
from trainer.policies.protocol import Batch, Draw, Example, PolicyError


@dataclass(frozen=True, kw_only=True)
class SvdConfig(PolicyConfig):
    """Configuration of SVD. The defaults are those of SHIFT's reference code for img2vid-xt."""

    base: str = "stabilityai/stable-video-diffusion-img2vid-xt"
    num_frames: int = 24
    height_px: int = 320
    width_px: int = 576
    fps: float = 14.0
    guidance: tuple[float, float] = (1.0, 3.0)
    """Guidance scale of the first and the last frame, linear between them."""
    motion_bucket: int = 127
    noise_aug: float = 0.02
    """Standard deviation of the noise on a rollout's conditioning frame, whose pixels are in [-1,1]."""
    condition_dropout: float = 0.1
    """Share of the samples that lose the embedding; as many lose both conditions, and as many the image."""
    decode_chunk: int = 8
    """Frames decoded at a time. It bounds memory. The decoder is temporal, so it changes the pixels slightly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decode_chunk < 1:
            raise PolicyError(f"decode_chunk must be at least 1, got {self.decode_chunk}")
        if not 0 <= 3 * self.condition_dropout <= 1:
            raise PolicyError(
                f"condition_dropout must be 0 to 1/3, because it is the share of each of three cases, "
                f"got {self.condition_dropout:g}"
            )


class SeededEulerAncestral(EulerAncestralDiscreteScheduler):  # type: ignore[misc]  # diffusers is untyped
    """diffusers' Euler-ancestral step on the sigmas and timesteps of SVD's own scheduler, with noise per sample.

    The original class has neither Karras sigmas nor continuous timesteps, and the pipeline passes it no generator.
    """

    euler: EulerDiscreteScheduler
    generators: list[torch.Generator] | None = None

    @classmethod
    def over(cls, euler: EulerDiscreteScheduler) -> Self:
        """A scheduler on the sigmas and timesteps of `euler`."""
        names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
        scheduler = cls(timestep_spacing=euler.config.timestep_spacing, **{name: euler.config[name] for name in names})
        scheduler.euler = euler
        return scheduler

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        self.euler.set_timesteps(num_inference_steps, device)
        self.num_inference_steps = num_inference_steps
        self.sigmas, self.timesteps = self.euler.sigmas, self.euler.timesteps
        self._step_index = self._begin_index = None

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        return super().step(model_output, timestep, sample, generator=self.generators, return_dict=return_dict)


class SvdPolicy(DiffusersPolicy):
    """Stable Video Diffusion. The adapter is on its temporal attention layers."""

    name = "svd"
    denoiser_name = "unet"
    lora_targets = r".*temporal_transformer_blocks\..*\.(to_q|to_k|to_v|to_out\.0)"

    def __init__(self, config: SvdConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self.config = config

    def _load(self, base: str) -> Any:
        vae = AutoencoderKLTemporalDecoder.from_pretrained(base, subfolder="vae", dtype=torch.float32)
        pipe = StableVideoDiffusionPipeline.from_pretrained(base, vae=vae, dtype=self.dtype)
        pipe.scheduler = SeededEulerAncestral.over(pipe.scheduler)
        return pipe

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        scale = self.pipe.vae_scale_factor
        channels = self.pipe.vae.config.latent_channels
        return self.num_frames, channels, self.height_px // scale, self.width_px // scale

    def _example(self, clip: Clip, caption: str) -> Example:
        frames = frames_of(clip)
        latents = [self._latents(chunk) for chunk in torch.split(frames, self.config.decode_chunk)]
        embedding = self.pipe._encode_image([picture(frames[0])], self.device, 1, False)[0]
        return Example(
            tensors={
                "latents": torch.cat(latents) * self.pipe.vae.config.scaling_factor,
                "first_frame": frames[0].clone(),
                "embedding": embedding.float().cpu(),
            }
        )

    def _latents(self, frames: Tensor) -> Tensor:
        latents: Tensor = self.pipe.vae.encode(unit_pixels(frames.to(self.device))).latent_dist.mode().cpu()
        return latents

    def draw(self, num: int, generator: torch.Generator) -> Draw:
        return Draw(
            tensors={
                "sigma": edm.lognormal(num, edm.NOISE_LEVEL, generator),
                "noise": torch.randn(num, *self.latent_shape, generator=generator),
                "condition_sigma": edm.lognormal(num, edm.CONDITION_NOISE_LEVEL, generator),
                "condition_noise": torch.randn(num, 3, self.height_px, self.width_px, generator=generator),
                "dropout": torch.rand(num, generator=generator),
            }
        )

    def losses(self, batch: Batch, draw: Draw) -> Tensor:
        given, random = self._on_device(batch), self._on_device(draw)
        clean, sigma = given["latents"].float(), random["sigma"]
        noised = clean + sigma[:, None, None, None, None] * random["noise"]
        keep_embedding, keep_image = edm.kept_conditions(random["dropout"], self.config.condition_dropout)
        image = self._condition(given["first_frame"], random["condition_sigma"], random["condition_noise"])
        image = (image * keep_image[:, None, None, None])[:, None].expand_as(clean)
        prediction = self.module(
            torch.cat([edm.scaled_input(noised, sigma), image], dim=2).to(self.dtype),
            edm.timestep(sigma),
            encoder_hidden_states=(given["embedding"] * keep_embedding[:, None, None]).to(self.dtype),
            added_time_ids=self._time_ids(random["condition_sigma"]),
            return_dict=False,
        )[0]
        return edm.losses(prediction.float(), noised, clean, sigma)

    @torch.no_grad()
    def _condition(self, first_frame: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Unscaled latents [B,C,h,w] of the noised first frames, which the pipeline conditions on."""
        pixels = unit_pixels(first_frame) + sigma[:, None, None, None] * noise
        latents: Tensor = self.pipe.vae.encode(pixels).latent_dist.mode()
        return latents

    def _time_ids(self, condition_sigma: Tensor) -> Tensor:
        """fps - 1 (as SVD was trained), motion bucket and conditioning noise as [B,3]."""
        fps, bucket = (torch.full_like(condition_sigma, v) for v in (round(self.fps) - 1, self.config.motion_bucket))
        return torch.stack([fps, bucket, condition_sigma], dim=1)

    def _rollouts(self, example: Example, generators: list[torch.Generator]) -> Tensor:
        self.pipe.scheduler.generators = generators
        low, high = self.config.guidance
        latents: Tensor = self.pipe(
            [picture(example.tensors["first_frame"])] * len(generators),
            height=self.height_px,
            width=self.width_px,
            num_frames=self.num_frames,
            num_inference_steps=self.config.num_steps,
            min_guidance_scale=low,
            max_guidance_scale=high,
            fps=round(self.fps),
            motion_bucket_id=self.config.motion_bucket,
            noise_aug_strength=self.config.noise_aug,
            generator=generators,
            output_type="latent",
        ).frames
        return latents

    def _pixels(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.pipe.decode_latents(latents[None].float(), self.num_frames, self.config.decode_chunk)
        return pixels[0].transpose(0, 1)
