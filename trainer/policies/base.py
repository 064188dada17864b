"""Shares the code of the two base models: loading, adapters, input checks, and sampling in groups.

A policy holds a diffusers pipeline. Rollouts come from the pipeline's own call and losses from its denoiser, so the
trained network is the one that diffusers runs. T frames, H and W pixels, F latent frames, C channels, h and w latent
sides.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from protos.types import Clip
from trainer.policies import lora
from trainer.policies.lora import LoraSize
from trainer.policies.protocol import Batch, Draw, Example, PolicyError

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How to load and run a base model. The subclasses' defaults are those of SHIFT's reference code."""

    side_multiple_px: ClassVar[int] = 8
    """Height and width must be multiples of this."""

    base: str
    """Hub id or local folder of a diffusers pipeline."""
    num_frames: int
    height_px: int
    width_px: int
    fps: float
    """Frames per second of the sampled clips."""
    num_steps: int = 25
    """Denoising steps of a rollout."""
    group_size: int = 2
    """Rollouts sampled at a time. It bounds memory and does not change the rollouts."""
    lora: LoraSize | None = field(default_factory=LoraSize)
    """If None, every parameter of the denoiser is trained."""
    sft_lora: Path | None = None
    """Folder of a LoRA that is merged into the base before training."""
    precision: Precision = "bf16"
    """Type of the frozen denoiser and encoders. The VAE, the LoRA and the loss stay in float32."""
    gradient_checkpointing: bool = True
    seed: int = 0
    """Seed of the LoRA's initial values."""

    def __post_init__(self) -> None:
        for name in ("num_frames", "height_px", "width_px", "num_steps", "group_size"):
            if getattr(self, name) < 1:
                raise PolicyError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.fps > 0:
            raise PolicyError(f"fps must be above 0, got {self.fps:g}")
        for name in ("height_px", "width_px"):
            if getattr(self, name) % self.side_multiple_px:
                raise PolicyError(
                    f"{name} must be a multiple of {self.side_multiple_px} for this model, got {getattr(self, name)}"
                )
        if self.precision not in DTYPES:
            raise PolicyError(f"precision must be one of {', '.join(DTYPES)}, got {self.precision}")
        if self.lora is None and self.precision != "fp32":
            raise PolicyError(
                f"without a LoRA the denoiser itself is trained, and in {self.precision} most steps round to nothing; "
                "set precision=fp32, or give a lora"
            )


class DiffusersPolicy(ABC):
    """A policy on a diffusers pipeline. `protocol.Policy` documents the methods."""

    name: str
    denoiser_name: ClassVar[str]
    """The pipeline's trained component. Its name is also the prefix of the LoRA's tensors."""
    lora_targets: ClassVar[str]
    """Regular expression for the linear layers that get an adapter."""

    def __init__(self, config: PolicyConfig, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.dtype = DTYPES[config.precision]
        self.fps, self.num_frames = config.fps, config.num_frames
        self.height_px, self.width_px = config.height_px, config.width_px
        self.group_size = config.group_size
        with torch.random.fork_rng(devices=[]):  # transformers draws random weights before it reads the saved ones
            self.pipe: Any = self._loaded(config.base)
        self.pipe.set_progress_bar_config(disable=True)
        for component in self.pipe.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False)
        self.pipe.to(self.device)
        self.denoiser: nn.Module = getattr(self.pipe, self.denoiser_name)
        self._adapt(config)
        self.module: nn.Module = self.denoiser

    def _loaded(self, base: str) -> Any:
        try:
            return self._load(base)
        except OSError as error:
            raise PolicyError(
                f"cannot load the base '{base}': give a diffusers folder, or a hub id that this machine can reach and, "
                f"if its licence requires it, is logged in for ({error})"
            ) from error

    def _adapt(self, config: PolicyConfig) -> None:
        if config.sft_lora is not None:
            if config.precision == "bf16":
                log.warning(
                    "policy.sft_lora is rounded to bf16 with the base, so a weak one loses much; use precision=fp32"
                )
            lora.merge(self.denoiser, config.sft_lora, prefix=self.denoiser_name)
        if config.lora is None:
            self.denoiser.requires_grad_(True)
        else:
            lora.inject(self.denoiser, targets=self.lora_targets, size=config.lora, seed=config.seed)
        if config.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]

    @abstractmethod
    def _load(self, base: str) -> Any:
        """Load the pipeline, with each component in its type."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape of a clip's latents: F, C, h, w."""

    @abstractmethod
    def _example(self, clip: Clip, caption: str) -> Example: ...

    @abstractmethod
    def draw(self, num: int, generator: torch.Generator) -> Draw: ...

    @abstractmethod
    def losses(self, batch: Batch, draw: Draw) -> Tensor: ...

    @abstractmethod
    def _rollouts(self, example: Example, generators: list[torch.Generator]) -> Tensor:
        """Latents [P,F,C,h,w], one per generator."""

    @abstractmethod
    def _pixels(self, latents: Tensor) -> Tensor:
        """Decode latents [F,C,h,w] to pixels [T,3,H,W], approximately in [-1,1]."""

    def encode(self, clips: Sequence[Clip], captions: Sequence[str]) -> list[Example]:
        if len(clips) != len(captions):
            raise PolicyError(f"each clip needs a caption, got {len(clips)} clips and {len(captions)} captions")
        for clip in clips:
            self._check(clip)
        with torch.no_grad():
            return [self._example(clip, caption) for clip, caption in zip(clips, captions, strict=True)]

    def _check(self, clip: Clip) -> None:
        wanted = (self.num_frames, 3, self.height_px, self.width_px)
        if clip.frames.shape != wanted:
            raise PolicyError(
                f"{self.name} takes frames {list(wanted)}, got {list(clip.frames.shape)}; "
                "resample and resize the clip, or set num_frames, height_px and width_px"
            )

    def with_latents(self, example: Example, latents: Tensor) -> Example:
        return example.with_latents(latents)

    @torch.no_grad()
    def sample(self, example: Example, seeds: Sequence[int]) -> list[Tensor]:
        if example.latents.shape != self.latent_shape:
            raise PolicyError(f"latents must be {self.latent_shape}, got {tuple(example.latents.shape)}; encode again")
        rollouts: list[Tensor] = []
        for start in range(0, len(seeds), self.group_size):
            # CPU generators: the same seed gives the same noise on every device.
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + self.group_size]]
            rollouts += self._rollouts(example, generators).float().cpu().unbind()
        return rollouts

    @torch.no_grad()
    def decode(self, latents: Sequence[Tensor]) -> list[Clip]:
        return [Clip(frames=_bytes(self._pixels(one.to(self.device))), fps=self.fps) for one in latents]

    def save_lora(self, folder: Path, values: Mapping[str, Tensor] | None = None) -> None:
        lora.save(self.denoiser, folder, prefix=self.denoiser_name, values=values)

    def load_lora(self, folder: Path) -> None:
        lora.load(self.denoiser, folder, prefix=self.denoiser_name)

    def _on_device(self, tensors: Batch | Draw) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in tensors.tensors.items()}


def unit_pixels(frames: Tensor) -> Tensor:
    """Convert uint8 0..255 to float32 -1..1, as diffusers' image processor does."""
    return frames.float() / 255 * 2 - 1


def frames_of(clip: Clip) -> Tensor:
    """A copy of the frames, uint8 [T,3,H,W]. A clip's own array may be read-only, which torch warns about."""
    return torch.from_numpy(clip.frames.copy())


def picture(first_frame: Tensor) -> Image.Image:
    """The PIL image of a frame, uint8 [3,H,W]."""
    return Image.fromarray(first_frame.permute(1, 2, 0).numpy())


def _bytes(pixels: Tensor) -> Any:
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
