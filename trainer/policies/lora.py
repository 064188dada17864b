"""Injects, merges, saves and loads low-rank adapters with peft, in the file layout of diffusers.

The file is pytorch_lora_weights.safetensors. It holds `<prefix>.<module>.lora_A.weight` and `lora_B` in float32, with
peft's configuration in the header. `load_lora_weights` of diffusers' pipelines reads it. StableVideoDiffusionPipeline
has no such method; `attach(pipe.unet, folder, prefix="unet")` does the same. Never save a whole pipeline with an
injected adapter: diffusers would initialise the wrapped layers at random when it reads them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig, LoraModel, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.policies.protocol import PolicyError

ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class LoraSize:
    """Rank and alpha of an adapter. Its update is scaled by alpha / rank."""

    rank: int = 32
    alpha: int = 32

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise PolicyError(f"rank and alpha must be at least 1, got {self.rank} and {self.alpha}")


def inject(denoiser: nn.Module, *, targets: str, size: LoraSize, seed: int) -> None:
    """Put a new adapter on the linear layers whose names match `targets`.

    Its values are Gaussian from `seed`, and it has no effect yet. Afterwards only its float32 parameters require
    gradients.
    """
    config = LoraConfig(r=size.rank, lora_alpha=size.alpha, init_lora_weights="gaussian", target_modules=targets)
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, denoiser, ADAPTER)
    for parameter in denoiser.parameters():
        if parameter.requires_grad:  # peft gives the adapter the base's type, and bfloat16 is too coarse to train in
            parameter.data = parameter.data.float()


def save(denoiser: nn.Module, folder: Path, *, prefix: str, values: Mapping[str, Tensor] | None = None) -> None:
    """Write an adapter to `folder` in float32: the denoiser's own, or `values` of its parameters by name.

    Raises PolicyError if the denoiser has no adapter.
    """
    tensors = {f"{prefix}.{name}": tensor.cpu().contiguous() for name, tensor in _state(denoiser, values).items()}
    config: Any = denoiser.peft_config[ADAPTER]  # type: ignore[index]
    described = {f"{prefix}.{name}": _plain(value) for name, value in config.to_dict().items()}
    header = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(described, indent=2, sort_keys=True)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / LORA_WEIGHT_NAME_SAFE, metadata=header)


def load(denoiser: nn.Module, folder: Path, *, prefix: str) -> None:
    """Set the injected adapter to the one in `folder`. Raises PolicyError if layers or ranks differ."""
    tensors, _ = _read(folder, prefix)
    have = {name: list(tensor.shape) for name, tensor in _state(denoiser).items()}
    given = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if have != given:
        differ = sorted(name for name in have.keys() | given.keys() if have.get(name) != given.get(name))
        raise PolicyError(
            f"the LoRA in {folder} differs from this policy's in {len(differ)} layers. The first is {differ[0]}: "
            f"{given.get(differ[0])} for {have.get(differ[0])}; use the same base, targets and rank"
        )
    set_peft_model_state_dict(denoiser, tensors, ADAPTER)


def attach(denoiser: nn.Module, folder: Path, *, prefix: str) -> nn.Module:
    """Inject the adapter in `folder` into a denoiser without one, for inference. Returns peft's wrapper.

    Raises PolicyError if the adapter does not fit the denoiser.
    """
    tensors, config = _read(folder, prefix)
    tuner: nn.Module = LoraModel(denoiser, {ADAPTER: config}, ADAPTER)
    unknown = set_peft_model_state_dict(denoiser, tensors, ADAPTER).unexpected_keys
    if unknown:
        raise PolicyError(
            f"the LoRA in {folder} has layers that the denoiser lacks. The first is {unknown[0]}; "
            "use the base that it was trained on"
        )
    return tuner


def merge(denoiser: nn.Module, folder: Path, *, prefix: str) -> None:
    """Add the adapter in `folder` to the denoiser's own weights, which gives a new base to train from."""
    tuner: Any = attach(denoiser, folder, prefix=prefix)
    tuner.merge_and_unload()


def _state(denoiser: nn.Module, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    if not hasattr(denoiser, "peft_config"):
        raise PolicyError("this policy has no LoRA: it was created with lora=None; create it with a LoraSize")
    state: dict[str, Tensor] = get_peft_model_state_dict(denoiser, state_dict=values, adapter_name=ADAPTER)
    return state


def _read(folder: Path, prefix: str) -> tuple[dict[str, Tensor], LoraConfig]:
    path = folder / LORA_WEIGHT_NAME_SAFE
    if not path.is_file():
        raise PolicyError(f"there is no {LORA_WEIGHT_NAME_SAFE} in {folder}; give the folder that save_lora wrote")
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(f"{prefix}.")]  # noqa: SIM118 - no mapping
        tensors = {name.removeprefix(f"{prefix}."): file.get_tensor(name) for name in names}
        described = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
    if not tensors:
        raise PolicyError(f"{path} has no tensors of {prefix}.*, so it is a LoRA of another model; give one of this")
    settings = {name.removeprefix(f"{prefix}."): value for name, value in described.items()}
    return tensors, _described(settings, path) if settings else _guessed(tensors)


def _described(settings: dict[str, Any], path: Path) -> LoraConfig:
    """The configuration in the header. Raises PolicyError for unknown settings: they may change what the LoRA does."""
    saved, installed = settings.get("peft_version") or "of unknown version", version("peft")
    unknown = sorted(settings.keys() - signature(LoraConfig).parameters.keys())
    if unknown:
        raise PolicyError(
            f"{path} was saved with peft {saved}; the installed peft {installed} lacks {len(unknown)} of its settings: "
            f"{', '.join(unknown)}; install a peft that has them (pip install --upgrade peft), or save the LoRA again "
            "with the installed one"
        )
    try:
        return LoraConfig(**settings)
    except (TypeError, ValueError) as error:
        raise PolicyError(
            f"{path} was saved with peft {saved}; the installed peft {installed} refuses its settings ({error}); "
            "install the version that saved it"
        ) from error


def _guessed(tensors: dict[str, Tensor]) -> LoraConfig:
    """The configuration of a file without a header, from its tensors. Alpha is the rank, as in diffusers."""
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A.weight")}
    if len(ranks) != 1:
        raise PolicyError(
            f"a LoRA without peft's header must have one rank, got {sorted(ranks)}; save it again with the header"
        )
    modules = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    rank = ranks.pop()
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=modules)


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else value
