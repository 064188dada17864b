"""Runs the official networks of the `shift` profile from the user's own checkouts, for `against_official.py`.

Nothing is copied: CoTracker3 (github.com/facebookresearch/co-tracker, CC-BY-NC) and SEA-RAFT
(github.com/princeton-vl/SEA-RAFT, BSD-3) are imported from the user's folders. The discriminators of SHIFT's
reference code have no licence that would allow running them, so stand-ins are built from the same parts: the official
update transformer with a plain pooled logit, and timm's original ViT-B/16. Weights are those of `golden_weights.py`,
loaded strictly.

Shapes: T frames, P = T-1 pairs, N tracks, D token size.
"""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import golden_weights
from reward_server.estimators.cotracker3 import support_grid

Module = TypeVar("Module", bound=nn.Module)
MODEL_SIZE = (384, 512)
VIT_SIZE = (320, 576)


@dataclass(frozen=True, kw_only=True)
class Official:
    """The four networks, in eval mode."""

    tracker: nn.Module
    track_head: TrackHead
    flow_net: nn.Module
    vit: VitHead

    def tokens(self, frames_T3HW: Tensor, queries_N3: Tensor) -> Tensor:
        """The last iteration's input to the update transformer, for the given queries: [N,T,D]."""
        height, width = frames_T3HW.shape[-2:]
        video = F.interpolate(frames_T3HW, MODEL_SIZE, mode="bilinear", align_corners=True)[None]
        scale = frames_T3HW.new_tensor([1.0, (MODEL_SIZE[1] - 1) / (width - 1), (MODEL_SIZE[0] - 1) / (height - 1)])
        queries = torch.cat([queries_N3 * scale, support_grid(*MODEL_SIZE).to(frames_T3HW)])[None]
        with _last_input(self.tracker.get_submodule("updateformer")) as seen:
            self.tracker(video, queries, iters=4)
        return seen[-1].view(len(queries[0]), len(video[0]), -1)[: len(queries_N3)]

    def flow(self, frames_T3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Flow [P,2,H,W] and info [P,4,H,W], with all pairs in one batch as the reference code runs them."""
        result = self.flow_net(frames_T3HW[:-1], frames_T3HW[1:], iters=4, test_mode=True)
        return result["flow"][-1], result["info"][-1]


class TrackHead(nn.Module):
    """Stand-in for the long-term discriminator: the official update transformer's features, pooled to a logit."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.norm = nn.LayerNorm(384)
        self.classifier = nn.Sequential(nn.Linear(384, 192), nn.GELU(), nn.Dropout(0.1), nn.Linear(192, 1))

    def forward(self, tokens_BNTD: Tensor) -> Tensor:
        return self.classifier(self.norm(self.trunk(tokens_BNTD)).mean(2).mean(1)).squeeze(-1)  # type: ignore[no-any-return]


class VitHead(nn.Module):
    """Stand-in for the instantaneous discriminator: timm's ViT-B/16 on maps [P,2,H,W], mean class token, a logit."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            "vit_base_patch16_224", in_chans=2, img_size=VIT_SIZE, num_classes=0, dynamic_img_size=True
        )
        self.head = nn.Linear(768, 1)

    def forward(self, maps_P2HW: Tensor) -> Tensor:
        return self.head(self.backbone(maps_P2HW).mean(0))  # type: ignore[no-any-return]


def load(cotracker: Path, searaft: Path, seed: int) -> Official:
    """Build the networks from the two checkouts. Raises SystemExit with the file that a checkout lacks."""
    tracker = _tracker(cotracker)
    return Official(
        tracker=weighted(tracker, "cotracker", seed),
        track_head=_track_head(type(tracker.get_submodule("updateformer")), seed),
        flow_net=weighted(_flow_net(searaft), "searaft", seed),
        vit=weighted(VitHead(), "ic", seed, prefix="flow_vit."),
    )


def weighted(module: Module, model: str, seed: int, prefix: str = "") -> Module:
    """Put `module` into eval mode with the recipe's weights of `model`, where an entry is named prefix + its name."""
    return filled(module, {name: prefix + name for name in module.state_dict()}, model, seed)


def filled(module: Module, names: dict[str, str], model: str, seed: int) -> Module:
    """Put `module` into eval mode. Entry `name` gets the recipe's values of `names[name]`."""
    for name, entry in module.state_dict().items():  # one at a time, because peak memory is measured too
        for value in golden_weights.fill({names[name]: tuple(entry.shape)}, model, seed).values():
            entry.copy_(torch.from_numpy(value))
    return module.eval().requires_grad_(False)


def _tracker(checkout: Path) -> nn.Module:
    with _imported(checkout, "cotracker.models.core.cotracker.cotracker3_offline", "cotracker") as module:
        model: nn.Module = module.CoTrackerThreeOffline(stride=4, corr_radius=3, window_len=60)
    return model


def _track_head(former: type[nn.Module], seed: int) -> TrackHead:
    trunk = former(space_depth=3, time_depth=3, input_dim=1110, hidden_size=384, output_dim=4, num_virtual_tracks=64)
    trunk.flow_head = nn.Identity()
    head = TrackHead(trunk)
    names = {name: name.removeprefix("trunk.") for name in head.state_dict()}
    pooled = {name: f"classfier_head.{name}" for name in names if not name.startswith("trunk.")}
    return filled(head, names | pooled, "trackformer", seed)


def _flow_net(checkout: Path) -> nn.Module:
    with _imported(checkout / "core", "raft", "raft", "update", "corr", "utils", "extractor", "layer") as module:
        module.ResNetFPN._init_weights = lambda *_: None  # skip ImageNet weights: ours replace them
        config = json.loads((checkout / "config" / "eval" / "spring-M.json").read_text())
        model: nn.Module = module.RAFT(Namespace(**config))
    return model


@contextmanager
def _imported(folder: Path, name: str, *rooms: str) -> Iterator[ModuleType]:
    """Import `name` from `folder`. Afterwards, unload its top-level `rooms`, whose names are as common as `utils`."""
    if not (folder / f"{name.replace('.', '/')}.py").is_file():
        raise SystemExit(
            f"{folder} has no {name.replace('.', '/')}.py: give the root of a checkout of the official code"
        )
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for loaded in [known for known in sys.modules if known.split(".")[0] in rooms]:
            del sys.modules[loaded]


@contextmanager
def _last_input(module: nn.Module) -> Iterator[list[Tensor]]:
    """Record the first input of the module's latest call."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.__setitem__(slice(None), [inputs[0]]))
    try:
        yield seen
    finally:
        handle.remove()
