"""Lists the published networks of `shift` and `shift-wan`: where their weights are, their licences, their layouts."""

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
    """The published checkpoint of one network."""

    name: str
    title: str
    option: str  # option of `models pull` that takes a local file
    repo: str
    file: str
    revision: str
    licence: str
    means: str  # what the licence allows a user to do
    build: Callable[[], nn.Module]

    @property
    def page(self) -> str:
        """Web page of the file."""
        return f"https://huggingface.co/{self.repo}/blob/{self.revision}/{self.file}"

    @property
    def converted(self) -> str:
        """File name of the converted weights in the models folder."""
        return f"{self.name}.safetensors"

    def layout(self) -> dict[str, Tensor]:
        """Every key of the checkpoint, with a meta tensor of its shape. Shared tensors are the same object."""
        with torch.device("meta"):
            return self.build().state_dict(keep_vars=True)

    def aliases(self) -> list[list[str]]:
        """Groups of names that refer to one tensor; SEA-RAFT lists some norms twice."""
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
        "Non-commercial use only, with credit to its authors (Meta AI and the University of Oxford). Research, "
        "teaching and private use are allowed. Scoring clips or training models for a product or a paid service is "
        "not allowed without another licence from Meta. Modified copies, such as the converted file, keep these terms. "
        "The embedded profile does not use these weights."
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
    means="Any use, also commercial; copies must keep the copyright notice of the Princeton Vision & Learning Lab.",
    build=SeaRaft,
)
PUBLISHED = {network.name: network for network in (COTRACKER3, SEA_RAFT)}
