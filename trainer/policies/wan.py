"""Makes Wan2.2 TI2V a policy: flow-matching loss, a clean first latent frame, a prompt, the pipeline's sampler.

B samples, T frames, F = (T-1)/4 + 1 latent frames, C channels, h and w latent sides, H and W pixels. Latents are
[F,C,h,w] here, as everywhere in `trainer`. Wan's own order [C,F,h,w] stays inside this file.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
from torch import Tensor

from protos.types import Clip
from trainer.policies import flow
from trainer.policies.base import DiffusersPolicy, PolicyConfig, frames_of, picture, unit_pixels
from trainer.policies.protocol import Batch, Draw, Example, PolicyError

NEGATIVE_PROMPT = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)
"""Wan's own negative prompt, from the examples of diffusers."""
PROMPTS_KEPT = 64  # encoded captions in memory, 4 MiB each; a data set may have one caption per clip


@dataclass(frozen=True, kw_only=True)
class WanConfig(PolicyConfig):
    """Configuration of Wan. The defaults are those of SHIFT's reference code for Wan2.2 TI2V-5B."""

    side_multiple_px: ClassVar[int] = 32
    base: str = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    num_frames: int = 49
    height_px: int = 480
    width_px: int = 832
    fps: float = 24.0
    guidance: float = 5.0
    negative_prompt: str = NEGATIVE_PROMPT
    shift: float = 5.0
    """Shift of the noise levels in training. A higher value puts more of them near pure noise."""
    max_prompt_tokens: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_frames % 4 != 1:
            raise PolicyError(f"num_frames must be 4k + 1 for Wan, got {self.num_frames}")


class WanPolicy(DiffusersPolicy):
    """Wan2.2 TI2V. The adapter is on all attention layers of all blocks."""

    name = "wan"
    denoiser_name = "transformer"
    lora_targets = r"blocks\.\d+\.attn\d\.(to_q|to_k|to_v|to_out\.0)"

    def __init__(self, config: WanConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self.config = config
        self.levels = flow.shifted_levels(config.shift)
        self._prompt = functools.lru_cache(maxsize=PROMPTS_KEPT)(self._encode_prompt)
        self._negative_LD = self._encode_prompt(config.negative_prompt)

    def _load(self, base: str) -> Any:
        vae = AutoencoderKLWan.from_pretrained(base, subfolder="vae", dtype=torch.float32)
        pipe = WanImageToVideoPipeline.from_pretrained(base, vae=vae, dtype=self.dtype)
        if not pipe.config.expand_timesteps:
            raise PolicyError(
                f"{base} is not a Wan2.2 TI2V pipeline: expand_timesteps is off; give the base of a Wan2.2 TI2V model"
            )
        return pipe

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        scale = self.pipe.vae_scale_factor_spatial
        frames = (self.num_frames - 1) // self.pipe.vae_scale_factor_temporal + 1
        return frames, self.pipe.vae.config.z_dim, self.height_px // scale, self.width_px // scale

    @torch.no_grad()
    def _encode_prompt(self, text: str) -> Tensor:
        """The text encoder's output [L,D]."""
        embeddings, _ = self.pipe.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=self.config.max_prompt_tokens
        )
        return embeddings[0].cpu()  # type: ignore[no-any-return]

    def _example(self, clip: Clip, caption: str) -> Example:
        frames = frames_of(clip)
        pixels = unit_pixels(frames.to(self.device)).transpose(0, 1)[None]
        latents = self._normalised(self.pipe.vae.encode(pixels).latent_dist.mode())
        return Example(
            tensors={
                "latents": latents[0].transpose(0, 1).contiguous().cpu(),
                "first_frame": frames[0].clone(),
                "prompt": self._prompt(caption),
            }
        )

    def _normalised(self, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(latents)
        return (latents - mean) / deviation

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each latent channel, [1,C,1,1,1]."""
        config = self.pipe.vae.config
        mean, deviation = (
            like.new_tensor(v)[None, :, None, None, None] for v in (config.latents_mean, config.latents_std)
        )
        return mean, deviation

    def draw(self, num: int, generator: torch.Generator) -> Draw:
        return Draw(
            tensors={
                "level": torch.randint(len(self.levels.sigmas), (num,), generator=generator),
                "noise": torch.randn(num, *self.latent_shape, generator=generator),
            }
        )

    def losses(self, batch: Batch, draw: Draw) -> Tensor:
        given, noise = self._on_device(batch), draw.tensors["noise"].to(self.device)
        level = draw.tensors["level"]
        sigma, timestep, weight = (
            values[level].to(self.device) for values in (self.levels.sigmas, self.levels.timesteps, self.levels.weights)
        )
        clean = given["latents"].float()
        prediction = self.module(
            hidden_states=flow.noised(clean, noise, sigma).transpose(1, 2).to(self.dtype),
            timestep=flow.token_timesteps(timestep, clean.shape[1], self._tokens_per_frame()),
            encoder_hidden_states=given["prompt"].to(self.dtype),
            return_dict=False,
        )[0]
        return flow.losses(prediction.float().transpose(1, 2), clean, noise, weight)

    def _tokens_per_frame(self) -> int:
        _, patch_h, patch_w = self.pipe.transformer.config.patch_size
        _, _, height, width = self.latent_shape
        return int((height // patch_h) * (width // patch_w))

    def _rollouts(self, example: Example, generators: list[torch.Generator]) -> Tensor:
        num = len(generators)
        latents: Tensor = self.pipe(
            picture(example.tensors["first_frame"]),
            prompt_embeds=example.tensors["prompt"].to(self.device).expand(num, -1, -1),
            negative_prompt_embeds=self._negative_LD.to(self.device).expand(num, -1, -1),
            height=self.height_px,
            width=self.width_px,
            num_frames=self.num_frames,
            num_inference_steps=self.config.num_steps,
            guidance_scale=self.config.guidance,
            generator=generators,
            output_type="latent",
        ).frames
        return latents.transpose(1, 2)

    def _pixels(self, latents: Tensor) -> Tensor:
        latents = latents.float().transpose(0, 1)[None]
        mean, deviation = self._statistics(latents)
        pixels: Tensor = self.pipe.vae.decode(latents * deviation + mean, return_dict=False)[0]
        return pixels[0].transpose(0, 1)
