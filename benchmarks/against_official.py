"""Compares the official CoTracker3 and SEA-RAFT with ours in time, memory and error, on equal weights and clips.

    python -m benchmarks.against_official --cotracker CHECKOUT --searaft CHECKOUT [--quick] [--parts speed,memory,bf16]

All sides run in one process and take turns. The official code runs as shipped, and with malloc set to keep big blocks.
Ours runs in plain torch, on packed weights, in bf16 with discriminators in fp32, and all in bf16. A ratio is official
seconds over ours in the same turn; its spread is over turns.

`--device cuda` gives the same table and adds two sides compiled by torch.compile, after warm-up runs that are not
timed. On a GPU, float32 convolutions stay exact unless `--tf32` lets cuDNN round, as torch does by default. On a
shared machine, use `--cpu-time` with one thread: it counts seconds of CPU, which waiting does not lengthen. Peak
memory is measured in a separate process for each side. Weights are random (`golden_weights.py`) and clips are
synthetic. Stand-ins replace the two discriminators of SHIFT's reference code (`official.py`). The last line of the
output is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import official
from benchmarks.allocation import as_shipped, keep_big_blocks
from benchmarks.sides import IC, LC, Case, Clock, Ours, SideReward, Theirs, device_clock, scored
from reward_server.networks.compiled import CompileMode
from reward_server.networks.prepacked import Compute, Linear, Precision, packing_works
from reward_server.networks.tf32 import exact_convolutions

WAYS = ("plain", "fp32", "bf16", "all bf16")
COMPILED = ("compiled", "compiled bf16")  # our sides that `--compile` adds
RUNS_TO_WARM = 3  # the first run compiles, the second records CUDA graphs
OFFICIAL = ("as shipped", "tuned malloc")
GROUPS = {stage: (stage,) for stage in (*LC, *IC)} | {"LC reward": LC, "IC reward": IC, "whole reward": (*LC, *IC)}


def ways_of(args: argparse.Namespace) -> dict[str, tuple[Compute, Compute | None]]:
    """How each of our sides computes, and how its discriminators compute if that differs."""
    exact = Compute(memory_mib=args.pass_memory_mib)
    bf16 = dataclasses.replace(exact, precision="bf16")
    ways: dict[str, tuple[Compute, Compute | None]] = {
        "plain": (dataclasses.replace(exact, packed=False), None),
        "fp32": (exact, None),
        "bf16": (bf16, exact),
        "all bf16": (bf16, None),
    }
    if args.compile != "none":
        exact, bf16 = (dataclasses.replace(compute, compile=args.compile) for compute in (exact, bf16))
        ways |= {"compiled": (exact, None), "compiled bf16": (bf16, exact)}
    return ways


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per stage and turn of every side, number of operations, and errors."""
    case = Case.made_up(args.seed, args.frames, args.tracks, args.device)
    theirs = Theirs(official.load(args.cotracker, args.searaft, args.seed), args.device)
    ways = ways_of(args)
    ours = Ours(Compute(), args.seed, device=args.device)
    expected, flops_theirs = counted(theirs, case)
    _, flops_ours = counted(ours.told(*ways["plain"]), case)
    for way in [way for way in ways if way in COMPILED or args.device != "cpu"] * RUNS_TO_WARM:
        scored(ours.told(*ways[way]), case)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in (*OFFICIAL, *ways)}
    errors: dict[str, dict[str, float]] = {}
    for _ in range(args.repeats):
        for malloc, told in zip(OFFICIAL, (as_shipped, keep_big_blocks), strict=True):
            told()
            turns[malloc].append(scored(theirs, case, clock_of(args))[1])
        as_shipped()  # our side uses glibc's default too
        for way, compute in ways.items():
            got, spent = scored(ours.told(*compute), case, clock_of(args))
            errors[way] = differences(got, expected)
            turns[way].append(spent)
        print(f"turn of {args.repeats} done", file=sys.stderr, flush=True)
    return {
        "seconds": {side: {group: _times(of, group) for group in GROUPS} for side, of in turns.items()},
        "ratios": {
            f"{way} against {malloc}": {group: _ratios(turns[malloc], turns[way], group) for group in GROUPS}
            for way in ways
            for malloc in OFFICIAL
        },
        "gflop": {
            name: {group: sum(work.get(stage, 0) for stage in stages) / 1e9 for group, stages in GROUPS.items()}
            for name, work in (("official", flops_theirs), ("ours", flops_ours))
        },
        "errors": errors,
    }


def clock_of(args: argparse.Namespace) -> Clock:
    """The clock that measures seconds."""
    return time.process_time if args.cpu_time else device_clock(args.device)


def counted(side: Theirs | Ours, case: Case) -> tuple[SideReward, dict[str, float]]:
    """A first, untimed run: its result, and the floating-point operations of each stage."""
    with FlopCounterMode(display=False) as counter:
        return scored(side, case, lambda: float(counter.get_total_flops()))


def differences(ours: SideReward, theirs: SideReward) -> dict[str, float]:
    """Largest differences from the official results."""
    return {
        "tokens": float((ours.tokens - theirs.tokens).abs().max()),
        "flow_px": float((ours.flow - theirs.flow).abs().max()),
        "lc_logit": abs(ours.lc - theirs.lc),
        "ic_logit": abs(ours.ic - theirs.ic),
    }


def _seconds(spent: dict[str, float], group: str) -> float:
    return sum(spent[stage] for stage in GROUPS[group])


def _times(turns: Sequence[dict[str, float]], group: str) -> float:
    return statistics.median(_seconds(spent, group) for spent in turns)


def _ratios(theirs: Sequence[dict[str, float]], ours: Sequence[dict[str, float]], group: str) -> list[float]:
    """Median, least and largest ratio over the turns."""
    each = [_seconds(a, group) / _seconds(b, group) for a, b in zip(theirs, ours, strict=True)]
    return [statistics.median(each), min(each), max(each)]


def gemm_peak(args: argparse.Namespace) -> dict[str, float]:
    """The best rate of a few large linear layers, plain and packed, in GFLOP/s for each precision."""
    scale = 1 if args.device == "cpu" else 4
    shapes = [tuple(scale * side for side in shape) for shape in ((2048, 2048, 2048), (1536, 1110, 384))]
    best: dict[str, float] = {}
    precisions: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for name, dtype in precisions.items():
        computes = [Compute(precision=name, packed=packed) for packed in (False, True)]
        rates = [layer_gflop_s(shape, dtype, compute, args) for shape in shapes for compute in computes]
        best[name] = max(rates)
    return best


@torch.no_grad()
def layer_gflop_s(shape: tuple[int, ...], dtype: torch.dtype, compute: Compute, args: argparse.Namespace) -> float:
    """GFLOP/s of one of our linear layers on `shape` (rows, inputs, outputs), from the fastest of twelve runs."""
    rows, inputs, outputs = shape
    layer, clock = Linear(inputs, outputs, device=args.device), clock_of(args)
    layer.compute = compute
    x = torch.randn(rows, inputs, device=args.device, dtype=dtype)
    times = []
    for _ in range(12):
        start = clock()
        layer(x)
        times.append(clock() - start)
    return 2 * rows * inputs * outputs / min(times) / 1e9


def bf16_quality(args: argparse.Namespace) -> dict[str, Any]:
    """Rewards of a group of clips in bf16 against fp32: rank correlation and error of the advantages, for each way."""
    ours = Ours(Compute(), args.seed, device=args.device)
    ways = {way: compute for way, compute in ways_of(args).items() if way == "fp32" or "bf16" in way}
    rewards: dict[str, list[SideReward]] = {way: [] for way in ways}
    for seed in range(args.clips):
        case = Case.made_up(args.seed + seed, args.quality_frames, args.quality_tracks, args.device)
        for way, compute in ways.items():
            rewards[way].append(scored(ours.told(*compute), case)[0])
    sizes = {"clips": args.clips, "frames": args.quality_frames, "tracks": args.quality_tracks}
    return sizes | {way: agreement(rewards["fp32"], rewards[way]) for way in ways if way != "fp32"}


def agreement(exact: Sequence[SideReward], coarse: Sequence[SideReward]) -> dict[str, float]:
    """Rank correlation of a group's rewards, and the largest error of a centred reward over their spread."""
    measured: dict[str, float] = {}
    for name in ("reward", "lc", "ic"):
        a, b = (torch.tensor([getattr(one, name) for one in group]).double() for group in (exact, coarse))
        error = ((b - b.mean()) - (a - a.mean())).abs().max()
        ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
        measured |= {
            f"{name}_spearman": float(torch.corrcoef(ranks)[0, 1]),
            f"{name}_spread": float(a.std()),
            f"{name}_error_of_spread": float(error / a.std()),
        }
    return measured


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak MiB (GPU memory, or resident memory on a CPU) and seconds of one reward, each side in its own process."""
    return {side: _alone(args, side) for side in (OFFICIAL[0], *ways_of(args))}


def _alone(args: argparse.Namespace, side: str) -> dict[str, float]:
    options = {"cotracker": args.cotracker, "searaft": args.searaft, "frames": args.frames, "tracks": args.tracks}
    options |= {"threads": args.threads, "seed": args.seed, "alone": side, "device": args.device}
    options |= {"compile": args.compile, "pass-memory-mib": args.pass_memory_mib}
    command = [
        sys.executable,
        "-m",
        "benchmarks.against_official",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    command += ["--tf32"] if args.tf32 else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def alone(args: argparse.Namespace) -> dict[str, float]:
    """One reward by one side: the peak memory of its process, the memory before the clip, and seconds."""
    theirs = args.alone == OFFICIAL[0]
    compute, discriminators = ways_of(args)["fp32" if theirs else args.alone]
    side = (
        Theirs(official.load(args.cotracker, args.searaft, args.seed), args.device)
        if theirs
        else Ours(compute, args.seed, discriminators=discriminators, device=args.device)
    )
    before = _peak_mib(args.device)
    start = time.perf_counter()
    scored(side, Case.made_up(args.seed, args.frames, args.tracks, args.device))
    return {"peak_mib": _peak_mib(args.device), "loaded_mib": before, "seconds": time.perf_counter() - start}


def _peak_mib(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 1024**2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def printed(result: dict[str, Any]) -> None:
    """Print the tables."""
    if "speed" in result:
        _print_speed(result["speed"], result["gemm_peak"])
    for side, of in result.get("memory", {}).items():
        print(
            f"peak memory, {side:<14} {of['peak_mib']:8.0f} MiB ({of['loaded_mib']:.0f} loaded), {of['seconds']:.1f} s"
        )
    for way, of in result.get("bf16", {}).items():
        if isinstance(of, dict):
            print(f"{way} against fp32: " + "  ".join(f"{name} {value:.4f}" for name, value in of.items()))


def _print_speed(measured: dict[str, Any], peak: dict[str, float]) -> None:
    seconds, gflop = measured["seconds"], measured["gflop"]
    ours = [side for side in seconds if side not in OFFICIAL]
    print(f"{'':<18}{'official s':>11}{'tuned s':>9}" + "".join(f"{f'ours {way} s':>21}" for way in ours))
    for group in GROUPS:
        cells = [seconds[side][group] for side in (*OFFICIAL, *ours)]
        print(f"{group:<18}{cells[0]:>11.3f}{cells[1]:>9.3f}" + "".join(f"{cell:>21.3f}" for cell in cells[2:]))
    print(f"\n{'x: median (least..largest)':<18}")
    for pair, ratios in measured["ratios"].items():
        line = "  ".join(f"{group} {a:.2f} ({b:.2f}..{c:.2f})" for group, (a, b, c) in ratios.items())
        print(f"{pair}: {line}")
    print(f"\nGFLOP, GFLOP/s and share of the GEMM peak ({peak['fp32']:.0f} fp32, {peak['bf16']:.0f} bf16 GFLOP/s)")
    for side in seconds:
        work = gflop["official" if side in OFFICIAL else "ours"]
        top = peak["bf16" if "bf16" in side else "fp32"]
        rates = {group: work[group] / seconds[side][group] for group in GROUPS}
        print(f"{side}: " + "  ".join(f"{g} {work[g]:.0f} {r:.0f} {r / top:.0%}" for g, r in rates.items()))
    for way, error in measured["errors"].items():
        print(f"error of {way}: " + "  ".join(f"{name} {value:.1e}" for name, value in error.items()))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cotracker", type=Path, required=True, help="checkout of facebookresearch/co-tracker")
    parser.add_argument("--searaft", type=Path, required=True, help="checkout of princeton-vl/SEA-RAFT")
    parser.add_argument("--frames", type=int, default=24, help="frames of the clip of 320x576 pixels")
    parser.add_argument("--tracks", type=int, default=1024, help="query points; both sides add 36 support points")
    parser.add_argument("--repeats", type=int, default=3, help="turns of every side")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and clips")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for the same table on a GPU")
    parser.add_argument(
        "--compile",
        choices=get_args(CompileMode),
        help="mode of torch.compile; default: reduce-overhead on a GPU, else none",
    )
    parser.add_argument(
        "--tf32", action="store_true", help="on a GPU, let fp32 convolutions of both sides round to TF32"
    )
    parser.add_argument("--pass-memory-mib", type=int, help="MiB per pass; default: 4096 on a GPU, else 64")
    parser.add_argument("--cpu-time", action="store_true", help="measure seconds of CPU, summed over threads")
    parser.add_argument("--parts", default="speed,memory,bf16", help="which of speed, memory, bf16 to measure")
    parser.add_argument("--clips", type=int, default=16, help="clips in the group that judges bf16")
    parser.add_argument("--quality-frames", type=int, default=6, help="frames of each clip that judges bf16")
    parser.add_argument("--quality-tracks", type=int, default=256, help="query points of each clip that judges bf16")
    parser.add_argument("--quick", action="store_true", help="4 frames, 64 tracks, one turn, 4 clips of 3 frames")
    parser.add_argument(
        "--alone", choices=(OFFICIAL[0], *WAYS, *COMPILED), help="score one clip by one side; print its memory"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.frames, args.tracks, args.repeats = 4, 64, 1
        args.clips, args.quality_frames, args.quality_tracks = 4, 3, 64
    on_gpu = args.device != "cpu"
    args.compile = args.compile or ("reduce-overhead" if on_gpu else "none")
    args.pass_memory_mib = args.pass_memory_mib or (4096 if on_gpu else 64)
    if unknown := set(args.parts.split(",")) - {"speed", "memory", "bf16"}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; give some of speed, memory, bf16")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    warnings.filterwarnings("ignore", message="torch.meshgrid")  # the official code's
    torch.set_num_threads(args.threads)
    with nullcontext() if args.tf32 else exact_convolutions:
        result = alone(args) if args.alone else measured(args)
    if not args.alone:
        printed(result)
    print(json.dumps(result))
    return 0


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The chosen parts, with the settings and the machine."""
    result: dict[str, Any] = {
        "frames": args.frames,
        "tracks": args.tracks,
        "threads": args.threads,
        "repeats": args.repeats,
        "device": torch.cuda.get_device_name(args.device) if args.device != "cpu" else "cpu",
        "compile": args.compile,
        "tf32": args.tf32,
        "pass_memory_mib": args.pass_memory_mib,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "packed": packing_works(torch.float32),
        "gemm_peak": gemm_peak(args),
    }
    measures = {"speed": speed, "memory": memory, "bf16": bf16_quality}
    return result | {name: measures[name](args) for name in args.parts.split(",")}


if __name__ == "__main__":
    sys.exit(main())
