"""Measures how discriminators rank a fault that they were never trained on, with one pretraining per fault left out.

    python -m benchmarks.left_out --real data/clips --real data/scenes --work data/pretrain \\
        --shots data/clips [--steps 600] [--fault wobbled ...]

Each training is short. One training with all faults, equally short, serves as the baseline: the difference to it is
the cost of leaving a fault out. `--fault wobbled,ghosted` leaves out both at once, which takes fewer trainings and is
harder. Each checkpoint is judged by the sanity ladder of the held-out shots, on the rows of the faults left out.
Features that `motion-reward pretrain --work` has cached are used again. The last line of the output is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward_server.data.shots import find_shots
from reward_server.evaluation.ladder import ladder_figures
from reward_server.evaluation.report import Figures
from reward_server.evaluation.sanity import climb
from reward_server.evaluation.scoring import open_scorer
from reward_server.faults import STRENGTHS
from reward_server.settings import Settings
from reward_server.training.pretrain import pretrain
from reward_server.training.pretrain_config import configs
from reward_server.training.samples import TRAINED_FAULTS


def figures_without(faults: Sequence[str], args: argparse.Namespace) -> list[Figures]:
    """Ladders of `faults` by discriminators trained without them. If none is given: all ladders, trained on all."""
    work = args.work / f"left-out-{args.steps}"
    checkpoint = work / f"{'+'.join(faults) or 'none'}.safetensors"
    if not checkpoint.is_file():
        cache_config, training = configs("embedded", steps=args.steps, seed=args.seed)
        pretrain(
            real=args.real,
            generated=None,
            out=checkpoint,
            work=work,
            cache_config=cache_config,
            training=training,
            left_out=faults,
            features=args.work / "features",
        )
    settings = Settings(checkpoint=checkpoint)
    with open_scorer(settings, None) as scorer:
        shots = find_shots([str(args.shots)])
        ladders = climb(shots, scorer, settings, windows=args.windows, faults=faults or TRAINED_FAULTS)
        return ladder_figures([rung for ladder in ladders for rung in ladder])


def shares(fault: str, figures: Sequence[Figures], reward_name: str = "combined") -> dict[str, float | None]:
    """Share of correctly ordered pairs by strength."""
    (row,) = (row for row in figures if row.reward_name == reward_name and row.name == fault)
    return {str(strength): share.fraction for strength, share in zip(STRENGTHS, row.by_strength, strict=True)}


def percents(by_strength: dict[str, float | None]) -> str:
    return "".join(f"{'-' if share is None else round(100 * share):>6}" for share in by_strength.values())


def together(text: str) -> list[str]:
    """Comma-separated faults that are left out of one training. Raises ArgumentTypeError for an unknown fault."""
    faults = text.split(",")
    if unknown := set(faults) - set(TRAINED_FAULTS):
        raise argparse.ArgumentTypeError(
            f"{sorted(unknown)} are not trained on; give some of {', '.join(TRAINED_FAULTS)}"
        )
    return faults


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--real", type=Path, action="append", required=True, help="real clips, as for `motion-reward pretrain`"
    )
    parser.add_argument("--work", type=Path, required=True, help="work folder of that run; trainings go below it")
    parser.add_argument("--shots", type=Path, required=True, help="clips of the ladder, as for `motion-reward sanity`")
    parser.add_argument("--steps", type=int, default=600, help="steps of each training")
    parser.add_argument(
        "--fault", action="append", type=together, help="fault, or faults with commas, to leave out; may be repeated"
    )
    parser.add_argument("--windows", type=int, default=1, help="largest number of ladders per shot")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    everything = figures_without([], args)
    rows: dict[str, dict[str, Any]] = {}
    for faults in args.fault or [[fault] for fault in TRAINED_FAULTS]:
        without = figures_without(faults, args)
        for fault in faults:
            rows[fault] = {"trained": shares(fault, everything), "left_out": shares(fault, without), "of": faults}
    print(f"% of pairs with the real clip above, at strength {', '.join(map(str, STRENGTHS))}; {args.steps} steps")
    for fault, row in rows.items():
        trained, left_out = percents(row["trained"]), percents(row["left_out"])
        print(f"{fault:<14} trained on {trained}   left out {left_out}   of {len(row['of'])}")
    print(json.dumps({"steps": args.steps, "seed": args.seed, "windows": args.windows, "faults": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
