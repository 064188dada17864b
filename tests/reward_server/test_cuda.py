"""Tests the networks on a CUDA device: same results as the CPU in fp32 and near them in bf16, in any number of passes,
compiled or not. It also checks that the fast kernels and copies are really used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from protos.types import Clip
from reward_server.discriminators.residual_vit import ResidualViT, ResidualViTConfig
from reward_server.discriminators.track_vit import TrackViT
from reward_server.estimators.cotracker3 import CoTracker3, CoTracker3Config
from reward_server.estimators.sea_raft import SeaRaft, SeaRaftConfig
from reward_server.networks.prepacked import Compute, set_compute
from reward_server.networks.track_transformer import TrackViTConfig
from reward_server.profiles.shift import sent
from tests.frozen import small_profile

pytestmark = [
    pytest.mark.needs_cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Turn TF32 off, and drop what other tests have compiled."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(1)
    clip = torch.randint(0, 256, (1, 3, 3, 64, 96)).float()
    if name == "tracks":
        return TrackViT(TrackViTConfig(depth=1)).eval(), (torch.randn(2, 9, 5, 1110),)
    if name == "maps":
        return ResidualViT(ResidualViTConfig(height_px=64, width_px=96, depth=2)).eval(), (
            torch.randn(2, 3, 2, 64, 96),
        )
    if name == "tracker":
        return CoTracker3(CoTracker3Config(height_px=64, width_px=96)), (clip, 2 * torch.rand(1, 5, 3))
    return SeaRaft(SeaRaftConfig()), (clip,)


def outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.inference_mode():  # as in the server, where weights are created outside of it
        result = module(*inputs)
    return [result] if isinstance(result, Tensor) else list(vars(result).values())


@pytest.mark.parametrize("name", ["tracks", "maps", "tracker", "flow"])
@pytest.mark.parametrize("compute", [Compute(), Compute(memory_mib=4096), Compute(precision="bf16")])
def test_the_device_gives_the_cpus_numbers(name: str, compute: Compute) -> None:
    module, inputs = network(name)
    set_compute(module, Compute())
    expected = outputs(module, inputs)
    set_compute(module, compute)
    ours = outputs(module.cuda(), tuple(given.cuda() for given in inputs))
    assert_near(ours, expected, compute)


def assert_near(ours: list[Tensor], expected: list[Tensor], compute: Compute) -> None:
    for value, on_cpu in zip(ours, expected, strict=True):
        error = (value.cpu() - on_cpu).abs()
        if compute.precision == "bf16":
            assert error.mean() < 0.1 * on_cpu.abs().mean() + 0.1
        else:
            torch.testing.assert_close(value.cpu(), on_cpu, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["tracks", "maps", "tracker", "flow"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_networks_give_the_cpus_numbers(name: str, precision: str, mode: str) -> None:
    """Run four times, because CUDA graphs are warmed up, recorded and only then replayed; then use other weights."""
    module, inputs = network(name)
    set_compute(module, Compute())
    expected = outputs(module, inputs)
    compute = Compute(precision=precision, compile=mode)  # type: ignore[arg-type]
    set_compute(module.cuda(), compute)
    on_device = tuple(given.cuda() for given in inputs)
    runs = [outputs(module, on_device) for _ in range(4)]
    for ours in runs:  # all four at the end: the later have not written over the earlier
        assert_near(ours, expected, compute)
    module.load_state_dict({name: shifted(value) for name, value in module.state_dict().items()})
    set_compute(module, dataclasses.replace(compute, compile="none"))
    changed = [value.cpu() for value in outputs(module, on_device)]
    set_compute(module, compute)
    assert_near(outputs(module, on_device), changed, compute)


def shifted(value: Tensor) -> Tensor:
    """Change every parameter by a hundredth of its spread; counters stay."""
    return value + 0.01 * value.std() if value.is_floating_point() and value.numel() > 1 else value


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_are_replayed_for_clips_of_two_sizes_in_turn(precision: str) -> None:
    compute = Compute(precision=precision, compile="reduce-overhead")  # type: ignore[arg-type]
    module = TrackViT(TrackViTConfig(depth=1)).eval()
    clips = [torch.randn(1, num_tracks, 5, 1110) for num_tracks in (9, 17)]
    set_compute(module, Compute())
    expected = [outputs(module, (clip,)) for clip in clips]
    set_compute(module.cuda(), compute)
    for _ in range(4):
        for clip, numbers in zip(clips, expected, strict=True):
            assert_near(outputs(module, (clip.cuda(),)), numbers, compute)


@pytest.mark.parametrize("name", ["tracks", "maps", "tracker"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_runs_on_fused_kernels_alone(name: str, precision: str) -> None:
    """Other kernels are disabled, so torch raises if a fused kernel does not take the inputs."""
    module, inputs = network(name)
    set_compute(module.cuda(), Compute(precision=precision))  # type: ignore[arg-type]
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        outputs(module, tuple(given.cuda() for given in inputs))


def test_frames_come_through_page_locked_memory_whole() -> None:
    frames = torch.randint(0, 256, (24, 3, 320, 576), dtype=torch.uint8)
    arrived = [sent(frames + shift, "cuda") for shift in range(4)]  # sources are freed while copies may be under way
    for shift, values in enumerate(arrived):
        assert values.device.type == "cuda"
        assert torch.equal(values.cpu(), frames + shift)


@pytest.mark.parametrize("mode", ["none", "reduce-overhead"])
def test_the_profile_sees_the_cpus_motion(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default, which the profile must not follow
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 96), dtype=np.uint8)
    clip = Clip(frames=np.sort(pixels, axis=3), fps=14.0)
    profile = small_profile()
    expected = profile.motion(clip, query_seed=3, num_tracks=20)
    compute = Compute(compile=mode)  # type: ignore[arg-type]
    networks = profile.networks
    for module in (networks.tracker, networks.flow_net):
        set_compute(module.cuda(), compute)
    moved = dataclasses.replace(profile, networks=dataclasses.replace(networks, device="cuda", compute=compute))
    for _ in range(3):
        motion = moved.motion(clip, query_seed=3, num_tracks=20)
        for name in ("tracks", "correlation", "flow"):
            ours, numbers = getattr(motion, name), getattr(expected, name)
            assert ours.device.type == "cuda"
            torch.testing.assert_close(ours.cpu(), numbers, atol=2e-3, rtol=1e-3)
