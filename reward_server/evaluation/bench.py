"""Measures speed and memory: `motion-reward bench` scores clips in this process and through a server that it starts.

The clips are synthetic, so no data is needed. In-process and served rounds alternate, so that a busy machine slows
both. Their ratio shows the cost of the server. The last line of the output is one JSON document.

A `shift` profile without weights is measured with random weights in a temporary folder, and the tables say so. The
times are the same as with real weights, but the rewards mean nothing.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from protos.client import RewardClient
from protos.types import Outcome, Submission
from reward_server.evaluation import report
from reward_server.evaluation.load import Load, MemoryMeter, Send, Size, drive, made_up_clip
from reward_server.models.published import PUBLISHED
from reward_server.models.store import store
from reward_server.pipeline import Pipeline
from reward_server.profiles import load_profile
from reward_server.profiles.discriminators import discriminators_file, new_discriminators, save_discriminators
from reward_server.serving.local import local_server
from reward_server.settings import Settings

PAPER = Size(frames=24, height_px=320, width_px=576, fps=14.0)
SMALL = Size(frames=16, height_px=256, width_px=256, fps=12.0)
LARGE = Size(frames=96, height_px=720, width_px=1280, fps=24.0)
STAGES = ("queue", "decode", "motion", "discriminator")
QUANTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    sizes: tuple[Size, ...] = (SMALL, PAPER, LARGE)
    batches: tuple[int, ...] = (1, 4, 8)
    clips: int = 32  # per size and batch, in-process
    clients: int = 16
    rounds: int = 5  # of in-process against served
    round_clips: int = 64
    repeats: int = 5  # measurements of one clip alone
    warm: bool = True  # whether every measurement begins with warm-up clips that are not counted

    @property
    def scored(self) -> int:
        """Number of clips that are scored in total, warm-up clips included."""
        in_process = len(self.sizes) * (self.warm + len(self.batches) * self.clips) + self.warm + self.repeats
        return in_process + 2 * self.warm * min(self.clients, self.round_clips) + 3 * self.rounds * self.round_clips


QUICK = Plan(sizes=(PAPER,), batches=(1, 8), clips=8, rounds=2, round_clips=32)
# The paper's networks take from a second (GPU) to minutes (CPU) per clip. HEAVY_QUICK therefore scores only 5 clips,
# one of each kind.
HEAVY = Plan(sizes=(PAPER,), batches=(1, 4), clips=4, clients=4, rounds=2, round_clips=4, repeats=3)
HEAVY_QUICK = Plan(sizes=(PAPER,), batches=(1,), clips=1, clients=1, rounds=1, round_clips=1, repeats=1, warm=False)
HEAVY_TIMEOUT_S = 3600.0  # clips wait for each other, and one may take many minutes on a busy machine
RANDOM = "RANDOM weights: times only, rewards mean nothing"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Throughput of one way to score clips of one size, and milliseconds per clip by stage and in total."""

    how: str
    size: str
    batch: int
    clips_per_s: float
    ms: dict[str, dict[str, float]]  # stage of protos.types.Timings or "total" -> p50, p90, p99


@dataclass(frozen=True, kw_only=True)
class Served:
    """Rounds with the same clips, in-process and through each door (by URL), and the server's memory."""

    alone: tuple[Load, ...]
    doors: dict[str, tuple[Load, ...]]
    memory: MemoryMeter

    def ratios(self, url: str) -> list[float]:
        """Served throughput divided by in-process throughput, for each round."""
        return [door.clips_per_s / alone.clips_per_s for door, alone in zip(self.doors[url], self.alone, strict=True)]


def run(
    settings: Settings, *, quick: bool = False, json_path: Path | None = None, console: Console | None = None
) -> int:
    """Run the command and return its exit code. Raises RuntimeError if a clip gets no reward."""
    console = console or Console()
    plan = plan_for(settings, quick=quick)
    with weighted(settings) as (loadable, weights):
        console.print(f"scoring {plan.scored} clips with the profile {settings.profile}")
        pipeline = Pipeline.load(loadable)
        alone = [row for size in plan.sizes for row in in_process(pipeline, size, plan)]
        one_clip_s = median(seconds_per_clip(pipeline, PAPER, plan))
        served = against_server(pipeline, loadable, plan)
    through = [served_timing(url, loads, settings) for url, loads in served.doors.items()]
    document = {
        "bench": "motion-reward",
        "machine": machine(),
        "profile": pipeline.model.profile,
        "weights": weights,
        "precision": {"networks": settings.precision, "discriminators": settings.discriminator_precision},
        "discriminator_version": pipeline.model.discriminator_version,
        "plan": {**asdict(plan), "sizes": [str(size) for size in plan.sizes]},
        "timings": [asdict(row) for row in (*alone, *through)],
        "one_clip_s": one_clip_s,
        "in_process_clips_per_s": [load.clips_per_s for load in served.alone],
        "served_over_in_process": {door_name(url): spread(served.ratios(url)) for url in served.doors},
        "peak_resident_mib": served.memory.peak_mib,
        "resident_mib_by_process": served.memory.at_peak_mib,
    }
    title = notes(plan, settings, weights)
    console.print(timing_table((*alone, *through), title), summary_table(document, plan, title), sep="\n")
    report.write_json(json_path, document)
    report.print_last_line(console, document)
    return 0


def plan_for(settings: Settings, *, quick: bool) -> Plan:
    if settings.profile == "embedded":
        return QUICK if quick else Plan()
    return HEAVY_QUICK if quick else HEAVY


@contextmanager
def weighted(settings: Settings) -> Iterator[tuple[Settings, str]]:
    """Settings that can be loaded, and "given" or "random" for their weights.

    The weights are random if a `shift` profile has none. Weights that were changed or do not fit still raise NotReady
    when they are loaded.
    """
    folder = settings.models_folder
    known = [network for network in PUBLISHED.values() if (folder / network.converted).is_file()]
    discriminators = settings.checkpoint or discriminators_file(settings.profile, folder)
    if settings.profile == "embedded":
        yield settings, "given"
        return
    waits = {"score_timeout_s": HEAVY_TIMEOUT_S, "max_stall_s": HEAVY_TIMEOUT_S}
    patient = settings.model_copy(update={"models_dir": folder, **waits})
    if len(known) == len(PUBLISHED) and discriminators.is_file():
        yield patient, "given"
        return
    with tempfile.TemporaryDirectory(prefix="motion-reward-random-") as random:
        write_random(settings.profile, Path(random))
        yield patient.model_copy(update={"models_dir": Path(random), "checkpoint": None}), "random"


def write_random(profile_name: str, folder: Path) -> None:
    """Write random weights of the frozen networks and the discriminators, in the files of real ones."""
    torch.manual_seed(0)
    for network in PUBLISHED.values():
        store(network, folder, network.build().state_dict(), source="random", source_sha256="random")
    profile = load_profile(profile_name, folder)
    instantaneous, long_term = (discriminator.state_dict() for discriminator in new_discriminators(profile))
    path = discriminators_file(profile_name, folder)
    save_discriminators(path, profile=profile, version="random", instantaneous=instantaneous, long_term=long_term)


def in_process(pipeline: Pipeline, size: Size, plan: Plan) -> list[Timing]:
    """Timings in this process, one per batch size. A clip's total is the time of its batch."""
    clips = [made_up_clip(size, seed) for seed in range(min(8, plan.clips))]
    checked(pipeline.score_submissions(clips[: int(plan.warm)]))
    rows = []
    for batch in plan.batches:
        chosen = [clips[index % len(clips)] for index in range(plan.clips)]
        rows.append(timing("in-process", size, batch, [alone_load(pipeline, chosen, batch)]))
    return rows


def alone_load(pipeline: Pipeline, clips: Sequence[Submission], batch: int) -> Load:
    """Score the clips in this process, `batch` at a time."""
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    latencies_s: list[float] = []
    for at in range(0, len(clips), batch):
        before = time.perf_counter()
        outcomes += checked(pipeline.score_submissions(clips[at : at + batch]))
        latencies_s += [time.perf_counter() - before] * len(clips[at : at + batch])
    wall_s = time.perf_counter() - started
    return Load(wall_s=wall_s, latencies_s=tuple(latencies_s), outcomes=tuple(outcomes))


def seconds_per_clip(pipeline: Pipeline, size: Size, plan: Plan) -> list[float]:
    """Seconds from bytes to reward for one clip alone, one per repeat."""
    loads = [alone_load(pipeline, [made_up_clip(size, seed)], 1) for seed in range(plan.warm + plan.repeats)]
    return [load.wall_s for load in loads[int(plan.warm) :]]


def against_server(pipeline: Pipeline, settings: Settings, plan: Plan) -> Served:
    """Measure rounds with the same clips: in-process with the worker's batch size, then through each door."""
    clips = [made_up_clip(PAPER, seed) for seed in range(min(16, plan.round_clips))]
    clips = [clips[index % len(clips)] for index in range(plan.round_clips)]
    with local_server(settings) as server, ExitStack() as stack:
        timeout_s = settings.score_timeout_s + 30
        doors = {url: senders(url, plan.clients, stack, timeout_s) for url in (server.grpc_url, server.http_url)}
        for send in doors.values() if plan.warm else ():  # warm the server up and open the connections
            checked(drive(send, clips[: plan.clients]).outcomes)
        memory = stack.enter_context(MemoryMeter(server.process).running())
        rounds = [
            (alone_load(pipeline, clips, settings.batch_jobs), {url: drive(send, clips) for url, send in doors.items()})
            for _ in range(plan.rounds)
        ]
    for _, loads in rounds:
        checked([outcome for load in loads.values() for outcome in load.outcomes])
    by_door = {url: tuple(loads[url] for _, loads in rounds) for url in doors}
    return Served(alone=tuple(load for load, _ in rounds), doors=by_door, memory=memory)


def senders(url: str, clients: int, stack: ExitStack, timeout_s: float) -> list[Send]:
    """Functions that send a clip, each with its own client. `stack` closes the clients."""
    opened = [stack.enter_context(RewardClient(url, timeout_s=timeout_s)) for _ in range(clients)]
    return [partial(_send, client) for client in opened]


def _send(client: RewardClient, submission: Submission) -> Outcome:
    return client.score([submission])[0]


def checked(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """The outcomes, if all have a reward. Raises RuntimeError with the error of the first that has none."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise RuntimeError(f"a clip of the benchmark has no reward: {outcome.error.code}: {outcome.error.message}")
    return outcomes


# --- figures ------------------------------------------------------------------------------------


def timing(how: str, size: Size, batch: int, loads: Sequence[Load]) -> Timing:
    """The timing over all loads together."""
    rewards = [outcome.reward for load in loads for outcome in load.outcomes if outcome.reward is not None]
    timings = [reward.provenance.timings for reward in rewards]
    ms = {stage: [float(getattr(item, f"{stage}_ms")) for item in timings] for stage in STAGES}
    ms["total"] = [1000 * latency_s for load in loads for latency_s in load.latencies_s]
    return Timing(
        how=how,
        size=str(size),
        batch=batch,
        clips_per_s=sum(len(load.outcomes) for load in loads) / sum(load.wall_s for load in loads),
        ms={stage: quantiles(values) for stage, values in ms.items()},
    )


def served_timing(url: str, loads: Sequence[Load], settings: Settings) -> Timing:
    return timing(door_name(url), PAPER, settings.batch_jobs, loads)


def clients_of(plan: Plan) -> str:
    return "1 client" if plan.clients == 1 else f"{plan.clients} clients"


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 with linear interpolation."""
    return {f"p{q}": float(value) for q, value in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def door_name(url: str) -> str:
    return url.partition(":")[0]


def machine() -> dict[str, Any]:
    """The machine and software versions of the measurement."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: version(name) for name in ("torch", "opencv-python-headless", "av")}
    return {"cpu": _cpu_name(), "cores": cores, "python": platform.python_version(), **versions}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())


def notes(plan: Plan, settings: Settings, weights: str) -> str:
    """Notes for the tables: the number of clips, the precisions of the networks, and whether the weights are random."""
    lines = [
        f"clips: {plan.clips} in-process, {plan.rounds} x {plan.round_clips} through each door by {clients_of(plan)}"
    ]
    if not plan.warm:
        lines.append("no warm-up clips")
    if settings.profile != "embedded":
        lines.append(f"networks in {settings.precision}, discriminators in {settings.discriminator_precision}")
    if weights == "random":
        lines.append(RANDOM)
    return "\n".join(lines)


def timing_table(rows: Sequence[Timing], below: str) -> Table:
    title = f"Milliseconds per clip by stage; motion and discriminator times are of the whole batch\n{below}"
    table = report.figure_table(title, ("how", "clip", "stage"), ("batch", "clips/s", "p50", "p90", "p99"))
    for row in rows:
        for stage, ms in row.ms.items():
            known = (row.how, row.size, str(row.batch), f"{row.clips_per_s:.3g}") if stage == STAGES[0] else [""] * 4
            cells = [f"{value:.0f}" for value in ms.values()]
            table.add_row(*known[:2], stage, *known[2:], *cells, end_section=stage == "total")
    return table


def summary_table(document: dict[str, Any], plan: Plan, below: str) -> Table:
    """The main figures, which the README quotes."""
    table = Table(title=f"{PAPER} clips\n{below}", show_header=False, box=SIMPLE, title_justify="left")
    table.add_row("one clip in this process, alone", f"{document['one_clip_s']:.2f} s")
    for door, ratio in document["served_over_in_process"].items():
        label = f"served / in-process throughput, {door}, {clients_of(plan)}"
        table.add_row(label, f"{ratio['median']:.2f} ({ratio['min']:.2f}..{ratio['max']:.2f})")
    table.add_row(f"peak resident memory, {clients_of(plan)}", f"{document['peak_resident_mib']:.0f} MiB")
    for process, mib in document["resident_mib_by_process"]:
        table.add_row(f"  {process}", f"{mib:.0f} MiB")
    return table
