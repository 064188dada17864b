"""Compares a refresh step on stored features with one that runs the frozen networks again, for the `shift` profile.

    python -m benchmarks.refresh_cost [--frames 24] [--tracks 1024] [--steps 3] [--clips-per-step 1] [--cpu-time]

It runs the server's own refresh (`reward_server/training/adversarial.py`) on packed motion of synthetic clips, with
random weights. A step takes `clips-per-step` real clips and as many rollouts. Recomputing would add the frozen
networks' time for each of them. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.official import weighted
from benchmarks.sides import Case
from protos.types import Clip, RefreshRequest
from reward_server.discriminators.residual_vit import ResidualViT
from reward_server.discriminators.track_vit import TrackViT
from reward_server.estimators.cotracker3 import CoTracker3
from reward_server.estimators.sea_raft import SeaRaft
from reward_server.networks.prepacked import Compute
from reward_server.profiles.discriminators import Discriminators
from reward_server.profiles.packed import pack
from reward_server.profiles.run_clips import RunClip
from reward_server.profiles.shift import Networks, ShiftProfile
from reward_server.training.adversarial import refresh_discriminators
from reward_server.training.buffers import Buffers

NUM_GROUPS = 4  # groups of each origin; one is held out


def random_profile(seed: int, compute: Compute) -> ShiftProfile:
    """The profile `shift` with random networks."""
    networks = Networks(
        tracker=weighted(CoTracker3(compute=compute), "cotracker", seed),
        flow_net=weighted(SeaRaft(compute=compute), "searaft", seed),
        device="cpu",
        compute=compute,
        digests={"cotracker3": "random", "sea_raft": "random"},
    )
    return ShiftProfile(networks=networks)


def random_discriminators(profile: ShiftProfile, seed: int) -> Discriminators:
    return Discriminators(
        instantaneous=weighted(ResidualViT(profile.residual_config), "ic", seed, "flow_vit."),
        long_term=weighted(TrackViT(profile.track_config), "trackformer", seed),
        version="random",
        digest="random",
    )


def measured(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the frozen networks per clip, of a step on stored features, and of a step that recomputes them."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    profile = random_profile(args.seed, Compute(precision=args.precision))
    clip = Clip(frames=Case.made_up(args.seed, args.frames, 1).frames.byte().numpy(), fps=14.0)
    spent = []
    for _ in range(args.repeats):
        start = clock()
        motion = profile.motion(clip, query_seed=args.seed, num_tracks=args.tracks)
        spent.append(clock() - start)
    packed = pack(motion, num_pairs=min(12, args.frames - 1))
    clips = [[RunClip(group_id=f"{origin}{i}", packed=packed) for i in range(NUM_GROUPS)] for origin in ("a", "b")]
    request = RefreshRequest(run_id="bench", steps=args.steps + 1, clips_per_step=args.clips_per_step)
    starts: list[float] = []
    discriminators = random_discriminators(profile, args.seed)
    refresh_discriminators(
        profile,
        Buffers(real=clips[0], rollouts=clips[1]),
        request,
        average=discriminators,
        training=discriminators,
        device="cpu",
        before_step=lambda _: starts.append(clock()),
    )
    step = statistics.median(np.diff(starts)[1:] if args.steps > 1 else np.diff(starts))
    networks = statistics.median(spent)
    recomputing = step + 2 * args.clips_per_step * networks
    return {
        "networks_per_clip_s": networks,
        "stored_step_s": float(step),
        "recomputing_step_s": float(recomputing),
        "ratio": float(recomputing / step),
        "stored_mib_per_clip": sum(value.nbytes for value in packed.values()) / 1024**2,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=24, help="frames of the clip of 320x576 pixels")
    parser.add_argument("--tracks", type=int, default=1024, help="query points of a clip")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after a first untimed one")
    parser.add_argument("--clips-per-step", type=int, default=1, help="clips of each origin per step")
    parser.add_argument("--repeats", type=int, default=1, help="runs of the frozen networks")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="precision of the frozen networks"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and clips")
    parser.add_argument("--cpu-time", action="store_true", help="measure seconds of CPU, for shared machines")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    result = measured(args)
    for name, value in result.items():
        print(f"{name:<22} {value:10.3f}")
    print(json.dumps(vars(args) | result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
