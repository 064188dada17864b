"""Compares the networks of the `shift` profile with stored outputs of the official code.

    python -m benchmarks.parity DIR [--threads N] [--plain] [--memory-mib N] [--device cuda [--tf32]]

DIR holds golden files `cotracker3*.npz`, `lc*.npz`, `searaft_m*.npz`, `ic*.npz` (see `golden.py`) and
`tolerances.json`, the largest allowed absolute error per array. The command prints a table and, as the last line,
{"checked", "failed", "worst"}. It exits 1 if an array is beyond its tolerance, if a stored output could not be
checked, or if there was nothing to check. `--plain` checks the code path without packed weights. On a GPU,
convolutions use float32; `--tf32` lets them round, as torch does there by default.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.golden import Golden, computed, kind
from reward_server.networks.prepacked import Compute
from reward_server.networks.tf32 import exact_convolutions


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stored array against ours. If they cannot be compared, `error` is infinite and `note` gives the reason."""

    file: str
    array: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def share(self) -> float:
        """Error as a share of the tolerance. Infinite if the error is not finite or the tolerance is 0."""
        if self.error == 0:
            return 0.0
        return self.error / self.tolerance if math.isfinite(self.error) and self.tolerance > 0 else math.inf

    @property
    def failed(self) -> bool:
        return self.share > 1


def rows(path: Path, tolerances: Mapping[str, Mapping[str, float]], compute: Compute, device: str = "cpu") -> list[Row]:
    """The checks of one file. A file that cannot be checked gives one failed row and does not stop the others."""
    try:
        golden = Golden.read(path, compute, device)
        ours, allowed = computed(golden), tolerances[kind(path) or ""]
        return [
            _row(path.name, name, golden.stored[name], ours.get(name), allowed.get(name)) for name in golden.outputs
        ]
    except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError, BadZipFile) as error:
        return [Row(file=path.name, array="*", error=math.inf, tolerance=0, note=f"{type(error).__name__}: {error}")]


def _row(file: str, array: str, stored: NDArray[np.generic], ours: Tensor | None, tolerance: float | None) -> Row:
    note, error = "", math.inf
    if ours is None or tolerance is None:
        note = "not computed by us" if ours is None else "no tolerance given"
    elif tuple(ours.shape) != stored.shape:
        note = f"shape {list(ours.shape)}, stored {list(stored.shape)}"
    else:
        error = float((ours.double() - torch.from_numpy(stored.astype(np.float64))).abs().max())
    return Row(file=file, array=array, error=error, tolerance=tolerance or 0.0, note=note)


def summary(checked: Iterable[Row]) -> dict[str, object]:
    """The document of the last line. `worst` is the array with the largest share of its tolerance.

    Infinite numbers become null, because JSON has no infinity.
    """
    checked = list(checked)
    worst = max(checked, key=lambda row: row.share, default=None)
    finite = {name: value if math.isfinite(value) else None for name, value in _numbers(worst).items()}
    named = {"file": worst.file, "array": worst.array, **finite} if worst else None
    return {"checked": len(checked), "failed": sum(row.failed for row in checked), "worst": named}


def _numbers(row: Row | None) -> dict[str, float]:
    return {"error": row.error, "tolerance": row.tolerance, "share": row.share} if row else {}


def _line(row: Row) -> str:
    verdict = "FAILED" if row.failed else "ok"
    return f"{row.file:<20} {row.array:<22} {row.error:>10.2e} {row.tolerance:>10.1e} {verdict:>7}  {row.note}".rstrip()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of golden files")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's default")
    parser.add_argument("--plain", action="store_true", help="use plain torch operators without packed weights")
    parser.add_argument("--memory-mib", type=int, default=64, help="MiB that a pass over tracks or frames may take")
    parser.add_argument("--device", default="cpu", help="torch device, for instance cuda")
    parser.add_argument("--tf32", action="store_true", help="on a GPU, run convolutions in TF32")
    args = parser.parse_args(argv)
    compute = Compute(packed=not args.plain, memory_mib=args.memory_mib)
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    if not (args.folder / "tolerances.json").is_file():
        parser.error(f"{args.folder} has no tolerances.json; give a folder of golden files")
    tolerances = json.loads((args.folder / "tolerances.json").read_text())
    checked: list[Row] = []
    print(f"{'file':<20} {'array':<22} {'max error':>10} {'tolerance':>10}")
    for path in sorted(args.folder.glob("*.npz")):
        start_s = time.perf_counter()
        with nullcontext() if args.tf32 else exact_convolutions:
            of_file = rows(path, tolerances, compute, args.device)
        checked += of_file
        print("\n".join(map(_line, of_file)))
        print(f"{path.name:<20} took {time.perf_counter() - start_s:.1f} s", flush=True)
    print(json.dumps(summary(checked)))
    return int(not checked or any(row.failed for row in checked))


if __name__ == "__main__":
    sys.exit(main())
