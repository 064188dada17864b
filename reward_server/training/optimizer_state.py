"""Keeps the state of a discriminator's AdamW as named tensors, in the file of the weights that are trained further."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load
from torch import Tensor, nn

PREFIX = "optimizer."
KINDS = ("step", "exp_avg", "exp_avg_sq")


def saved(optimizer: torch.optim.Optimizer, module: nn.Module, name: str) -> dict[str, Tensor]:
    """The state of the parameters of the discriminator `name`. Parameters without gradients have none."""
    return {
        f"{PREFIX}{name}.{kind}.{parameter}": optimizer.state[value][kind].detach().cpu()
        for parameter, value in module.named_parameters()
        if value in optimizer.state
        for kind in KINDS
    }


def restore(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Go on with the state that `saved` returned. Without one the optimizer starts anew."""
    for parameter, value in module.named_parameters():
        found = {kind: tensors.get(f"{PREFIX}{name}.{kind}.{parameter}") for kind in KINDS}
        if all(tensor is not None for tensor in found.values()):
            # Copies, because the optimizer changes them in place.
            optimizer.state[value] = {kind: tensor.to(value.device, copy=True) for kind, tensor in found.items()}  # type: ignore[union-attr]


def in_file(data: bytes) -> dict[str, Tensor]:
    """The optimizer state in a file of weights; empty if there is none."""
    return {name: tensor for name, tensor in load(data).items() if name.startswith(PREFIX)}
