"""Implements `models import-discriminators`: converts discriminators trained with SHIFT's reference code.

The reference's instantaneous checkpoint holds a ViT, two constant kernels and the SEA-RAFT it was trained with, whose
running statistics changed during that training. The models folder must hold this SEA-RAFT.
`models pull shift --sea-raft IC.pth` takes it from the same file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reward_server.errors import BadRequest
from reward_server.models.convert import FLOW_NET, check_layout, part, read_checkpoint
from reward_server.models.published import SEA_RAFT
from reward_server.models.store import sha256_of
from reward_server.profiles import Profile
from reward_server.profiles.discriminators import new_discriminators, save_discriminators

FLOW_VIT = "flow_vit."
KERNELS = {"sobel_layer.w_h": (1, 1, 3, 1), "sobel_layer.w_w": (1, 1, 1, 3)}  # [-1, 0, 1], as in residual_map


def import_discriminators(profile: Profile, *, instantaneous: Path, long_term: Path, models: Path, out: Path) -> str:
    """Convert two reference checkpoints to one checkpoint at `out`, in full precision. Returns its version.

    The result fits the profile's current frozen networks. Raises BadRequest if a file is not such a checkpoint, has
    other sizes, or was trained with another SEA-RAFT than the one in `models`.
    """
    with torch.device("meta"):
        vit, track_vit = new_discriminators(profile)
    whole, tracks = read_checkpoint(instantaneous), read_checkpoint(long_term)
    _check_kernels(whole, instantaneous)
    _check_flow_net(part(whole, FLOW_NET), instantaneous, models)
    unknown = {n for n in whole if n not in KERNELS and not n.startswith((FLOW_VIT, FLOW_NET))}
    maps = part(whole, FLOW_VIT) | {name: whole[name] for name in unknown}
    check_layout(maps, _shapes(vit), instantaneous, f"an instantaneous discriminator of profile '{profile.name}'")
    check_layout(tracks, _shapes(track_vit), long_term, f"a long-term discriminator of profile '{profile.name}'")
    digest = hashlib.sha256(f"{sha256_of(instantaneous)} {sha256_of(long_term)}".encode()).hexdigest()
    version = f"{profile.name}-reference-{digest[:8]}"
    save_discriminators(
        out, profile=profile, version=version, instantaneous=maps, long_term=tracks, precision=torch.float32
    )
    return version


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _check_kernels(whole: Mapping[str, Tensor], path: Path) -> None:
    for name, shape in KERNELS.items():
        if name not in whole or not torch.equal(whole[name].float(), torch.tensor([-1.0, 0.0, 1.0]).view(shape)):
            raise BadRequest(
                f"{path}: {name} is not the kernel [-1, 0, 1] of shape {list(shape)} used for residuals here; "
                "give the instantaneous checkpoint of SHIFT's reference code, its ViT variant"
            )


def _check_flow_net(theirs: Mapping[str, Tensor], path: Path, models: Path) -> None:
    ours = load_file(models / SEA_RAFT.converted)  # verified when the profile was loaded
    if theirs.keys() != ours.keys() or not all(torch.equal(theirs[name].to(ours[name]), ours[name]) for name in ours):
        raise BadRequest(
            f"{path} was trained with another SEA-RAFT than the one in {models}; pull the one it contains with "
            f"`motion-reward models pull shift --sea-raft {path} --replace`, then import again"
        )
