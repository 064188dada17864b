"""Makes random weights in place of the published ones, in the files that a user would have, and small profiles."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import nn

from reward_server.decoding.sampling import Sampling
from reward_server.discriminators.residual_vit import ResidualViTConfig
from reward_server.estimators.cotracker3 import CoTracker3, CoTracker3Config
from reward_server.estimators.sea_raft import SeaRaft
from reward_server.networks.prepacked import Compute
from reward_server.networks.track_transformer import TrackViTConfig
from reward_server.profiles.shift import Networks, ShiftProfile

SMALL = Sampling(fps=14.0, window_frames=4, min_frames=3, area_px=64 * 96)


def random_sea_raft(seed: int = 0) -> SeaRaft:
    """A SEA-RAFT with random weights, and with running statistics unlike those of a new BatchNorm."""
    torch.manual_seed(seed)
    network = SeaRaft()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


def random_cotracker(seed: int = 0, **config: int) -> CoTracker3:
    torch.manual_seed(seed)
    return CoTracker3(CoTracker3Config(**config))


def published_files(folder: Path) -> tuple[Path, Path]:
    """(scaled_offline.pth, model.safetensors) in the format of the hub, where SEA-RAFT lacks its shared names."""
    folder.mkdir(parents=True, exist_ok=True)
    cotracker, sea_raft = folder / "scaled_offline.pth", folder / "model.safetensors"
    torch.save(random_cotracker().state_dict(), cotracker)
    save_model(random_sea_raft(), str(sea_raft))
    return cotracker, sea_raft


class SmallProfile(ShiftProfile):
    """A profile with discriminators that are small enough for a test."""

    @property
    def track_config(self) -> TrackViTConfig:
        return TrackViTConfig(dim=48, depth=1, mlp_dim=96, num_virtual=4)

    @property
    def residual_config(self) -> ResidualViTConfig:
        return dataclasses.replace(super().residual_config, dim=48, depth=1, heads=4)


def small_profile(**fields: object) -> SmallProfile:
    """The `shift` profile with a tracker input of 96x128 pixels, a flow of 64x96 and small discriminators."""
    networks = Networks(
        tracker=random_cotracker(height_px=96, width_px=128).eval(),
        flow_net=random_sea_raft().eval(),
        device="cpu",
        compute=Compute(),
        digests={"cotracker3": "a", "sea_raft": "b"},
    )
    return SmallProfile(**{"networks": networks, "sampling": SMALL, "height_px": 64, "width_px": 96, **fields})  # type: ignore[arg-type]
