"""What heads make of a fault that they were never trained on: one pretraining for every fault left out.

    python benchmarks/left_out.py --real data/clips --real data/stills --real data/scenes --work data/pretrain \\
        --shots data/clips [--steps 600] [--fault wobbled ...]

Each training is short, and one with no fault left out, as short, stands beside them: the difference is what
leaving out costs. Then the sanity ladder of the held-out shots, of which the row of the fault counts.
Features that `motion-reward pretrain --work` has cached are used again. The last line of the output is one
JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from reward_server.degradations import STRENGTHS
from reward_server.evaluation.sanity import Figures, climb, ladder_figures
from reward_server.evaluation.scoring import open_scorer
from reward_server.evaluation.shots import find_shots
from reward_server.pretrain import TRAINED_FAULTS, configs, pretrain
from reward_server.settings import Settings


def figures_without(fault: str | None, args: argparse.Namespace) -> list[Figures]:
    """The ladder of `fault` by heads that were trained without it; without None, of all by heads trained on all."""
    work = args.work / f"left-out-{args.steps}"
    checkpoint = work / f"{fault or 'none'}.safetensors"
    if not checkpoint.is_file():
        cache_config, config = configs("embedded", steps=args.steps, seed=args.seed)
        pretrain(
            real=args.real,
            generated=None,
            out=checkpoint,
            work=work,
            cache_config=cache_config,
            config=config,
            left_out=[fault] if fault else [],
            features=args.work / "features",
        )
    settings = Settings(checkpoint=checkpoint)
    with open_scorer(settings, None) as scorer:
        faults = [fault] if fault else TRAINED_FAULTS
        ladders = climb(find_shots([str(args.shots)]), scorer, settings, windows=args.windows, faults=faults)
        return ladder_figures([rung for ladder in ladders for rung in ladder])


def shares(fault: str, figures: Sequence[Figures], head: str = "combined") -> dict[str, float | None]:
    """Share of pairs ordered right, by strength."""
    (row,) = (row for row in figures if row.head == head and row.name == fault)
    return {str(strength): share.fraction for strength, share in zip(STRENGTHS, row.by_strength, strict=True)}


def percents(by_strength: dict[str, float | None]) -> str:
    return "".join(f"{'-' if share is None else round(100 * share):>6}" for share in by_strength.values())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", type=Path, action="append", required=True, help="as of `motion-reward pretrain`")
    parser.add_argument("--work", type=Path, required=True, help="folder of its run; trainings go below it")
    parser.add_argument("--shots", type=Path, required=True, help="clips of the ladder, as of `motion-reward sanity`")
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--fault", action="append", choices=TRAINED_FAULTS, help="only this one; may be repeated")
    parser.add_argument("--windows", type=int, default=1, help="ladders of one shot, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    everything = figures_without(None, args)
    rows = {}
    for fault in args.fault or TRAINED_FAULTS:
        rows[fault] = {"trained": shares(fault, everything), "left_out": shares(fault, figures_without(fault, args))}
    print(f"% of pairs with the real clip above, at strength {', '.join(map(str, STRENGTHS))}; {args.steps} steps")
    for fault, row in rows.items():
        print(f"{fault:<14} trained on {percents(row['trained'])}   left out {percents(row['left_out'])}")
    print(json.dumps({"steps": args.steps, "seed": args.seed, "windows": args.windows, "faults": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
