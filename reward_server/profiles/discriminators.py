"""Saves and loads both discriminators of a profile as one safetensors file.

The file holds the weights. Its metadata holds the profile, the version, the networks' sizes, the digest of the motion
features that the discriminators were trained on, and, if they have them, the weights of their pace terms (`pace.py`)
and the reference table (`reference.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from reward_server.discriminators.residual_vit import ResidualViT, ResidualViTConfig
from reward_server.discriminators.track_vit import TrackViT
from reward_server.errors import NotReady
from reward_server.networks.prepacked import set_compute
from reward_server.networks.tf32 import exact_convolutions
from reward_server.networks.track_transformer import TrackViTConfig
from reward_server.profiles import Profile
from reward_server.profiles.reference import INHERITED, NO_TABLE, ReferenceTable, digest_of, from_metadata, to_metadata
from reward_server.replacing import replacing

PACE_WEIGHTS = "pace_weights"  # in the metadata
NO_PACE = (0.0, 0.0)
SHIPPED = {"embedded": Path(__file__).parent.parent / "weights" / "embedded.safetensors"}


@dataclass(frozen=True, kw_only=True)
class Discriminators:
    """The two discriminators of one version, in eval mode."""

    instantaneous: ResidualViT
    long_term: TrackViT
    version: str
    digest: str  # sha256 of the checkpoint file
    weights_digest: str = ""  # `reference.digest_of` the weights and their pace terms
    pace_weights: tuple[float, float] = NO_PACE  # of the pace terms of the two logits, per unit of the pace level
    reference: ReferenceTable | None = None
    no_reference: str = NO_TABLE  # why there is no table that may be used

    @torch.inference_mode()
    @exact_convolutions
    def logits(self, maps_BP2HW: Tensor, tokens_BNTD: Tensor) -> Tensor:
        """Instantaneous and long-term logits [B,2], from residual maps [B,P,2,H,W] and track tokens [B,N,T,D]."""
        return torch.stack([self.instantaneous(maps_BP2HW), self.long_term(tokens_BNTD)], dim=-1)


def new_discriminators(profile: Profile) -> tuple[ResidualViT, TrackViT]:
    """Untrained discriminators of the sizes that the profile needs."""
    return ResidualViT(profile.residual_config), TrackViT(profile.track_config)


def discriminators_file(profile_name: str, models: Path) -> Path:
    """Default path of a profile's discriminators: the shipped file, or else a file in the models folder."""
    return SHIPPED.get(profile_name) or models / f"{profile_name}-discriminators.safetensors"


def save_discriminators(
    path: Path,
    *,
    profile: Profile,
    version: str,
    instantaneous: dict[str, Tensor],
    long_term: dict[str, Tensor],
    precision: torch.dtype = torch.float16,
) -> None:
    """Write both state dicts to `path`, atomically, in `precision`, without pace terms."""
    packed = pack_discriminators(
        profile=profile, version=version, instantaneous=instantaneous, long_term=long_term, dtype=precision
    )
    _write(path, packed)


def save_reference(path: Path, checkpoint: bytes, table: ReferenceTable) -> None:
    """Write a checkpoint's bytes to `path`, atomically, with this reference table in place of its own."""
    kept = {name: value for name, value in _metadata(checkpoint).items() if name != INHERITED}
    _write(path, save(load(checkpoint), kept | to_metadata(table)))


def pack_discriminators(
    *,
    profile: Profile,
    version: str,
    instantaneous: dict[str, Tensor],
    long_term: dict[str, Tensor],
    dtype: torch.dtype = torch.float32,
    pace_weights: tuple[float, float] = NO_PACE,
    inherited: ReferenceTable | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> bytes:
    """Pack both state dicts into the bytes of a safetensors file, as `dtype`.

    `inherited` is the reference table of the discriminators that these were refreshed from. `beside` are other tensors
    to keep in the file, in their own type.
    """
    tensors = {f"instantaneous.{name}": value for name, value in instantaneous.items()}
    tensors |= {f"long_term.{name}": value for name, value in long_term.items()}
    metadata = {
        "profile": profile.name,
        "version": version,
        "preprocessing_digest": profile.preprocessing_digest,
        "instantaneous": json.dumps(asdict(profile.residual_config)),
        "long_term": json.dumps(asdict(profile.track_config)),
        **({PACE_WEIGHTS: json.dumps([float(weight) for weight in pace_weights])} if pace_weights != NO_PACE else {}),
        **to_metadata(inherited, inherited=True),
    }
    return save({name: value.to(dtype).contiguous() for name, value in tensors.items()} | dict(beside or {}), metadata)


def load_discriminators(profile: Profile, path: Path | None = None, *, device: str = "cpu") -> Discriminators:
    """Load the discriminators at `path`, by default those shipped with the profile.

    Raises NotReady, naming the command that trains them, if there are none or they do not fit the profile: untrained
    discriminators are never served.
    """
    file = path or SHIPPED[profile.name]
    if not file.is_file():
        raise NotReady(
            f"no trained discriminators of profile '{profile.name}' at {file}; train them with "
            f"`motion-reward pretrain --profile {profile.name} --real DIR --generated DIR --out {file}`"
        )
    return read_discriminators(profile, file.read_bytes(), source=str(file), device=device)


def read_discriminators(profile: Profile, data: bytes, *, source: str, device: str = "cpu") -> Discriminators:
    """Load discriminators from the bytes of a checkpoint. Raises NotReady, naming `source`, if they do not fit."""
    try:
        stored, metadata = load(data), _metadata(data)
        _check(metadata, profile, source)
        tensors = {name: tensor.float() for name, tensor in stored.items()}
        weights_digest = digest_of(stored, metadata["preprocessing_digest"], metadata.get(PACE_WEIGHTS, ""))
        pace_weights = _pace_weights(metadata)
        reference, no_reference = from_metadata(metadata, weights_digest, source)
        instantaneous = ResidualViT(ResidualViTConfig(**json.loads(metadata["instantaneous"])))
        long_term = TrackViT(TrackViTConfig(**json.loads(metadata["long_term"])))
        instantaneous.load_state_dict(_part(tensors, "instantaneous."), strict=True)
        long_term.load_state_dict(_part(tensors, "long_term."), strict=True)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise NotReady(
            f"{source} does not hold discriminators of profile '{profile.name}' ({error}); train or copy it again"
        ) from error
    for discriminator in (instantaneous, long_term):
        set_compute(discriminator, profile.discriminator_compute)
    return Discriminators(
        instantaneous=instantaneous.eval().to(device),
        long_term=long_term.eval().to(device),
        version=metadata["version"],
        digest=hashlib.sha256(data).hexdigest(),
        weights_digest=weights_digest,
        pace_weights=pace_weights,
        reference=reference,
        no_reference=no_reference,
    )


def _metadata(data: bytes) -> dict[str, str]:
    """A checkpoint's metadata. It is parsed here, because safetensors reads it only from a file on disk."""
    (size,) = struct.unpack("<Q", data[:8])
    found: dict[str, str] = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    return found


def _pace_weights(metadata: Mapping[str, str]) -> tuple[float, float]:
    """The weights of the pace terms, none if the file names none. Raises ValueError for anything but two numbers."""
    if PACE_WEIGHTS not in metadata:
        return NO_PACE
    match json.loads(metadata[PACE_WEIGHTS]):
        case [float(instantaneous), float(long_term)] if math.isfinite(instantaneous) and math.isfinite(long_term):
            return instantaneous, long_term
    raise ValueError(f"{PACE_WEIGHTS} must be two finite numbers such as [0.1, 0.4], not {metadata[PACE_WEIGHTS][:80]}")


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(data)


def _check(metadata: dict[str, str], profile: Profile, source: str) -> None:
    if metadata.get("preprocessing_digest") != profile.preprocessing_digest:
        raise NotReady(
            f"{source} was trained on other motion features than profile '{profile.name}' now computes; "
            f"train the discriminators again with `motion-reward pretrain --profile {profile.name}`"
        )


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
