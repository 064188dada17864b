"""Tests packed layers: same results as torch's, repacking after any change of weights, and the plain fallback."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reward_server.discriminators.residual_vit import ResidualViT, ResidualViTConfig
from reward_server.discriminators.track_vit import TrackViT
from reward_server.estimators.cotracker3 import CoTracker3, CoTracker3Config
from reward_server.estimators.sea_raft import SeaRaft, SeaRaftConfig
from reward_server.networks import prepacked
from reward_server.networks.prepacked import Compute, Conv2d, Linear, Precision, packing_works, passes, set_compute
from reward_server.networks.track_transformer import TrackViTConfig

WAYS = [Compute(), Compute(packed=False)]
TRACKS = TrackViTConfig(token_dim=40, dim=32, heads=2, depth=2, mlp_dim=64, num_virtual=8)
MAPS = ResidualViTConfig(height_px=32, width_px=48, dim=48, depth=2, heads=3)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(3)
    with torch.no_grad():
        yield


@pytest.fixture
def asked_anew() -> Iterator[None]:
    packing_works.cache_clear()
    yield
    packing_works.cache_clear()


@pytest.fixture
def broken(asked_anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without the packed operators."""
    monkeypatch.setattr(torch.ops, "mkldnn", object())


def linear(compute: Compute | None) -> Linear:
    layer = Linear(24, 16)
    set_compute(layer, compute)
    return layer


@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize("compute", [None, *WAYS])
def test_a_linear_layer_equals_torchs(compute: Compute | None, intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "plain_is_fast", lambda: intel)
    layer, x, plus = linear(compute), torch.randn(2, 5, 24), torch.randn(2, 5, 16)
    y = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.fused(x, gelu="none"), F.gelu(y), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.fused(x, gelu="tanh"), F.gelu(y, approximate="tanh"), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.fused(x, plus=plus), y + plus, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compute", [None, *WAYS])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_equals_torchs(compute: Compute | None, stride: int) -> None:
    layer, norm = Conv2d(6, 8, 3, stride=stride, padding=1), nn.BatchNorm2d(8).eval()
    assert norm.running_mean is not None
    norm.running_mean.normal_()
    set_compute(layer, compute)
    for shape in [(1, 6, 9, 11), (2, 6, 8, 8)]:
        x = torch.randn(shape)
        y = norm(F.conv2d(x, layer.weight, layer.bias, stride, 1))
        torch.testing.assert_close(layer.fused(x, norm=norm), y, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.fused(x, norm=norm, relu=True), y.relu(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compute", WAYS)
def test_bf16_is_near_and_exact_layers_stay_exact(compute: Compute) -> None:
    layer, x = linear(Compute(precision="bf16", packed=compute.packed)), torch.randn(7, 24)
    y = F.linear(x, layer.weight, layer.bias)
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x).float(), y, atol=0.05, rtol=0.05)
    layer.exact = True
    torch.testing.assert_close(layer(x), y, atol=1e-5, rtol=1e-5)


def changed_in_place(layer: Linear) -> None:
    layer.weight.mul_(2)


def loaded(layer: Linear) -> None:
    layer.load_state_dict({"weight": torch.randn(16, 24), "bias": torch.randn(16)})


def assigned(layer: Linear) -> None:
    layer.load_state_dict({"weight": torch.randn(16, 24), "bias": torch.randn(16)}, assign=True)


def stepped(layer: Linear) -> None:
    with torch.enable_grad():
        layer(torch.randn(3, 24)).square().sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()


@pytest.mark.parametrize("change", [changed_in_place, loaded, assigned, stepped])
@pytest.mark.parametrize("compute", [*WAYS, Compute(precision="bf16")])
def test_a_changed_parameter_takes_effect_at_once(change: object, compute: Compute) -> None:
    layer, x = linear(compute), torch.randn(4, 24)
    before = layer(x)
    change(layer)  # type: ignore[operator]
    atol = 0.05 if compute.precision == "bf16" else 1e-5
    torch.testing.assert_close(layer(x).float(), F.linear(x, layer.weight, layer.bias), atol=atol, rtol=atol)
    assert not torch.allclose(layer(x).float(), before.float(), atol=0.1)


def test_inference_tensors_are_never_cached() -> None:
    with torch.inference_mode():
        layer, x = linear(Compute()), torch.randn(4, 24)
        layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


def test_copies_and_pickles_work_after_packing() -> None:
    layer, x = linear(Compute()), torch.randn(4, 24)
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
        other.weight.zero_()
    assert torch.equal(layer(x), expected)


def test_gradients_flow_with_a_compute_set() -> None:
    layer = linear(Compute(precision="bf16"))
    with torch.enable_grad():
        x = torch.randn(4, 24, requires_grad=True)
        layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(4, -1))


def networks() -> list[tuple[nn.Module, tuple[Tensor, ...]]]:
    trunk = TrackViTConfig(dim=32, heads=2, depth=1, mlp_dim=64, num_virtual=4)
    clip = torch.randint(0, 256, (1, 3, 3, 64, 64)).float()
    return [
        (TrackViT(TRACKS).eval(), (torch.randn(2, 9, 5, 40),)),
        (ResidualViT(MAPS).eval(), (torch.randn(2, 3, 2, 32, 48),)),
        (CoTracker3(CoTracker3Config(height_px=32, width_px=32, iters=2, trunk=trunk)), (clip, torch.rand(1, 5, 3))),
        (SeaRaft(SeaRaftConfig(iters=1)), (clip,)),
    ]


def outputs(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    result = network(*inputs)
    return [result] if isinstance(result, Tensor) else list(vars(result).values())


@pytest.mark.parametrize("index", range(4), ids=["tracks", "maps", "tracker", "flow"])
@pytest.mark.parametrize("compute", [*WAYS, Compute(memory_mib=1), Compute(memory_mib=4096)])
@pytest.mark.parametrize("intel", [True, False])
def test_networks_equal_plain_torch(index: int, compute: Compute, intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results do not depend on packing, on the CPU or on the number of passes."""
    monkeypatch.setattr(prepacked, "plain_is_fast", lambda: intel)
    network, inputs = networks()[index]
    set_compute(network, None)
    plain = outputs(network, inputs)
    set_compute(network, compute)
    for ours, expected in zip(outputs(network, inputs), plain, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)


def test_training_over_many_positions_gives_the_same_features() -> None:
    vit = ResidualViT(ResidualViTConfig(height_px=320, width_px=320, dim=48, depth=1, heads=3, dropout=0.0))
    maps = torch.randn(1, 1, 2, 320, 320)
    assert not vit.train().backbone.blocks[0].attn.fused_attn
    trained = vit.features(maps)
    assert vit.eval().backbone.blocks[0].attn.fused_attn
    torch.testing.assert_close(vit.features(maps), trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("index", range(4), ids=["tracks", "maps", "tracker", "flow"])
@pytest.mark.parametrize("packed", [True, False])
def test_networks_run_in_bf16_and_answer_in_float32(index: int, packed: bool) -> None:
    network, inputs = networks()[index]
    plain = outputs(network, inputs)
    set_compute(network, Compute(precision="bf16", packed=packed))
    for ours, expected in zip(outputs(network, inputs), plain, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - expected).abs().mean() < 0.1 * expected.abs().mean() + 0.1


@pytest.mark.usefixtures("broken")
def test_without_the_operators_plain_ones_run() -> None:
    assert not packing_works(torch.float32)
    layer, x = linear(Compute()), torch.randn(4, 24)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    convolution = Conv2d(3, 4, 3)
    set_compute(convolution, Compute())
    image = torch.randn(1, 3, 8, 8)
    assert torch.equal(convolution(image), F.conv2d(image, convolution.weight, convolution.bias))


def test_plain_products_take_no_second_copy_where_they_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = linear(Compute()), torch.randn(4, 24)
    monkeypatch.setattr(prepacked, "plain_is_fast", lambda: True)
    layer(x)
    assert layer._ready is not None and layer._ready.weight.data_ptr() == layer.weight.data_ptr()


@pytest.mark.parametrize("index", range(4), ids=["tracks", "maps", "tracker", "flow"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_networks_free_converted_weights_between_calls(index: int, precision: Precision) -> None:
    network, inputs = networks()[index]
    set_compute(network, Compute(precision=precision))
    ready = {part: 0 for part in network.modules() if isinstance(part, (Linear, Conv2d))}
    for part in ready:
        part.register_forward_hook(counter(ready))
    first = outputs(network, inputs)
    assert sum(ready.values()) > 0
    assert all(part._ready is None for part in ready)
    assert all(torch.equal(a, b) for a, b in zip(outputs(network, inputs), first, strict=True))


def counter(ready: dict[nn.Module, int]) -> Callable[..., None]:
    """A hook that counts the calls after which a layer holds converted weights."""

    def count(part: nn.Module, *_: object) -> None:
        ready[part] += part._ready is not None

    return count


@pytest.mark.usefixtures("asked_anew")
def test_operators_that_disagree_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "_linears", lambda *_: [(torch.zeros(2), torch.ones(2))])
    assert not packing_works(torch.float32)


@pytest.mark.usefixtures("asked_anew")
def test_packing_is_used_only_in_precisions_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    known = prepacked._linears

    def lacking(dtype: torch.dtype, generator: torch.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if dtype == torch.bfloat16:
            raise RuntimeError("bf16 path needs the cpu support avx512bw")
        return known(dtype, generator)

    monkeypatch.setattr(prepacked, "_linears", lacking)
    layer, x = linear(Compute(precision="bf16")), torch.randn(4, 24)
    bf16 = [part.bfloat16() for part in (x, layer.weight, layer.bias)]
    assert packing_works(torch.float32)
    assert torch.equal(layer(x), F.linear(*bf16))
    assert layer._ready is not None and not layer._ready.packed


@pytest.mark.parametrize(("num", "size"), [(0, 3), (1, 3), (7, 3), (6, 3), (2, 100)])
def test_passes_cover_everything_once(num: int, size: int) -> None:
    parts = list(passes(num, size))
    assert [index for part in parts for index in range(num)[part]] == list(range(num))
    assert all(part.stop - part.start <= size for part in parts)


@pytest.mark.parametrize("wrong", [{"precision": "fp16"}, {"memory_mib": 0}])
def test_invalid_compute_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="precision must be fp32 or bf16"):
        Compute(**wrong)  # type: ignore[arg-type]


def test_memory_bounds_a_pass() -> None:
    assert Compute(memory_mib=10).num_per_pass(3 * 1024**2) == 3
    assert Compute(memory_mib=1).num_per_pass(1024**3) == 1
