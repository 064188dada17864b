"""Exchanges values between the processes of a run, through Accelerate.

All processes must call these functions together. With one process, values are returned unchanged, on their own device:
Apple's MPS, which always runs as one process, has no float64, so float64 values must stay on the CPU.
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
    """The mean of `values` over processes, element by element. The result has the shape and device of `values`."""
    if accelerator.num_processes == 1:
        return values
    reduced: Any = accelerator.reduce(values.to(accelerator.device), reduction="mean")
    return reduced.to(values.device)  # type: ignore[no-any-return]


def gathered(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """The rows [N,...] of each process, concatenated in the order of processes, on the device of `rows`."""
    if accelerator.num_processes == 1:
        return rows
    found: Any = accelerator.gather(rows.to(accelerator.device))
    return found.to(rows.device)  # type: ignore[no-any-return]


def from_main(accelerator: Accelerator, make: Callable[[], str] | None) -> str:
    """Broadcasts the text that `make()` returns in the main process. At most 256 bytes in UTF-8.

    `make` is None in the other processes.
    """
    text = make().encode() if make else b""
    row = torch.zeros(257, dtype=torch.int64, device=accelerator.device)
    row[0] = len(text)
    row[1 : 1 + len(text)] = torch.tensor(list(text), dtype=torch.int64)
    received: Any = broadcast(row)
    return bytes(received[1 : 1 + int(received[0])].tolist()).decode()


def true_in_all(accelerator: Accelerator, fact: bool) -> bool:
    """Whether `fact` is true in every process."""
    return mean_over_processes(accelerator, torch.tensor([float(fact)])).item() == 1.0


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of one that FSDP keeps in shards. Any other tensor is returned as it is."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor, sharded as FSDP shards `like`. If `like` is not sharded, the tensor is returned as it is."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor
