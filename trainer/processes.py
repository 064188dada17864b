"""What the processes of a run tell each other, through Accelerate.

A process that is alone is told what it said, from where it is: Apple's MPS, which is always alone, has no float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def mean_over_processes(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Element by element, on the device that the values are on."""
    if accelerator.num_processes == 1:
        return values
    reduced: Any = accelerator.reduce(values.to(accelerator.device), reduction="mean")
    return reduced.to(values.device)  # type: ignore[no-any-return]


def gathered(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """The rows of all processes, process by process, on the device that they are on."""
    if accelerator.num_processes == 1:
        return rows
    found: Any = accelerator.gather(rows.to(accelerator.device))
    return found.to(rows.device)  # type: ignore[no-any-return]


def from_main(accelerator: Accelerator, tell: Callable[[], str] | None) -> str:
    """What the main process's `tell()` says, in every process. At most 256 bytes."""
    text = tell().encode() if tell else b""
    row = torch.zeros(257, dtype=torch.int64, device=accelerator.device)
    row[0] = len(text)
    row[1 : 1 + len(text)] = torch.tensor(list(text), dtype=torch.int64)
    told: Any = broadcast(row)
    return bytes(told[1 : 1 + int(told[0])].tolist()).decode()


def true_in_all(accelerator: Accelerator, fact: bool) -> bool:
    """Whether `fact` is true in every process."""
    return mean_over_processes(accelerator, torch.tensor([float(fact)])).item() == 1.0


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that FSDP keeps in shards: every process must ask. Any other tensor as it is."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in shards as FSDP keeps `like`: every process must ask. Where it keeps none, as it is."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor
