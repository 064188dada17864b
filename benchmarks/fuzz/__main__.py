"""Fuzzes decoding and both doors. The goals: no answer of 5xx, no crash, nothing over its time or memory limit.

    python -m benchmarks.fuzz [--inputs 20000] [--seed 0] [--keep FOLDER]

Half of the inputs are files for decoding: mutations of a good file of every container, of odd files and of bombs. The
others go to a running server: raw HTTP, requests made by schemathesis from docs/openapi.json, and protobuf messages.
`--keep` writes what was found, one file each. The last line is JSON. The exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.fuzz.decoding import Decoded, fuzz_decoding
from benchmarks.fuzz.doors import Answers, fuzz_grpc, fuzz_http, fuzz_schema
from benchmarks.light_stack import Stack
from reward_server.settings import Settings

SETTINGS = {"threads": 2, "score_timeout_s": 5, "lease_s": 5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for what is found")
    args = parser.parse_args()
    decoded = fuzz_decoding(args.inputs // 2, args.seed)
    part = args.inputs // 6
    with (
        tempfile.TemporaryDirectory(prefix="motion-reward-fuzz-") as folder,
        Stack(Path(folder), workers=1, settings=SETTINGS) as stack,
    ):
        doors = {
            "http": fuzz_http(stack.http, part, args.seed),
            "schema": fuzz_schema(stack.http, part, args.seed),
            "grpc": fuzz_grpc(stack.grpc, part, args.seed),
        }
        alive = stack.door.alive and all(worker.alive for worker in stack.workers)
    document = told(decoded, doors, alive=alive)
    if args.keep:
        write(args.keep, decoded, doors)
    for name, answers in doors.items():
        for code, sent in answers.found[:10]:
            print(f"{name} {code}: {sent[:300]!r}", file=sys.stderr)
    print(json.dumps(document))
    raise SystemExit(any(document[name] for name in ("server_errors", "crashes", "over_time", "over_memory")))


def told(decoded: Decoded, doors: dict[str, Answers], *, alive: bool) -> dict[str, Any]:
    """The figures of a run."""
    errors = [fault for fault in decoded.found if fault.startswith("error:")]
    return {
        "inputs": sum(decoded.codes.values()) + sum(sum(one.codes.values()) for one in doors.values()),
        "server_errors": sum(len(one.found) for one in doors.values()) + sum(len(decoded.found[e]) for e in errors),
        "crashes": decoded.codes["decoder_crashed"] + (not alive),
        "over_time": len(decoded.found.get("over the time limit", ())),
        "over_memory": decoded.codes["decode_memory"] + (decoded.peak_mib > Settings().decode_memory_mib),
        "peak_decode_mib": round(decoded.peak_mib),
        "slowest_decode_s": round(decoded.slowest_s, 2),
        "decoded": dict(decoded.codes.most_common()),
        "doors": {name: dict(answers.codes.most_common()) for name, answers in doors.items()},
    }


def write(folder: Path, decoded: Decoded, doors: dict[str, Answers]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept = [(code, data) for code, all_data in decoded.found.items() for data in all_data]
    kept += [(f"{name} {code}", sent) for name, answers in doors.items() for code, sent in answers.found]
    for number, (code, data) in enumerate(kept):
        (folder / f"{number:03}-{code.replace(' ', '-').replace(':', '')}").write_bytes(data)


if __name__ == "__main__":
    main()
