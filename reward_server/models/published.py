"""The published networks of the `shift` profiles: where their weights are, under which licence, what they hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reward_server.estimators.cotracker3 import CoTracker3
from reward_server.estimators.sea_raft import SeaRaft


@dataclass(frozen=True, kw_only=True)
class Published:
    """One network's published checkpoint."""

    name: str
    title: str
    option: str  # of `models pull`, for a file of one's own
    repo: str
    file: str
    revision: str
    licence: str
    means: str  # the licence, to someone about to use the weights
    build: Callable[[], nn.Module]

    @property
    def page(self) -> str:
        """Where a person finds the file."""
        return f"https://huggingface.co/{self.repo}/blob/{self.revision}/{self.file}"

    @property
    def converted(self) -> str:
        """Name of our file in the models folder."""
        return f"{self.name}.safetensors"

    def layout(self) -> dict[str, Tensor]:
        """Every key of the checkpoint with a tensor of its shape, without memory; shared ones are one object."""
        with torch.device("meta"):
            return self.build().state_dict(keep_vars=True)

    def aliases(self) -> list[list[str]]:
        """Groups of names that stand for one tensor (SEA-RAFT lists some norms twice)."""
        names: dict[int, list[str]] = defaultdict(list)
        layout = self.layout()
        for name, tensor in layout.items():
            names[id(tensor)].append(name)
        return [group for group in names.values() if len(group) > 1]


COTRACKER3 = Published(
    name="cotracker3",
    title="CoTracker3, offline, scaled",
    option="--cotracker",
    repo="facebook/cotracker3",
    file="scaled_offline.pth",
    revision="main",
    licence="CC-BY-NC-4.0",
    means=(
        "Non-commercial use only, with credit to its authors (Meta AI and the University of Oxford): research, "
        "teaching and private use are fine; scoring clips or training models for a product or a paid service is "
        "not, without another licence from Meta. Changed copies, such as our converted file, carry the same terms. "
        "The embedded profile needs none of this."
    ),
    build=CoTracker3,
)
SEA_RAFT = Published(
    name="sea_raft",
    title="SEA-RAFT-M, Tartan-C-T-TSKH-spring540x960",
    option="--sea-raft",
    repo="MemorySlices/Tartan-C-T-TSKH-spring540x960-M",
    file="model.safetensors",
    revision="eb97ef34ba5d856c3fa2cdcd073150c057ac8b69",
    licence="BSD-3-Clause",
    means="Any use, commercial too; copies keep the copyright notice of the Princeton Vision & Learning Lab.",
    build=SeaRaft,
)
PUBLISHED = {network.name: network for network in (COTRACKER3, SEA_RAFT)}
