"""Pretrains and serves discriminators for one seed: real scenes against the base's rollouts or against motion faults.

Pretraining and serving run in separate processes, as a user would start them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np

from experiments.proof.learned import groups_of
from experiments.proof.scenes import draw_scenes
from experiments.proof.size import DiscriminatorsSize
from protos.types import Clip
from reward_server.serving.local import local_server
from reward_server.settings import Settings
from trainer.policies.protocol import Policy
from trainer.seeds import derived_seed

Negatives = Literal["rollouts", "faults"]


def named(name: str, negatives: Negatives) -> str:
    """`name`, with a suffix if the negatives are faults. The first plan had rollouts only, so they have no suffix."""
    return name if negatives == "rollouts" else f"{name}-{negatives}"


def pretrained_discriminators(
    folder: Path, policy: Policy, size: DiscriminatorsSize, *, seed: int, negatives: Negatives
) -> Path:
    """Pretrain once and return the checkpoint. Raises CalledProcessError if the pretraining fails.

    The negatives are the base's rollouts, which differ from real clips in look and motion, or motion faults of the
    same real clips, which differ in motion alone.
    """
    discriminators = folder / f"{named('discriminators', negatives)}.safetensors"
    if discriminators.exists():
        return discriminators
    work = folder / named("pretrain", negatives)
    scenes = draw_scenes(size.num_scenes, seed=derived_seed(seed, "pretrain"))
    num_rollouts = 1 if negatives == "rollouts" else 0
    pretraining_clips(groups_of(policy, [scene.clip() for scene in scenes], num_rollouts, seed=seed), work)
    about = ["--steps", str(size.steps), "--seed", str(seed)]
    places = {"--real": work / "real", "--work": work, "--out": discriminators}
    if num_rollouts:
        places["--generated"] = work / "generated"
        about += ["--stop-auc", "0", "--instance-noise", "0"]  # the published runs had neither
    run_pretraining(places, *about)
    return discriminators


def run_pretraining(places: Mapping[str, Path], *options: str) -> None:
    """Run `motion-reward pretrain` in a process of its own. Raises CalledProcessError if it fails."""
    flat = [str(part) for option in places.items() for part in option]
    subprocess.run([sys.executable, "-m", "reward_server", "pretrain", *flat, *options], check=True)


def pretraining_clips(groups: Sequence[Sequence[Clip]], folder: Path) -> None:
    """Write each real clip to real/ and its rollout, if there is one, to generated/ under the same file name."""
    for number, group in enumerate(groups):
        for kind, clip in zip(("real", "generated"), group, strict=False):
            write_video(folder / kind / f"{number:05d}.mkv", clip)


def write_video(path: Path, clip: Clip) -> None:
    """Write a lossless RGB video. At 16 x 16 pixels, subsampled chroma would be only 8 x 8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=Fraction(clip.fps).limit_denominator(1001))
        stream.height, stream.width = clip.frames.shape[2:]
        stream.pix_fmt = "bgr0"
        for image in clip.frames.transpose(0, 2, 3, 1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def reward_server(
    given: str | None, folder: Path, policy: Policy, size: DiscriminatorsSize, *, seed: int, negatives: Negatives
) -> Iterator[str]:
    """URL of the `given` server, or of one that serves the seed's own discriminators, pretrained if need be."""
    if given:
        yield given
        return
    with served(pretrained_discriminators(folder, policy, size, seed=seed, negatives=negatives), size) as url:
        yield url


@contextmanager
def served(discriminators: Path, size: DiscriminatorsSize) -> Iterator[str]:
    """gRPC URL of a server with these discriminators and no earlier runs. It stops on leaving. Raises NotReady."""
    with local_server(Settings(checkpoint=discriminators, num_tracks=size.num_tracks)) as server:
        yield server.grpc_url
