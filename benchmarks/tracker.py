"""Measures how well trackers follow points, against exact tracks of simulated scenes: `python -m benchmarks.tracker`.

The metrics are those of TAP-Vid (arXiv 2211.03726). Queries are in the first frame, which is not counted itself.
Distances are at 256x256. Every scene has the same weight. The classical tracker of the `embedded` profile is always
measured. CoTracker3 of the `shift` profile is measured if its weights are in the models folder.

Legend: T frames, N points, K thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from experiments.recipe.scenes import render_scene
from protos.types import Clip
from reward_server.commands.options import CsvFile, JsonFile, ModelsFolder, settings_of
from reward_server.estimators.classical import ClassicalEstimators
from reward_server.evaluation import report
from reward_server.models.published import COTRACKER3
from reward_server.models.store import load_network, read_record
from reward_server.motion import random_queries
from reward_server.settings import Settings
from reward_server.stats import mean_bootstrap

THRESHOLDS_PX = (1, 2, 4, 8, 16)
SIDE_PX = 256
FPS = 12.0
SURELY_VISIBLE = 0.9  # CoTracker3's own threshold for visibility

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Tracker = Callable[[Clip, NDArray[np.int64]], tuple[Floats, Bools]]
METRICS = ("average_jaccard", "delta_avg", "occlusion_accuracy")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The scenes, and the number of points in each."""

    scenes: int = 20
    seed: int = 1_000_000  # far from the seeds of the recipe's scenes
    frames: int = 24
    points: int = 256


@dataclass(frozen=True, kw_only=True)
class TrackScores:
    """One scene's scores, 0..1. `delta` and `jaccard` have one value per threshold of THRESHOLDS_PX."""

    average_jaccard: float
    delta_avg: float
    occlusion_accuracy: float
    delta: tuple[float, ...]
    jaccard: tuple[float, ...]


def track_scores(truth_TN2: Floats, visible_TN: Bools, tracks_TN2: Floats, predicted_TN: Bools) -> TrackScores:
    """TAP-Vid's metrics of tracks in pixels of a 256x256 frame. Row 0, the frame of the queries, is left out.

    delta is the share of visible points whose distance is below the threshold. Jaccard is true positives over
    true positives + false positives + false negatives. A true positive is visible, predicted visible, and within the
    threshold. A false positive is predicted visible, but occluded or not within the threshold. A false negative is
    visible, but predicted occluded or not within the threshold.

    Raises ValueError if no point is visible after row 0.
    """
    visible, predicted = visible_TN[1:], predicted_TN[1:]
    if not visible.any():
        raise ValueError("no point is visible after the first frame: there is nothing to measure")
    distance = np.linalg.norm(np.nan_to_num(tracks_TN2 - truth_TN2, nan=np.inf)[1:], axis=-1)
    within = distance[..., None] < np.array(THRESHOLDS_PX)  # [T-1,N,K]
    hits = (within & visible[..., None]).sum((0, 1))
    right = (within & (visible & predicted)[..., None]).sum((0, 1))
    wrong = (predicted[..., None] & ~(within & visible[..., None])).sum((0, 1))
    delta, jaccard = hits / visible.sum(), right / (visible.sum() + wrong)
    return TrackScores(
        average_jaccard=float(jaccard.mean()),
        delta_avg=float(delta.mean()),
        occlusion_accuracy=float((visible == predicted).mean()),
        delta=tuple(map(float, delta)),
        jaccard=tuple(map(float, jaccard)),
    )


def classical_tracker(clip: Clip, points_N2: NDArray[np.int64]) -> tuple[Floats, Bools]:
    """The embedded profile's tracker: tracks [T,N,2] in the clip's pixels and visibility [T,N]."""
    motion = ClassicalEstimators().estimate(clip, points_N2)
    return motion.tracks.numpy(), motion.visibility.numpy() > 0.5


def cotracker3(models: Path, device: str) -> Tracker | None:
    """CoTracker3 as the shift profile runs it, with all updates. None if its weights are not in the models folder.

    Raises NotReady if the weights have changed since they were pulled.
    """
    if read_record(COTRACKER3, models) is None:
        return None
    from reward_server.estimators.cotracker3 import CoTracker3  # noqa: PLC0415

    network = CoTracker3()
    load_network(network, COTRACKER3.name, models)
    return network_tracker(network.eval().to(device), device)


def network_tracker(network: Any, device: str) -> Tracker:
    """A CoTracker3 network as a tracker: tracks [T,N,2] in the clip's pixels and visibility [T,N].

    In the first frame the tracks are the query points. A point counts as visible above SURELY_VISIBLE.
    """

    @torch.inference_mode()
    def track(clip: Clip, points_N2: NDArray[np.int64]) -> tuple[Floats, Bools]:
        height, width = clip.frames.shape[2:]
        queries = np.pad(points_N2, ((0, 0), (1, 0))).astype(np.float32)
        found = network(torch.from_numpy(clip.frames)[None].to(device), torch.from_numpy(queries)[None].to(device))
        config = network.config
        scale = np.array([(width - 1) / (config.width_px - 1), (height - 1) / (config.height_px - 1)], np.float32)
        tracks = found.tracks[0].cpu().numpy() * scale
        visible = found.visibility[0].cpu().numpy() > SURELY_VISIBLE
        tracks[0], visible[0] = points_N2, True
        return tracks, visible

    return track


def run(plan: Plan, settings: Settings, *, outputs: report.Outputs, console: Console | None = None) -> int:
    """Measure the trackers and print and write the results. Returns the exit status.

    Raises RenderingUnavailable without MuJoCo or off-screen OpenGL.
    """
    console = console or Console()
    trackers: dict[str, Tracker] = {"classical": classical_tracker}
    network = cotracker3(settings.models_folder, settings.device)
    if network is not None:
        trackers["cotracker3"] = network
    rows = list(scored(plan, trackers))
    document = {
        "evaluate_tracker": "tap-vid",
        "plan": asdict(plan),
        "frame_px": SIDE_PX,
        "trackers": {name: summary([s for n, _, s in rows if n == name]) for name in trackers},
        "not_measured": [] if network else [COTRACKER3.name],
    }
    console.print(table(document, plan))
    if network is None:
        missing = f"CoTracker3 was not measured: no weights in {settings.models_folder}"
        console.print(f"{missing}; run `motion-reward models pull shift` to fetch them", soft_wrap=True)
    records = [{"tracker": name, "scene": seed, **asdict(scores)} for name, seed, scores in rows]
    report.write_json(outputs.json, {**document, "scenes": records})
    columns = ("tracker", "scene", *METRICS, *(f"delta_{px}px" for px in THRESHOLDS_PX))
    report.write_csv(outputs.csv, columns, (_csv_row(name, seed, scores) for name, seed, scores in rows))
    report.print_last_line(console, document)
    return 0


def scored(plan: Plan, trackers: dict[str, Tracker]) -> Iterator[tuple[str, int, TrackScores]]:
    """Scores of each tracker on each scene, as (tracker, seed of the scene, scores)."""
    with report.progress_bar() as bar:
        for seed in bar.track(range(plan.seed, plan.seed + plan.scenes), description="scenes"):
            scene = render_scene(seed, plan.frames, FPS, SIDE_PX, SIDE_PX)
            points = random_queries(seed, plan.points, SIDE_PX, SIDE_PX)
            truth, visible = scene.tracks(points)
            for name, tracker in trackers.items():
                yield name, seed, track_scores(truth, visible, *tracker(scene.clip, points))


def summary(scores: Sequence[TrackScores]) -> dict[str, Any]:
    """Means over scenes, with 95 % bootstrap intervals of the three metrics."""
    figures: dict[str, Any] = {metric: float(np.mean([getattr(s, metric) for s in scores])) for metric in METRICS}
    for metric in METRICS:
        interval = mean_bootstrap([getattr(s, metric) for s in scores])
        figures[f"{metric}_ci95"] = report.interval_json(interval)
    figures["delta"] = np.mean([s.delta for s in scores], axis=0).tolist()
    figures["jaccard"] = np.mean([s.jaccard for s in scores], axis=0).tolist()
    return figures


def table(document: dict[str, Any], plan: Plan) -> Table:
    """One row per tracker, in per cent."""
    title = f"{plan.scenes} scenes of {plan.frames} frames, {plan.points} first-frame points each; per cent"
    near = tuple(f"<{px} px" for px in THRESHOLDS_PX)
    drawn = report.figure_table(title, ("tracker",), ("AJ", "delta avg", "occlusion", *near))
    for name, figures in document["trackers"].items():
        cells = [figures[metric] for metric in METRICS] + figures["delta"]
        drawn.add_row(name, *(f"{100 * value:.1f}" for value in cells))
    return drawn


def _csv_row(name: str, seed: int, scores: TrackScores) -> dict[str, object]:
    near = {f"delta_{px}px": value for px, value in zip(THRESHOLDS_PX, scores.delta, strict=True)}
    return {"tracker": name, "scene": seed, **{m: getattr(scores, m) for m in METRICS}, **near}


def main(
    *,
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes; their seeds count up from --seed.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first scene and of its points.")] = 1_000_000,
    frames: Annotated[int, typer.Option(min=2, help="Frames of each scene, at 12 frames per second.")] = 24,
    points: Annotated[int, typer.Option(min=1, help="Random first-frame points of each scene.")] = 256,
    models_dir: ModelsFolder = None,
    json: JsonFile = None,
    csv: CsvFile = None,
) -> None:
    """Measure point tracking against exact tracks of simulated scenes (TAP-Vid metrics). Ends with one JSON line.

    The classical tracker is always measured, CoTracker3 if its weights are in the models folder. Scenes need MuJoCo.
    """
    plan = Plan(scenes=scenes, seed=seed, frames=frames, points=points)
    raise typer.Exit(run(plan, settings_of(models_dir=models_dir), outputs=report.Outputs(json=json, csv=csv)))


if __name__ == "__main__":
    typer.run(main)
