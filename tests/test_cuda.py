"""The networks on a CUDA device: the CPU's numbers in fp32, near them in bf16, in as many passes as memory asks for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reward_server.discriminators.residual_vit import ResidualViT, ResidualViTConfig
from reward_server.discriminators.track_vit import TrackViT, TrackViTConfig
from reward_server.estimators.cotracker3 import CoTracker3, CoTracker3Config
from reward_server.estimators.prepacked import Compute, set_compute
from reward_server.estimators.sea_raft import SeaRaft, SeaRaftConfig

pytestmark = [
    pytest.mark.needs_cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


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
    result = module(*inputs)
    return [result] if isinstance(result, Tensor) else list(vars(result).values())


@pytest.mark.parametrize("name", ["tracks", "maps", "tracker", "flow"])
@pytest.mark.parametrize("compute", [Compute(), Compute(memory_mib=4096), Compute(precision="bf16")])
@torch.no_grad()
def test_the_device_gives_the_cpus_numbers(name: str, compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    module, inputs = network(name)
    set_compute(module, Compute())
    expected = outputs(module, inputs)
    set_compute(module, compute)
    ours = outputs(module.cuda(), tuple(given.cuda() for given in inputs))
    for value, on_cpu in zip(ours, expected, strict=True):
        error = (value.cpu() - on_cpu).abs()
        if compute.precision == "bf16":
            assert error.mean() < 0.1 * on_cpu.abs().mean() + 0.1
        else:
            torch.testing.assert_close(value.cpu(), on_cpu, atol=2e-3, rtol=1e-3)
