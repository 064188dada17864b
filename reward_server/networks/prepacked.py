"""Layers of the frozen networks that compute as they are told: precision, packed weights, fused activations.

`Linear` and `Conv2d` are torch's, with the same parameters and, until a `Compute` is set, the same
numbers. With one they may run on weights laid out for oneDNN, with the activation, the residual or
a BatchNorm folded into the same pass. That API is private to torch, and not every CPU has it in every precision:
`packing_works` tries it once against the plain operators, and where it is missing, fails or disagrees, those run.
Packed weights are made at the first call and again whenever a parameter changed; on a CPU they live no longer than
their network's call (`releasing`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reward_server.networks.compiled import CompileMode

MIB = 1024**2
CHANNELS_LAST = torch.channels_last
Network = TypeVar("Network", bound=nn.Module)
Given = ParamSpec("Given")
Made = TypeVar("Made")
Precision = Literal["fp32", "bf16"]
Gelu = Literal["none", "tanh"]  # torch's names of the exact GELU and of its approximation


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a frozen network computes. Results differ by rounding alone, except for the precision."""

    precision: Precision = "fp32"  # of products; positions, correlations and norms' sums stay fp32
    packed: bool = True  # oneDNN's packed weights and fused activations, on a CPU where they work
    memory_mib: int = 64  # what the intermediate values of one pass may take; passes go over tracks and frames
    compile: CompileMode = "none"  # torch.compile's mode (compiled.py); what is compiled is not packed

    def __post_init__(self) -> None:
        if self.compile not in get_args(CompileMode):
            raise ValueError(f"need compile of {', '.join(get_args(CompileMode))}, got {self.compile}")
        if self.precision not in get_args(Precision) or self.memory_mib < 1:
            raise ValueError(f"need precision fp32 or bf16 and memory_mib of at least 1, got {self}")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def num_per_pass(self, bytes_each: int) -> int:
        """How many items of so many bytes fit the budget, at least one."""
        return max(1, self.memory_mib * MIB // max(1, bytes_each))


def per_pass(compute: Compute | None, device: torch.device, on_cpu: int, bytes_each: int) -> int:
    """How many items go at once: `on_cpu` there, where few stay in its caches, and what the memory allows elsewhere."""
    return on_cpu if device.type == "cpu" else (compute or Compute()).num_per_pass(bytes_each)


def set_compute(network: nn.Module, compute: Compute | None) -> None:
    """Tell every layer of `network` how to compute; None is plain torch in the parameters' own precision."""
    for part in network.modules():
        if hasattr(type(part), "compute"):
            part.compute = compute  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """Weights as one call wants them, and the state of the parameters they were made of."""

    state: tuple[object, ...]
    weight: Tensor
    bias: Tensor | None
    packed: bool


class _Prepared(nn.Module):
    """Keeps weights made ready for a `Compute`; copies and pickles of the layer leave them behind."""

    compute: Compute | None = None
    _ready: _Ready | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_ready"}

    def train(self, mode: bool = True) -> Any:
        self._ready = None
        return super().train(mode)

    def release(self) -> None:
        ready = self._ready
        if ready is not None and ready.weight.device.type == "cpu":
            self._ready = None

    def _made(self, sources: list[Tensor], extra: tuple[object, ...], make: Callable[[], _Ready]) -> _Ready:
        if torch.compiler.is_compiling() or any(source.is_inference() for source in sources) or needs_grad(*sources):
            return make()  # inference tensors do not tell when they change
        state = (*((id(source), source.data_ptr(), source._version) for source in sources), *extra)
        ready = self._ready
        if ready is None or ready.state != state:
            self._ready = ready = dataclasses.replace(make(), state=state)
        return ready

    def _packs(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or self.compute is None or x.device.type != "cpu":
            return False
        return self.compute.packed and packing_works(x.dtype)


def releasing(forward: Callable[Concatenate[Network, Given], Made]) -> Callable[Concatenate[Network, Given], Made]:
    """A network's call after which, on a CPU, its layers forget the weights that they made ready.

    Those are a second copy of all weights, kept beside the intermediate values of the other networks; to make them
    anew takes less than a hundredth of a clip's time. What another thread's call then lacks, it makes too.
    """

    @functools.wraps(forward)
    def forward_and_release(network: Network, /, *given: Given.args, **named: Given.kwargs) -> Made:
        try:
            return forward(network, *given, **named)
        finally:
            for part in network.modules():
                if isinstance(part, _Prepared):
                    part.release()

    return forward_and_release


class Linear(_Prepared, nn.Linear):
    """torch's linear layer; `exact` keeps it in float32 whatever the precision."""

    exact = False

    @classmethod
    def of(cls, layer: nn.Linear) -> Linear:
        """This layer with the parameters of another."""
        ours = cls(layer.in_features, layer.out_features, device="meta")
        ours.weight, ours.bias = layer.weight, layer.bias
        return ours

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x)

    def fused(self, x: Tensor, *, gelu: Gelu | None = None, plus: Tensor | None = None) -> Tensor:
        """The layer, then a GELU or the addition of `plus`, of the result's shape; a sum with float32 is float32."""
        if self.compute is None or needs_grad(x, self.weight):
            return _followed(F.linear(x, self.weight, self.bias), gelu, plus)
        dtype = torch.float32 if self.exact else self.compute.dtype
        x = x.to(dtype)
        num_rows = x.numel() // x.shape[-1]
        packs = self._packs(x) and (gelu is not None or dtype != torch.float32 or not plain_is_fast())
        ready = self._made([self.weight, self.bias], (dtype, packs), lambda: self._prepare(dtype, packs, num_rows))
        if not ready.packed:
            return _followed(F.linear(x, ready.weight, ready.bias), gelu, plus)
        ops = torch.ops.mkldnn
        if plus is not None and plus.dtype == dtype:
            return ops._linear_pointwise.binary(x, plus, ready.weight, ready.bias, "add")  # type: ignore[no-any-return]
        y: Tensor = ops._linear_pointwise(x, ready.weight, ready.bias, "gelu" if gelu else "none", [], gelu or "")
        return y if plus is None else plus + y

    def _prepare(self, dtype: torch.dtype, packs: bool, num_rows: int) -> _Ready:
        weight, bias = self.weight.detach().to(dtype), self.bias.detach().to(dtype)
        if packs:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
        return _Ready(state=(), weight=weight, bias=bias, packed=packs)


class Conv2d(_Prepared, nn.Conv2d):
    """torch's convolution; a BatchNorm by its running statistics and a ReLU can follow in the same pass."""

    exact = False

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x)

    def fused(self, x: Tensor, *, norm: nn.BatchNorm2d | None = None, relu: bool = False) -> Tensor:
        """The convolution, then `norm` by its running statistics, then a ReLU."""
        dtype = torch.float32 if self.exact else self.compute.dtype if self.compute else self.weight.dtype
        x = x.to(dtype)
        packs = self._packs(x) and not needs_grad(x, self.weight)
        sources = [self.weight, *(tensor for tensor in (self.bias, *_statistics(norm)) if tensor is not None)]
        shape = tuple(x.shape)
        extra = (dtype, packs, shape if packs else ())
        ready = self._made(sources, extra, lambda: self._prepare(dtype, packs, shape, norm))
        if not ready.packed:
            y = F.conv2d(x, ready.weight, ready.bias, self.stride, self.padding, self.dilation, self.groups)
            return y.relu_() if relu else y
        x = x.contiguous(memory_format=CHANNELS_LAST)
        name = "relu" if relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
            x, ready.weight, ready.bias, *self._geometry(), name, [], ""
        )

    def _prepare(self, dtype: torch.dtype, packs: bool, shape: tuple[int, ...], norm: nn.BatchNorm2d | None) -> _Ready:
        weight, bias = self.weight, self.bias
        if norm is not None:
            weight, bias = folded(weight, bias, norm)
        weight, bias = weight.to(dtype), bias if bias is None else bias.to(dtype)
        if packs:
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight.detach(), *self._geometry(), list(shape))
        return _Ready(state=(), weight=weight, bias=bias, packed=packs)

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        assert not isinstance(self.padding, str)
        return list(self.padding), list(self.stride), list(self.dilation), self.groups


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int, out: int | None = None, *, gelu: Gelu = "none") -> None:
        super().__init__()
        self.gelu = gelu
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, out or dim)

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """The layers' result, plus a residual where one is given."""
        return self.fc2.fused(self.fc1.fused(x, gelu=self.gelu), plus=plus)


def passes(num: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover 0..num."""
    return (slice(start, min(start + size, num)) for start in range(0, num, size))


def folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the BatchNorm after it, by its running statistics, as one convolution."""
    assert bias is not None and norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return weight * scale[:, None, None, None], (bias - norm.running_mean) * scale + norm.bias


def needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


@cache
def plain_is_fast() -> bool:
    """Whether plain float32 products need no packing, and so no second copy of their weights, unless a GELU follows.

    They run on MKL, which is at its best on Intel's CPUs and at half speed on others.
    """
    described = Path("/proc/cpuinfo")
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return has_mkl and described.is_file() and "GenuineIntel" in described.read_text()


@cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN's packed layers, this CPU computes them in `dtype`, and they agree with the plain
    ones. (Those of bf16 raise on a CPU without AVX-512 or bf16 of its own.)"""
    generator = torch.Generator().manual_seed(0)
    near = 1e-3 if dtype == torch.float32 else 0.25  # sums of 32 and 144 products of normal numbers
    try:
        pairs = [*_linears(dtype, generator), *_convolutions(dtype, generator)]
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return all(torch.allclose(packed.float(), plain.float(), atol=near) for packed, plain in pairs)


def _linears(dtype: torch.dtype, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """(packed, plain) results of a linear layer with each thing that may follow it."""
    x, plus = torch.randn(2, 5, 32, generator=generator).to(dtype)
    weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in ((32, 32), (32,)))
    ops = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight, 5)
    y = F.linear(x, weight, bias)
    return [
        (ops._linear_pointwise(x, packed, bias, "gelu", [], "none"), F.gelu(y)),
        (ops._linear_pointwise(x, packed, bias, "gelu", [], "tanh"), F.gelu(y, approximate="tanh")),
        (ops._linear_pointwise.binary(x, plus, packed, bias, "add"), y + plus),
    ]


def _convolutions(dtype: torch.dtype, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """(packed, plain) results of a convolution with a ReLU."""
    x = torch.randn(1, 16, 9, 11, generator=generator).to(dtype).contiguous(memory_format=CHANNELS_LAST)
    weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in ((32, 16, 3, 3), (32,)))
    geometry = ([1, 1], [2, 2], [1, 1], 1)
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(x.shape))
    ours = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *geometry, "relu", [], "")
    return [(ours, F.conv2d(x, weight, bias, 2, 1).relu_())]


def _followed(y: Tensor, gelu: Gelu | None, plus: Tensor | None) -> Tensor:
    if gelu:
        return F.gelu(y, approximate=gelu)
    return y if plus is None else plus + y


def _statistics(norm: nn.BatchNorm2d | None) -> tuple[Tensor | None, ...]:
    return () if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)
