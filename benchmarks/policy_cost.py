"""Measures a policy's time and memory on a device by part: encoding, sampling, decoding, gradient, optimizer step.

    python -m benchmarks.policy_cost --config svd [--device cuda] [policy.base=FOLDER ...]

The policy is the configured one; the clip is synthetic. `random_bases.py` writes bases of real size for use without
the real weights. The time of a SHIFT step is computed from the parts: it has 1 + P samples where fine-tuning has one,
plus its share of P rollouts, which serve K passes. (Against fine-tuning on 1 + P samples, a step comes near the
paper's factor of 2.46.) Waiting for rewards is not included; `overlap.py` measures it. The last line of the output is
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protos.types import Clip
from trainer.checkpoint import trainable
from trainer.config import Config, load
from trainer.policies.base import DiffusersPolicy
from trainer.policies.loading import make_policy
from trainer.policies.protocol import Example, stack
from trainer.run import with_base

MIB = 1024**2


class Meter:
    """Measures seconds and peak memory of named parts. Waits until the device has finished each part."""

    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats = torch.device(device), repeats
        self.parts: dict[str, dict[str, float]] = {}

    def measured(self, name: str, call: Callable[[], Any], *, warm: bool = True) -> Any:
        """Measure a part and return its last result. Seconds are the median of `repeats` calls after an untimed one.

        With `warm=False`, the part runs once and that run is timed.
        """
        result = call() if warm else None
        times = []
        self._finished(reset=True)
        for _ in range(self.repeats if warm else 1):
            start = time.perf_counter()
            result = call()
            self._finished()
            times.append(time.perf_counter() - start)
        self.parts[name] = {"seconds": statistics.median(times)}
        if self.device.type == "cuda":
            self.parts[name]["peak_mib"] = torch.cuda.max_memory_allocated(self.device) / MIB
        return result

    def _finished(self, *, reset: bool = False) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            if reset:
                torch.cuda.reset_peak_memory_stats(self.device)


def parts(config: Config, device: str, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds, and on a GPU peak MiB, of every part of a clip's way through a buffer and a step."""
    meter = Meter(device, repeats)
    with tempfile.TemporaryDirectory() as folder:
        based = with_base(config.policy, Path(folder))
        policy = meter.measured("load", lambda: make_policy(based, device), warm=False)
    (example,) = meter.measured("encode a clip", lambda: policy.encode([made_up(policy)], ["a moving texture"]))
    seeds = list(range(policy.group_size))
    rollouts = meter.measured(f"sample {policy.group_size} rollouts", lambda: policy.sample(example, seeds))
    meter.measured("decode a rollout", lambda: policy.decode(rollouts[:1]))
    optimizer = torch.optim.AdamW([parameter for _, parameter in trainable(policy.module)], lr=config.optimizer.lr)
    meter.measured("loss and gradient", lambda: gradient(policy, example))
    meter.measured("optimizer step", optimizer.step)
    return meter.parts


def made_up(policy: DiffusersPolicy) -> Clip:
    """A clip of noise that moves to the right by two pixels per frame."""
    shape = (3, policy.height_px, policy.width_px)
    texture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return Clip(frames=np.stack([np.roll(texture, 2 * t, axis=2) for t in range(policy.num_frames)]), fps=policy.fps)


def gradient(policy: DiffusersPolicy, example: Example) -> float:
    """Compute the loss and gradient of one sample, as a step does for each chunk, and return the loss."""
    loss = policy.losses(stack([example]), policy.draw(1, torch.Generator().manual_seed(0))).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def per_step(measured: dict[str, dict[str, float]], config: Config) -> dict[str, float]:
    """Seconds of an optimizer step of one clip: fine-tuning, fine-tuning on as many samples as SHIFT, and SHIFT."""
    seconds = {name: part["seconds"] for name, part in measured.items()}
    num_rollouts, passes = config.loop.num_rollouts, config.loop.passes
    group = config.policy.group_size
    rollouts = num_rollouts * (seconds[f"sample {group} rollouts"] / group + seconds["decode a rollout"]) / passes
    rest = seconds["optimizer step"] + seconds["encode a clip"] / passes
    samples = (1 + num_rollouts) * seconds["loss and gradient"]
    return {
        "sft_s": seconds["loss and gradient"] + rest,
        "sft_as_many_samples_s": samples + rest,
        "shift_s": samples + rest + rollouts,
        "rollouts_s": rollouts,
        "shift_over_sft_as_many_samples": (samples + rest + rollouts) / (samples + rest),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny", help="preset or file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each part")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    args = parser.parse_args()
    config = load(args.config, args.overrides)
    measured = parts(config, args.device, args.repeats)
    step = per_step(measured, config)
    for name, part in measured.items():
        print(
            f"{name:<20}{part['seconds']:>10.3f} s" + (f"{part['peak_mib']:>10.0f} MiB" if "peak_mib" in part else "")
        )
    print("  ".join(f"{name} {value:.3f}" for name, value in step.items()))
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
    print(json.dumps({"policy": config.policy.base, "device": name, "parts": measured, "step": step}))


if __name__ == "__main__":
    main()
