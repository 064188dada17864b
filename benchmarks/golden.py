"""Reads a golden file of the `shift` profile and computes our value of every array that it stores.

A golden file holds inputs, the seed of the weights and the official outputs. Each file has its own size, number of
frames and number of queries. `parity.py` does the comparison. Weights come from the folder's `weights_recipe.py` if
there is one, else from `golden_weights.py`.

Shapes: B clips, T frames, N tracks, P = T-1 pairs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import golden_weights
from reward_server.discriminators.residual_vit import ResidualViT, ResidualViTConfig
from reward_server.discriminators.track_vit import TrackViT
from reward_server.estimators.cotracker3 import CoTracker3, CoTracker3Config, resampled
from reward_server.estimators.local_correlation import Pyramid, correlations, support_features
from reward_server.estimators.sea_raft import SeaRaft, correlation_pyramid, lookup
from reward_server.motion import mixture_confidence, residual_map
from reward_server.networks.prepacked import Compute, set_compute
from reward_server.networks.track_transformer import TrackViTConfig

Stored = Mapping[str, NDArray[np.generic]]
TRACKER_INPUTS = {"video", "queries", "iters", "seed", "tokens_index", "corr_rows_tn"}
INPUTS = TRACKER_INPUTS | {"frames", "pad_frames", "random_tokens_shape", "small_tokens_scale"}


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One golden file, and the recipe that makes weights from its seed."""

    path: Path
    stored: Stored
    recipe: ModuleType
    compute: Compute
    device: str = "cpu"

    @classmethod
    def read(cls, path: Path, compute: Compute, device: str = "cpu") -> Golden:
        """Load the file at `path`."""
        with np.load(path, allow_pickle=False) as arrays:
            stored = dict(arrays)
        return cls(path=path, stored=stored, recipe=_recipe(path.parent), compute=compute, device=device)

    @property
    def outputs(self) -> list[str]:
        return [name for name in self.stored if name not in INPUTS]

    def numbered(self, prefix: str) -> list[tuple[str, int]]:
        """Names of the stored arrays that consist of `prefix` and an iteration number, with that number."""
        return [(name, int(name.removeprefix(prefix))) for name in self.outputs if name.startswith(prefix)]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.stored[name])).to(self.device)

    def number(self, name: str) -> float:
        return float(self.stored[name])

    @property
    def seed(self) -> int:
        return int(self.number("seed"))

    def weighted(self, module: nn.Module, model: str, prefix: str = "") -> nn.Module:
        """Put `module` into eval mode on the device and fill it with the recipe's weights of `model`.

        The recipe names an entry `prefix` + its name in the module.
        """
        state = module.state_dict()
        values = self.recipe.fill(
            {prefix + name: tuple(entry.shape) for name, entry in state.items()}, model, self.seed
        )
        state.update({name.removeprefix(prefix): torch.from_numpy(value.copy()) for name, value in values.items()})
        module.load_state_dict(state, strict=True)
        set_compute(module, self.compute)
        return module.eval().to(self.device)


def _recipe(folder: Path) -> ModuleType:
    """The folder's own `weights_recipe.py` if it has one, else ours."""
    path = folder / "weights_recipe.py"
    spec = importlib.util.spec_from_file_location("weights_recipe", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        return golden_weights
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cotracker3(golden: Golden) -> dict[str, Tensor]:
    """Our tracks, visibilities, tokens and intermediate values of a clip."""
    model, video, queries = _tracker(golden), golden.tensor("video"), golden.tensor("queries")
    queries = model.model_queries(queries, *video.shape[-2:])
    pyramid = model.encode(video)
    steps = list(model.refinements(pyramid, queries))
    states = torch.stack([state for _, state in steps]).transpose(1, 2)  # [iters,T,N,4]
    tracks, visibility, confidence = states[..., :2] * 4, states[..., 2].sigmoid(), states[..., 3].sigmoid()
    start = (queries[:, None, 1:] / 4).expand(-1, len(video), -1)
    volumes = {
        name: _volume_rows(golden, pyramid, queries, steps[k - 1][1][..., :2] if k else start)
        for name, k in golden.numbered("corr_volume_it")
    }
    return volumes | {
        "video_model_sub": model.resized(video)[:, :, ::32, ::32],
        "queries_model": queries,
        "time_emb_rows": resampled(model.time_emb, len(video)),
        "time_emb60_rows": model.time_emb[0, [0, 1, 30, 59]],
        "fmap_frame0_sub": pyramid[0][0, ::8, ::8].permute(2, 0, 1),
        "fmap_last_sub": pyramid[0][-1, ::8, ::8].permute(2, 0, 1),
        "tracks": tracks[-1],
        "visibility": visibility[-1],
        "confidence": confidence[-1],
        "tracks_iters": tracks,
        "vis_iters": visibility,
        "conf_iters": confidence,
        "tokens_last": steps[-1][0][golden.tensor("tokens_index").long()],
    }


def _tracker(golden: Golden) -> CoTracker3:
    model = CoTracker3(CoTracker3Config(iters=int(golden.number("iters"))))
    golden.weighted(model, "cotracker")
    return model


def _volume_rows(golden: Golden, pyramid: Pyramid, queries: Tensor, centres_NT2: Tensor) -> Tensor:
    """The correlation volumes [levels, rows, 2401] of the stored (frame, track) rows."""
    frames, tracks = golden.tensor("corr_rows_tn").long().unbind(1)
    chosen = queries[tracks]
    support = support_features(pyramid, chosen[:, 1:] / 4, chosen[:, 0].long())
    volumes = torch.stack(list(correlations(pyramid, support, centres_NT2[tracks])))  # [levels, rows, T, 2401]
    return volumes[:, torch.arange(len(frames)), frames]


def lc(golden: Golden) -> dict[str, Tensor]:
    """Long-term logits [B,1] for the tracker's tokens of a clip, those of the reversed clip, and random tokens."""
    clip = Golden.read(
        golden.path.with_name(golden.path.name.replace("lc", "cotracker3", 1)), golden.compute, golden.device
    )
    discriminator = TrackViT(TrackViTConfig())
    golden.weighted(discriminator, "trackformer")
    video, queries = clip.tensor("video"), clip.tensor("queries")
    tokens = _tracker(clip)(
        torch.stack([video, video.flip(0)]), torch.stack([queries, queries.roll(5, 0)]), tokens_only=True
    ).tokens
    shape = tuple(int(size) for size in golden.stored["random_tokens_shape"])
    noise = torch.from_numpy(golden.recipe.normal("trackformer.random_tokens", shape, golden.seed)).to(golden.device)
    return {
        "logit_from_cotracker": discriminator(tokens[:1])[:, None],
        "b2_logits": discriminator(tokens)[:, None],
        "random_tokens_logit": discriminator(noise)[:, None],
        "small_tokens_logit": discriminator(noise * golden.number("small_tokens_scale"))[:, None],
    }


def searaft_m(golden: Golden) -> dict[str, Tensor]:
    """Our flow and intermediate values, also of frames that need padding."""
    model = SeaRaft()
    golden.weighted(model, "searaft")
    frames = golden.tensor("frames")[None]
    ours, padded = model(frames), model(golden.tensor("pad_frames")[None])
    normalised = model.normalised(frames[0])
    features = model.fnet(normalised)
    _, flow8, _ = next(model.refinements(normalised, features, 0))
    return {name: model(frames, iters=k).flow[0] for name, k in golden.numbered("flow_it")} | {
        "flow": ours.flow[0],
        "info": ours.info[0],
        "pad_flow": padded.flow[0],
        "pad_info": padded.info[0],
        "fmap1": features[0, :, ::2, ::2],
        "fmap2": features[1, :, ::2, ::2],
        "corr_it0": lookup(correlation_pyramid(features[:1], features[1:]), flow8)[0, :, ::4, ::4],
    }


def ic(golden: Golden) -> dict[str, Tensor]:
    """Logits of the instantaneous discriminator on a clip and the reversed clip, and the maps that it reads."""
    flow_net, discriminator = SeaRaft(), ResidualViT(ResidualViTConfig())
    golden.weighted(flow_net, "ic", "flow_layer.model.")
    golden.weighted(discriminator, "ic", "flow_vit.")
    frames = _ic_frames(golden.tensor("video"), discriminator.config)
    frames = torch.stack([frames, frames.flip(0)])
    estimate = flow_net(frames)
    residual, confidence = residual_map(frames, estimate.flow), mixture_confidence(estimate.info, 0.0, 10.0)
    features = discriminator.features(torch.stack([residual, confidence], dim=2))
    rms = estimate.flow[0].square().sum(1).mean((-2, -1)).sqrt() + 1e-6
    edges = [residual[0, :, 0, :8], residual[0, :, -1, :8], residual[0, :, :8, 0], residual[0, :, :8, -1]]
    return {
        "logits": discriminator.head(features.mean(dim=1)).squeeze(-1),
        "cls_features": features[0],
        "residual_sub": residual[0, :, 1::5, 1::5],
        "residual_border": torch.stack(edges),
        "confidence_sub": confidence[0, :, 1::5, 1::5],
        "flow_norm_sub": (estimate.flow[0] / rms[:, None, None, None])[..., 1::5, 1::5],
    }


def _ic_frames(video_T3HW: Tensor, config: ResidualViTConfig) -> Tensor:
    """Frames 0..255 at the discriminator's size. Like the reference code, scales a clip whose values are at most 1."""
    frames = video_T3HW.float()
    frames = frames * 255 if frames.max() <= 1 else frames
    return F.interpolate(frames, (config.height_px, config.width_px), mode="bilinear", align_corners=False)


CHECKS: dict[str, Callable[[Golden], dict[str, Tensor]]] = {
    "cotracker3": cotracker3,
    "lc": lc,
    "searaft_m": searaft_m,
    "ic": ic,
}


def kind(path: Path) -> str | None:
    """The check that a golden file is for: `cotracker3_long.npz` is for cotracker3. None if there is none."""
    return next((name for name in CHECKS if path.stem.startswith(name)), None)


@torch.no_grad()
def computed(golden: Golden) -> dict[str, Tensor]:
    """Our value, on the CPU, of every output of a golden file. Raises KeyError if the file has no check."""
    return {name: value.cpu() for name, value in CHECKS[kind(golden.path) or ""](golden).items()}
