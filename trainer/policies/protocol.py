"""Defines what the training loop needs from a base model: encode, draw, losses, sample, decode, and a trainable LoRA.

The loop, the losses of SHIFT and the checkpoints depend on this file only. `svd.py` and `wan.py` implement it.
B samples, F latent frames, C channels, h and w latent sides, T frames, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from protos.types import Clip
from trainer.errors import TrainerError


class PolicyError(TrainerError, ValueError):
    """A policy cannot use its settings, base or input. The message names the value, the limit and the next step."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Example:
    """One clip in a policy's latent space: `latents` [F,C,h,w] and conditions, all on the CPU.

    The tensors can be saved with safetensors. Each policy chooses its own conditions. Raises PolicyError if there are
    no latents with four axes.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        latents = self.tensors.get("latents")
        if latents is None or latents.ndim != 4:
            raise PolicyError(f"an example needs latents [F,C,h,w], got {_shapes(self.tensors)}; make it with encode()")

    @property
    def latents(self) -> Tensor:
        return self.tensors["latents"]

    def with_latents(self, latents: Tensor) -> Example:
        """The same conditions with other latents [F,C,h,w]. Raises PolicyError if the shape differs."""
        if latents.shape != self.latents.shape:
            raise PolicyError(
                f"latents must be {list(self.latents.shape)} as in the example, got {list(latents.shape)}; "
                "sample and encode with the same policy"
            )
        return Example(tensors={**self.tensors, "latents": latents.detach().to("cpu", self.latents.dtype)})

    def __repr__(self) -> str:
        return f"Example({_shapes(self.tensors)})"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Batch:
    """A batch of examples: the tensors of `Example`, each with a leading axis B."""

    tensors: Mapping[str, Tensor]

    @property
    def latents(self) -> Tensor:
        return self.tensors["latents"]

    def __len__(self) -> int:
        return len(self.latents)

    def __repr__(self) -> str:
        return f"Batch({_shapes(self.tensors)})"


def stack(examples: Sequence[Example]) -> Batch:
    """One batch of examples of one policy. Raises PolicyError if there are none or their shapes differ."""
    if not examples:
        raise PolicyError("a batch needs at least one example, got 0")
    shapes = {_shapes(example.tensors) for example in examples}
    if len(shapes) > 1:
        raise PolicyError(
            f"examples of one batch must have equal shapes, got {sorted(shapes)}; encode all with one policy"
        )
    names = examples[0].tensors
    return Batch(tensors={name: torch.stack([example.tensors[name] for example in examples]) for name in names})


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Draw:
    """The random part of a diffusion loss for B samples, on the CPU: noise, noise level, conditioning noise, dropout.

    Losses with the same draw can be compared: a real clip and its rollouts share one ("matched noise").
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __repr__(self) -> str:
        return f"Draw({_shapes(self.tensors)})"


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name}={list(tensor.shape)}" for name, tensor in tensors.items())


class Policy(Protocol):
    """An image-to-video diffusion model that SHIFT fine-tunes."""

    name: str
    fps: float
    num_frames: int
    height_px: int
    width_px: int
    module: nn.Module
    """The denoiser with its LoRA. After `Accelerator.prepare`, assign the wrapped module here."""

    def encode(self, clips: Sequence[Clip], captions: Sequence[str]) -> list[Example]:
        """Latents and conditions, one example per clip. Raises PolicyError for a clip of another size or length."""
        ...

    def with_latents(self, example: Example, latents: Tensor) -> Example:
        """The example of a rollout: the conditions of its real clip with its own latents [F,C,h,w]."""
        ...

    def draw(self, num: int, generator: torch.Generator) -> Draw:
        """The random part of the losses of `num` samples. `generator` must be on the CPU."""
        ...

    def losses(self, batch: Batch, draw: Draw) -> Tensor:
        """Diffusion loss per sample, float32 [B], differentiable with respect to the trained parameters."""
        ...

    def sample(self, example: Example, seeds: Sequence[int]) -> list[Tensor]:
        """Latents [F,C,h,w] of rollouts on the CPU, one per seed, from the example's first frame and prompt.

        A rollout depends on the example, the weights and its own seed, not on the other seeds.
        """
        ...

    def decode(self, latents: Sequence[Tensor]) -> list[Clip]:
        """Clips of `num_frames` frames at `fps`, one for each of the latents [F,C,h,w]."""
        ...

    def save_lora(self, folder: Path, values: Mapping[str, Tensor] | None = None) -> None:
        """Write pytorch_lora_weights.safetensors in the layout of diffusers and peft.

        `values`, by parameter name, replace the module's own. They are needed where the module holds only a shard.
        """
        ...

    def load_lora(self, folder: Path) -> None:
        """Set the LoRA to exactly what `save_lora` wrote. Raises PolicyError if shapes or names differ."""
        ...
