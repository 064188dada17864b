"""Defines linear and convolution layers whose precision, packed weights and fused activations a `Compute` sets.

`Linear` and `Conv2d` have the parameters of torch's layers and, until a `Compute` is set, give the same numbers. With
a `Compute` they may run on weights laid out for oneDNN, with the activation, the residual or a BatchNorm fused into
the same pass. That API is private to torch, and not every CPU supports it in every precision. So `packing_works`
compares it once with the plain operators; if it is missing, fails or disagrees, the plain operators run.
Packed weights are made at the first call and again after a parameter changes. On a CPU they are freed at the end of
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
Gelu = Literal["none", "tanh"]  # torch's names for the exact GELU and its tanh approximation


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a network computes. Apart from `precision`, the fields change results only by rounding.

    Raises ValueError for an unknown mode or precision, and for memory_mib below 1.
    """

    precision: Precision = "fp32"  # of matrix products and convolutions; positions, correlations, norm sums stay fp32
    packed: bool = True  # use oneDNN's packed weights and fused activations, on CPUs where they work
    memory_mib: int = 64  # memory for the intermediate values of one pass; passes go over tracks or frames
    compile: CompileMode = "none"  # torch.compile mode (compiled.py); compiled methods do not use packed weights

    def __post_init__(self) -> None:
        if self.compile not in get_args(CompileMode):
            raise ValueError(f"compile must be one of {', '.join(get_args(CompileMode))}, got {self.compile}")
        if self.precision not in get_args(Precision) or self.memory_mib < 1:
            raise ValueError(f"precision must be fp32 or bf16 and memory_mib at least 1, got {self}")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def num_per_pass(self, bytes_each: int) -> int:
        """How many items of `bytes_each` bytes fit into `memory_mib`; at least one."""
        return max(1, self.memory_mib * MIB // max(1, bytes_each))


def per_pass(compute: Compute | None, device: torch.device, on_cpu: int, bytes_each: int) -> int:
    """How many items to process at once: `on_cpu` on a CPU, whose caches hold few; elsewhere what the memory allows."""
    return on_cpu if device.type == "cpu" else (compute or Compute()).num_per_pass(bytes_each)


def set_compute(network: nn.Module, compute: Compute | None) -> None:
    """Set how every layer of `network` computes. None means plain torch in the precision of the parameters."""
    for part in network.modules():
        if hasattr(type(part), "compute"):
            part.compute = compute  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """Weights converted for a call, and the state of the parameters from which they were made."""

    state: tuple[object, ...]
    weight: Tensor
    bias: Tensor | None
    packed: bool


class _Prepared(nn.Module):
    """A layer that caches weights converted for its `Compute`. Copies and pickles of the layer leave the cache out."""

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
            return make()  # inference tensors have no version counter, so a change could not be noticed
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
    """Decorate a network's forward so that its layers free their converted weights afterwards, on a CPU.

    They are a second copy of all weights, and would take memory while the other networks run. Converting them again
    takes less than a hundredth of a clip's time. A call in another thread that misses them converts them again.
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
    """torch's linear layer, computed as `compute` says. `exact` keeps it in float32 in every precision."""

    exact = False

    @classmethod
    def of(cls, layer: nn.Linear) -> Linear:
        """A layer that shares the parameters of another one."""
        ours = cls(layer.in_features, layer.out_features, device="meta")
        ours.weight, ours.bias = layer.weight, layer.bias
        return ours

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x)

    def fused(self, x: Tensor, *, gelu: Gelu | None = None, plus: Tensor | None = None) -> Tensor:
        """Apply the layer, then a GELU if `gelu` is given, or add `plus`, which has the shape of the result.

        Adding a float32 `plus` gives float32.
        """
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
    """torch's convolution, computed as `compute` says. `exact` keeps it in float32 in every precision."""

    exact = False

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x)

    def fused(self, x: Tensor, *, norm: nn.BatchNorm2d | None = None, relu: bool = False) -> Tensor:
        """Apply the convolution, then `norm` with its running statistics, then a ReLU, if these are asked for."""
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
        """Apply both layers, and add the residual `plus` if it is given."""
        return self.fc2.fused(self.fc1.fused(x, gelu=self.gelu), plus=plus)


def passes(num: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` items that cover `num` items."""
    return (slice(start, min(start + size, num)) for start in range(0, num, size))


def folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Fold a BatchNorm, with its running statistics, into the convolution before it: returns weight and bias."""
    assert bias is not None and norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return weight * scale[:, None, None, None], (bias - norm.running_mean) * scale + norm.bias


def needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


@cache
def plain_is_fast() -> bool:
    """Whether plain float32 matrix products are as fast as packed ones: whether torch uses MKL on an Intel CPU.

    On other CPUs MKL runs at half speed. A plain product needs no second copy of its weights. Packing still pays if a
    GELU follows.
    """
    described = Path("/proc/cpuinfo")
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return has_mkl and described.is_file() and "GenuineIntel" in described.read_text()


@cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed layers exist in this torch, run on this CPU in `dtype`, and agree with the plain layers.

    In bf16 they raise on a CPU with neither AVX-512 nor native bf16.
    """
    generator = torch.Generator().manual_seed(0)
    near = 1e-3 if dtype == torch.float32 else 0.25  # sums of 32 and 144 products of normal numbers
    try:
        pairs = [*_linears(dtype, generator), *_convolutions(dtype, generator)]
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return all(torch.allclose(packed.float(), plain.float(), atol=near) for packed, plain in pairs)


def _linears(dtype: torch.dtype, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """(packed, plain) results of a linear layer, for each operation that can be fused after it."""
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
    """(packed, plain) results of a convolution followed by a ReLU."""
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
