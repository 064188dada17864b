"""Tests compiled methods: same results as uncompiled at any size, one compilation for all modules, same state dict."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from reward_server.discriminators.residual_vit import ResidualViT, ResidualViTConfig
from reward_server.discriminators.track_vit import TrackViT
from reward_server.errors import NotReady
from reward_server.estimators.cotracker3 import CoTracker3, CoTracker3Config
from reward_server.estimators.sea_raft import SeaRaft, SeaRaftConfig
from reward_server.networks.compiled import _compiled, check_compiles, compilable
from reward_server.networks.prepacked import Compute, set_compute
from reward_server.networks.track_transformer import SelfBlock, TrackViTConfig

COMPILED = Compute(compile="default")
TRACKS = TrackViTConfig(token_dim=40, dim=32, heads=2, depth=2, mlp_dim=64, num_virtual=8)
MAPS = ResidualViTConfig(height_px=32, width_px=48, dim=48, depth=3, heads=3)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.manual_seed(3)
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def network(name: str) -> nn.Module:
    if name == "tracks":
        return TrackViT(TRACKS).eval()
    if name == "maps":
        return ResidualViT(MAPS).eval()
    if name == "tracker":
        trunk = TrackViTConfig(dim=32, heads=2, depth=1, mlp_dim=64, num_virtual=4)
        return CoTracker3(CoTracker3Config(height_px=64, width_px=96, iters=2, trunk=trunk, frames_per_pass=2))
    return SeaRaft(SeaRaftConfig(iters=2, pairs_per_pass=2))


def inputs(name: str, *, larger: bool) -> tuple[Tensor, ...]:
    if name == "tracks":
        return (torch.randn(2, 11, 7, 40) if larger else torch.randn(1, 9, 5, 40),)
    if name == "maps":
        return (torch.randn(1, 4, 2, 48, 64) if larger else torch.randn(1, 3, 2, 32, 48),)
    if name == "tracker":
        num_frames, height, width = (7, 80, 96) if larger else (5, 64, 72)
        clip = torch.randint(0, 256, (1, num_frames, 3, height, width)).float()
        return clip, 2 * torch.rand(1, 9 if larger else 5, 3)
    # Large enough that convolutions use the same algorithms on a CPU; others would need a compilation of their own.
    return (torch.randint(0, 256, (1, 5, 3, 256, 320) if larger else (1, 3, 3, 192, 256)).float(),)


def outputs(module: nn.Module, given: tuple[Tensor, ...], compute: Compute) -> list[Tensor]:
    set_compute(module, compute)
    with torch.inference_mode():  # as in the server, where weights are created outside of it
        result = module(*given)
    return [result] if isinstance(result, Tensor) else list(vars(result).values())


def assert_plain(module: nn.Module, given: tuple[Tensor, ...], compute: Compute = COMPILED) -> None:
    expected = outputs(module, given, Compute(packed=False))
    for ours, plain in zip(outputs(module, given, compute), expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-4)


@pytest.fixture
def without_inductor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs and guards are dynamo's. For the larger networks the C++ that inductor makes of a graph takes minutes, so
    their graphs run as they are; inductor itself compiles the two discriminators."""
    _compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(_compile_graphs, torch.compile))
    yield
    _compiled.cache_clear()


def _compile_graphs(compile_plain: Callable[..., Any], method: Any, *, dynamic: bool, **_: Any) -> Any:
    return compile_plain(method, dynamic=dynamic, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tracks", "maps"])
def test_one_compilation_serves_every_size_and_network(name: str) -> None:
    check_one_compilation(name)


@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize("name", ["tracker", "flow"])
def test_one_graph_serves_every_size_and_network(name: str) -> None:
    check_one_compilation(name)


def check_one_compilation(name: str) -> None:
    module = network(name)
    keys = list(module.state_dict())
    assert_plain(module, inputs(name, larger=False))
    num_graphs = counters["stats"]["unique_graphs"]
    assert num_graphs > 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_plain(module, inputs(name, larger=True))
        assert_plain(network(name), inputs(name, larger=False))  # of other weights
    assert counters["stats"]["unique_graphs"] == num_graphs
    assert not counters["graph_break"]
    assert list(module.state_dict()) == keys


@pytest.mark.slow
def test_bf16_is_compiled_too() -> None:
    module, given = network("tracks"), inputs("tracks", larger=False)
    ways = [Compute(precision="bf16", packed=False, compile=mode) for mode in ("none", "default")]  # type: ignore[arg-type]
    plain, ours = (outputs(module, given, way)[0] for way in ways)
    assert ours.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(ours, plain, atol=0.05, rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_changed_parameter_takes_effect_at_once(mode: str) -> None:
    block, x = SelfBlock(TRACKS).requires_grad_(False), torch.randn(3, 5, 32)
    before = outputs(block, (x,), Compute(compile=mode))[0]  # type: ignore[arg-type]
    kept = before.clone()
    block.mlp.fc2.weight.mul_(2)
    assert_plain(block, (x,), Compute(compile=mode))  # type: ignore[arg-type]
    block.load_state_dict({name: torch.randn_like(value) for name, value in block.state_dict().items()})
    assert_plain(block, (x,), Compute(compile=mode))  # type: ignore[arg-type]
    assert torch.equal(before, kept)


@pytest.mark.slow
def test_dropping_a_network_keeps_the_compilation() -> None:
    """Discriminator versions are loaded and dropped all the time."""
    block, x = SelfBlock(TRACKS), torch.randn(3, 5, 32)
    assert_plain(block, (x,))
    del block
    gc.collect()
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_plain(SelfBlock(TRACKS), (x,))


class Doubling(nn.Module):
    """Records whether it was compiled."""

    compute: Compute | None = None

    @compilable
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if torch.compiler.is_compiling() else x


@pytest.mark.slow
def test_compiles_only_with_a_mode_and_without_gradients() -> None:
    module, x = Doubling(), torch.ones(3)
    assert torch.equal(outputs(module, (x,), Compute())[0], x)
    assert torch.equal(outputs(module, (x,), COMPILED)[0], 2 * x)
    assert torch.equal(module(x), x)  # gradients could be asked for
    set_compute(module, None)
    with torch.no_grad():
        assert torch.equal(module(x), x)


@pytest.mark.slow
def test_a_profile_is_not_ready_if_compiling_fails() -> None:
    check_compiles("none", "nowhere")
    check_compiles("default", "cpu")
    torch.compiler.reset()
    with (
        inductor.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}),
        pytest.raises(NotReady, match="leave the setting `compile` at none"),
    ):
        check_compiles("default", "cpu")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(
        ValueError, match="compile must be one of none, default, max-autotune, reduce-overhead, got fast"
    ):
        Compute(compile="fast")  # type: ignore[arg-type]
