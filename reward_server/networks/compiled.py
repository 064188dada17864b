"""Applies torch.compile to the methods of networks and discriminators that it speeds up on a GPU; off by default.

A `compilable` method runs as plain Python until its module has a `Compute` (prepacked.py) with a compile mode. Then
all modules of the class share one compiled function per mode. Shapes are symbolic, so another clip size needs no new
compilation, and the state dict does not change. Compiled code uses torch's plain layers, because the compiler cannot
look into the packed ones. On a CPU the packed layers are as fast without compilation.
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
    """Let torch.compile speed up a method of a module that has a `compute` attribute.

    The method takes tensors and returns a tensor or a tuple of tensors. It runs uncompiled while gradients are enabled.
    """

    @functools.wraps(method)
    def told(module: Any, *given: Any) -> Any:
        mode: CompileMode = module.compute.compile if module.compute else "none"
        if mode == "none" or torch.compiler.is_compiling() or torch.is_grad_enabled():
            return method(module, *given)
        result = _compiled(method, mode)(module, *given)
        return _own(result) if mode in GRAPHED else result

    return told  # type: ignore[return-value]


def check_compiles(mode: CompileMode, device: str) -> None:
    """Compile a small function as a test. Raises NotReady if torch.compile does not work on `device`."""
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
    """Copy the result: a CUDA graph returns its own memory, which the next run overwrites."""
    return result.clone() if isinstance(result, Tensor) else tuple(part.clone() for part in result)


def _probe(x: Tensor) -> Tensor:
    return x.sin() + 1
