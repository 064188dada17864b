"""torch.compile for the methods of the networks and heads that it makes faster on a GPU; off unless told otherwise.

A `compilable` method runs as Python wrote it until its module has a `Compute` (prepacked.py) that says how
to compile. Then all modules of the class share one compiled function per mode, for any sizes (symbolic
shapes: no new compilation for another clip), and the state dict stays as it was. Inside, layers are torch's
plain ones, which the compiler can see through; on a CPU the packed ones are as fast without it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from reward_server.errors import NotReady

CompileMode = Literal["none", "default", "max-autotune", "reduce-overhead"]
GRAPHED = ("max-autotune", "reduce-overhead")  # on a GPU, torch records these as CUDA graphs

Method = TypeVar("Method", bound=Callable[..., Any])


def compilable(method: Method) -> Method:
    """A method of a module with a `compute`: tensors in, a tensor or a tuple of them out, without gradients."""

    @functools.wraps(method)
    def told(module: Any, *given: Any) -> Any:
        mode: CompileMode = module.compute.compile if module.compute else "none"
        if mode == "none" or torch.compiler.is_compiling() or torch.is_grad_enabled():
            return method(module, *given)
        result = _compiled(method, mode)(module, *given)
        return _own(result) if mode in GRAPHED else result

    return told  # type: ignore[return-value]


def check_compiles(mode: CompileMode, device: str) -> None:
    """Compile something small. Raises NotReady where torch.compile lacks a compiler."""
    if mode == "none":
        return
    try:
        torch.compile(_probe)(torch.ones(4, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotReady(
            f"torch.compile does not work on {device} ({reason}); install a C++ compiler, and on a GPU triton, "
            "or leave the setting `compile` at none"
        ) from error


@functools.cache
def _compiled(method: Callable[..., Any], mode: CompileMode) -> Callable[..., Any]:
    return torch.compile(method, mode=mode, dynamic=True)


def _own(result: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """Copies: what a CUDA graph returns lies in its memory, where the next run writes again."""
    return result.clone() if isinstance(result, Tensor) else tuple(part.clone() for part in result)


def _probe(x: Tensor) -> Tensor:
    return x.sin() + 1
