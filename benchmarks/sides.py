"""Computes the SHIFT reward of one clip with the official networks and with ours, and times each stage.

`against_official.py` compares the two sides. Shapes: T frames, P = T-1 pairs, N tracks, D token size.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.official import Official, weighted
from reward_server.discriminators.residual_vit import ResidualViT, ResidualViTConfig
from reward_server.discriminators.track_vit import TrackViT
from reward_server.estimators.cotracker3 import CoTracker3
from reward_server.estimators.sea_raft import SeaRaft
from reward_server.motion import mixture_confidence, residual_map
from reward_server.networks.prepacked import Compute, set_compute
from reward_server.networks.track_transformer import TrackViTConfig

LC = ("feature net", "correlation + MLP", "updater", "track head")
IC = ("flow net", "ViT")
HEIGHT, WIDTH = 320, 576


@dataclass(frozen=True, kw_only=True)
class Case:
    """One clip and its queries: frames [T,3,H,W] float 0..255, queries [N,3] (frame, x, y)."""

    frames: Tensor
    queries: Tensor

    @classmethod
    def made_up(cls, seed: int, num_frames: int, num_tracks: int, device: str = "cpu") -> Case:
        """A smooth texture. It drifts, changes brightness and wobbles, each by a small amount drawn from the seed."""
        generator = torch.Generator().manual_seed(seed)
        texture = F.interpolate(
            255 * torch.rand(1, 3, 48, 80, generator=generator), (HEIGHT + 128, WIDTH + 128), mode="bicubic"
        )
        x, y, gain, wobble = (2 * torch.rand(4, generator=generator) - 1).tolist()
        frames = []
        for t in range(num_frames):
            shift = (t / num_frames + wobble * (t % 2) / 8) * 50
            top, left = 64 + round(y * shift), 64 + round(x * shift)
            crop = texture[0, :, top : top + HEIGHT, left : left + WIDTH]
            frames.append(crop * (1 + 0.2 * gain * t / num_frames))
        points = torch.rand(num_tracks, 2, generator=generator) * torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])
        queries = torch.cat([torch.zeros(num_tracks, 1), points.round()], dim=1)
        return cls(frames=torch.stack(frames).clamp(0, 255).round().to(device), queries=queries.to(device))


@dataclass(frozen=True, kw_only=True)
class SideReward:
    """A side's result for a clip: tokens [N,T,D], flow [P,2,H,W] and the two logits."""

    tokens: Tensor
    flow: Tensor
    lc: float
    ic: float

    @property
    def reward(self) -> float:
        return (self.lc + self.ic) / 2


class Theirs:
    """The official networks, run as SHIFT's reference code runs them."""

    def __init__(self, networks: Official, device: str = "cpu") -> None:
        self._networks = networks
        for network in vars(networks).values():
            network.to(device)

    def tokens(self, case: Case) -> Tensor:
        return self._networks.tokens(case.frames, case.queries)

    def track_logit(self, tokens_NTD: Tensor) -> Tensor:
        return self._networks.track_head(tokens_NTD[None])  # type: ignore[no-any-return]

    def flow(self, case: Case) -> tuple[Tensor, Tensor]:
        return self._networks.flow(case.frames)

    def vit_logit(self, maps_P2HW: Tensor) -> Tensor:
        return self._networks.vit(maps_P2HW)  # type: ignore[no-any-return]

    @property
    def parts(self) -> dict[str, tuple[Any, str]]:
        """The methods of the tracker's stages."""
        tracker: Any = self._networks.tracker
        return {"feature net": (tracker.fnet, "forward"), "updater": (tracker.updateformer, "forward")}


class Ours:
    """Our networks with the same weights."""

    def __init__(
        self, compute: Compute, seed: int, *, discriminators: Compute | None = None, device: str = "cpu"
    ) -> None:
        self._tracker = weighted(CoTracker3(), "cotracker", seed).to(device)
        self._flow_net = weighted(SeaRaft(), "searaft", seed).to(device)
        self._track_head = weighted(TrackViT(TrackViTConfig()), "trackformer", seed).to(device)
        self._vit = weighted(ResidualViT(ResidualViTConfig()), "ic", seed, "flow_vit.").to(device)
        self.told(compute, discriminators)

    def told(self, compute: Compute, discriminators: Compute | None = None) -> Ours:
        """Set how the networks compute, and the discriminators separately if given. Returns self."""
        for network in (self._tracker, self._flow_net):
            set_compute(network, compute)
        for head in (self._track_head, self._vit):
            set_compute(head, discriminators or compute)
        return self

    def tokens(self, case: Case) -> Tensor:
        return self._tracker(case.frames[None], case.queries[None], tokens_only=True).tokens[0]  # type: ignore[no-any-return]

    def track_logit(self, tokens_NTD: Tensor) -> Tensor:
        return self._track_head(tokens_NTD[None])  # type: ignore[no-any-return]

    def flow(self, case: Case) -> tuple[Tensor, Tensor]:
        estimate = self._flow_net(case.frames[None])
        return estimate.flow[0], estimate.info[0]

    def vit_logit(self, maps_P2HW: Tensor) -> Tensor:
        return self._vit(maps_P2HW[None])  # type: ignore[no-any-return]

    @property
    def parts(self) -> dict[str, tuple[Any, str]]:
        return {"feature net": (self._tracker, "encode"), "updater": (self._tracker.updateformer, "forward")}


Clock = Callable[[], float]


def device_clock(device: str) -> Clock:
    """A clock in seconds that waits until the device has finished its work."""

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    return now


@torch.no_grad()
def scored(side: Theirs | Ours, case: Case, clock: Clock = time.perf_counter) -> tuple[SideReward, dict[str, float]]:
    """The reward of one clip, and what `clock` counted in each stage.

    The tracker's time without its feature network and updater counts as correlation.
    """
    spent: dict[str, float] = defaultdict(float)

    def timed(stage: str, call: Callable[..., Any], *given: Any) -> Any:
        start = clock()
        result = call(*given)
        spent[stage] += clock() - start
        return result

    with _watched(side.parts, timed):
        tokens = timed("correlation + MLP", side.tokens, case)
    spent["correlation + MLP"] -= spent["feature net"] + spent["updater"]
    lc = timed("track head", side.track_logit, tokens)
    flow, info = timed("flow net", side.flow, case)
    residual = residual_map(case.frames[None], flow[None].float())[0]
    maps = torch.stack([residual, mixture_confidence(info.float(), 0.0, 10.0)], dim=1)
    ic = timed("ViT", side.vit_logit, maps)
    return SideReward(tokens=tokens, flow=flow, lc=float(lc), ic=float(ic)), dict(spent)


@contextmanager
def _watched(parts: dict[str, tuple[Any, str]], timed: Callable[..., Any]) -> Iterator[None]:
    """Time every call of the named methods inside the block."""
    for stage, (owner, name) in parts.items():
        setattr(owner, name, _wrapped(timed, stage, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name in parts.values():
            delattr(owner, name)  # uncovers the class's own method


def _wrapped(timed: Callable[..., Any], stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **named: timed(stage, lambda: call(*given, **named))
