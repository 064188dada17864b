"""Tests with torch's fake CUDA tensors, which need no GPU, that no operation mixes devices and every convolution gets
channels-last inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from reward_server.discriminators.residual_vit import ResidualViT, ResidualViTConfig
from reward_server.discriminators.track_vit import TrackViT
from reward_server.estimators.cotracker3 import CoTracker3, CoTracker3Config
from reward_server.estimators.feature_net import FeatureNet, standardised
from reward_server.estimators.sea_raft import SeaRaft, SeaRaftConfig
from reward_server.networks.prepacked import CHANNELS_LAST, Compute, Conv2d, set_compute
from reward_server.networks.track_transformer import TrackViTConfig

WAYS = [Compute(), Compute(precision="bf16"), Compute(memory_mib=1)]


@torch.inference_mode()
@pytest.mark.parametrize("compute", WAYS)
@pytest.mark.parametrize("name", ["tracks", "maps", "flow"])
def test_everything_stays_on_the_device(name: str, compute: Compute) -> None:
    module, shape = network(name)
    set_compute(module, compute)
    with FakeTensorMode():
        result = on_gpu(module)(torch.randn(shape, device="cuda"))
        values = [result] if isinstance(result, Tensor) else list(vars(result).values())
    assert values and all(value.device.type == "cuda" and value.dtype == torch.float32 for value in values)


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with the shape of an input."""
    if name == "tracks":
        return TrackViT(TrackViTConfig(depth=1)).eval(), (2, 9, 5, 1110)
    if name == "maps":
        return ResidualViT(ResidualViTConfig(height_px=64, width_px=96, depth=2)).eval(), (2, 3, 2, 64, 96)
    return SeaRaft(SeaRaftConfig()), (1, 3, 3, 64, 96)


def on_gpu(module: nn.Module) -> nn.Module:
    """Replace the parameters by fake CUDA ones of the same layout, because `.to` cannot move fake tensors."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(fake_of(value), requires_grad=False)
        for name, value in part._buffers.items():
            part._buffers[name] = fake_of(value) if value is not None else None
    return module


def fake_of(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")


@torch.inference_mode()
@pytest.mark.parametrize("compute", WAYS)
def test_the_tracker_stays_on_the_device_with_cpu_queries(compute: Compute) -> None:
    tracker = CoTracker3(CoTracker3Config(height_px=64, width_px=96), compute)
    with FakeTensorMode():
        on_gpu(tracker)
        pyramid = tracker.encode(torch.zeros(3, 3, 70, 90, dtype=torch.uint8, device="cuda"))
        queries = tracker.model_queries(torch.zeros(5, 3), 70, 90).to("cuda")
        tracking = tracker.track(pyramid, queries, 5, tokens_only=True)
    assert tracking.tokens.shape == (5, 3, 1110)
    assert all(value.device.type == "cuda" for value in vars(tracking).values())


@torch.inference_mode()
@pytest.mark.parametrize("num_frames", [1, 3])
@pytest.mark.parametrize("name", ["tracker", "flow", "refinement"])
def test_every_convolution_sees_channels_last(name: str, num_frames: int) -> None:
    module, shapes = convolutional(name, num_frames)
    set_compute(module, Compute())  # in bf16, a torch without CUDA gives other layouts than one with it
    seen: list[bool] = []
    for part in module.modules():
        if isinstance(part, Conv2d):
            part.fused = watched(part, seen)  # type: ignore[method-assign]
    with FakeTensorMode():
        on_gpu(module)(*(torch.randn(shape, device="cuda").to(memory_format=CHANNELS_LAST) for shape in shapes))
    assert len(seen) > 5 and all(seen)


def convolutional(name: str, num_frames: int) -> tuple[nn.Module, list[tuple[int, ...]]]:
    """A convolutional network, with the shapes of its inputs."""
    if name == "tracker":
        return FeatureNet(), [(num_frames, 3, 64, 96)]
    if name == "flow":
        return SeaRaft().fnet, [(num_frames, 3, 64, 96)]
    return SeaRaft().update_block, [(num_frames, channels, 8, 12) for channels in (128, 128, 324, 2)]


def watched(layer: Conv2d, seen: list[bool]) -> object:
    fused = layer.fused

    def call(x: Tensor, **options: object) -> Tensor:
        seen.append(x.is_contiguous(memory_format=CHANNELS_LAST))
        return fused(x, **options)  # type: ignore[arg-type]

    return call


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_frames", [1, 2])
def test_gpu_instance_norm_equals_torchs_and_keeps_the_layout(num_frames: int, dtype: torch.dtype) -> None:
    x = (torch.randn(num_frames, 6, 9, 11) * 3 + 5).to(dtype, memory_format=CHANNELS_LAST)
    ours, exact = standardised(x), torch.nn.functional.instance_norm(x.float(), eps=1e-5)
    assert ours.dtype == dtype and ours.is_contiguous(memory_format=CHANNELS_LAST)
    torch.testing.assert_close(ours, exact.to(dtype), atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 1e-2)
