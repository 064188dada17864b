"""Compares the same pipeline behind LitServe and behind our server, with the same clips and clients.

    python -m benchmarks.against_litserve [--rounds 5] [--clips 64] [--clients 16] [--json FILE]

LitServe (dev extra) runs one worker process and batches up to `batch_jobs` requests for `batch_wait_ms`, like our
server. Each batch goes to `Pipeline.score_submissions`, and the answer is the same JSON as ours. LitServe keeps
requests in memory; ours queue in Redis. Rounds alternate between the servers. LitServe's idle processes poll and take
about 7% of two cores, so they are suspended while ours are measured. Ratios are ours over LitServe's. The last line
of the output is one JSON document.
"""

# No `from __future__ import annotations`: LitServe compares the annotations of decode_request with real classes.

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any

import httpx
import litserve
import psutil
from fastapi import Request
from rich.console import Console
from rich.table import Table

from protos.json_codec import result_from_json, result_to_json
from protos.types import Media, Outcome, Submission
from reward_server.evaluation import report
from reward_server.evaluation.bench import PAPER, checked, door_name, machine, quantiles, senders, spread
from reward_server.evaluation.load import Load, Send, drive, made_up_clip
from reward_server.pipeline import Pipeline
from reward_server.serving.local import START_TIMEOUT_S, free_port, local_server, started
from reward_server.settings import Settings

TIMEOUT_S = 150.0
THEIRS = "litserve, http"


class RewardApi(litserve.LitAPI):
    """The pipeline as a LitServe API: a multipart field `video` in, the JSON of its result out."""

    def setup(self, device: str) -> None:
        self._pipeline = Pipeline.load(Settings())

    def decode_request(self, request: Request, **kwargs: Any) -> Submission:
        """The annotation tells LitServe to take any request. What comes here is its form."""
        return Submission(payload=request["video"].file.read(), media=Media.CONTAINER)

    def batch(self, inputs: list[Submission]) -> list[Submission]:
        return list(inputs)

    def predict(self, x: list[Submission], **kwargs: Any) -> list[Outcome]:
        return self._pipeline.score_submissions(x)

    def unbatch(self, output: list[Outcome]) -> list[Outcome]:
        return output

    def encode_response(self, output: Outcome, **kwargs: Any) -> dict[str, Any]:
        return result_to_json(output)


def serve_litserve(port: int) -> None:
    """Serve the pipeline with LitServe until the process ends. The benchmark runs this as a separate process."""
    settings = Settings()
    api = RewardApi(max_batch_size=settings.batch_jobs, batch_timeout=settings.batch_wait_ms / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=TIMEOUT_S)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


@contextmanager
def litserve_senders(clients: int) -> Iterator[tuple[psutil.Process, list[Send]]]:
    """Start a LitServe process and open `clients` clients, each with its own connection."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.against_litserve", "--serve", str(port)]
    with tempfile.TemporaryFile("w+") as log, ExitStack() as stack:
        child = stack.enter_context(started(command, os.environ, stdout=log, stderr=subprocess.STDOUT))
        opened = [stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}")) for _ in range(clients)]
        _await_health(opened[0], child, log)
        yield psutil.Process(child.pid), [partial(_post, client) for client in opened]


def _await_health(client: httpx.Client, child: subprocess.Popen[str], log: IO[str]) -> None:
    """Return once LitServe answers 200. Raises RuntimeError with the end of its log if it never does."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and child.poll() is None:
        try:
            if client.get("/health", timeout=2).is_success:
                return
        except httpx.TransportError:
            pass  # it is not listening yet
        time.sleep(0.1)
    log.seek(0)
    raise RuntimeError(f"LitServe did not answer within {START_TIMEOUT_S:g} s: {log.read()[-2000:]}")


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """Suspend a process and its children for the duration of the block."""
    family = [process, *process.children(recursive=True)]
    for member in family:
        member.suspend()
    try:
        yield
    finally:
        for member in family:
            member.resume()


def _post(client: httpx.Client, submission: Submission) -> Outcome:
    response = client.post("/predict", files={"video": ("clip", submission.payload)}, timeout=TIMEOUT_S)
    return result_from_json(response.raise_for_status().json())


def measure(settings: Settings, *, rounds: int, num_clips: int, clients: int) -> dict[str, list[Load]]:
    """Loads by server. Every round measures each server once, and every second round reverses their order."""
    made = [made_up_clip(PAPER, seed) for seed in range(16)]
    clips = [made[index % len(made)] for index in range(num_clips)]
    with local_server(settings) as ours, litserve_senders(clients) as (litserve_process, theirs), ExitStack() as stack:
        servers = {
            f"ours, {door_name(url)}": senders(url, clients, stack, TIMEOUT_S) for url in (ours.http_url, ours.grpc_url)
        } | {THEIRS: theirs}
        loads: dict[str, list[Load]] = {name: [] for name in servers}
        for clients_of_one in servers.values():
            checked(drive(clients_of_one, clips[:clients]).outcomes)  # warm up
        for index in range(rounds):
            for name in list(servers)[:: 1 if index % 2 == 0 else -1]:
                with nullcontext() if name == THEIRS else stopped(litserve_process):
                    loads[name].append(drive(servers[name], clips))
                checked(loads[name][-1].outcomes)
    return loads


def compare(loads: dict[str, list[Load]]) -> dict[str, Any]:
    """Throughput and latency of each server; for our HTTP and gRPC also the ratios to LitServe, round by round."""
    per_server = {
        name: {
            "clips_per_s": spread([load.clips_per_s for load in rounds]),
            "latency_ms": quantiles([1000 * latency_s for load in rounds for latency_s in load.latencies_s]),
        }
        for name, rounds in loads.items()
    }
    ratios = {name: _ratios(rounds, loads[THEIRS]) for name, rounds in loads.items() if name != THEIRS}
    return {"servers": per_server, "ours_over_litserve": ratios}


def _ratios(ours: Sequence[Load], theirs: Sequence[Load]) -> dict[str, dict[str, float]]:
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "throughput": spread([mine.clips_per_s / other.clips_per_s for mine, other in pairs]),
        "p99": spread([_p99(mine) / _p99(other) for mine, other in pairs]),
    }


def _p99(load: Load) -> float:
    return quantiles(load.latencies_s)["p99"]


def result_table(document: dict[str, Any]) -> Table:
    """One row per server. Ratios are the median over rounds, with the range."""
    title = f"{document['clips']} clips of {PAPER} a round, {document['clients']} clients; ratios: ours over LitServe's"
    columns = ("clips/s", "p50 ms", "p90 ms", "p99 ms", "throughput", "p99")
    table = report.figure_table(title, ("server",), columns)
    for name, figures in document["servers"].items():
        ratios = document["ours_over_litserve"].get(name)
        cells = [_range(ratios[key]) if ratios else report.ABSENT for key in ("throughput", "p99")]
        latency = [f"{value:.0f}" for value in figures["latency_ms"].values()]
        table.add_row(name, f"{figures['clips_per_s']['median']:.2f}", *latency, *cells)
    return table


def _range(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}..{ratio['max']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each server")
    parser.add_argument("--clips", type=int, default=64, help="clips per round and server")
    parser.add_argument("--clients", type=int, default=16, help="concurrent clients")
    parser.add_argument("--json", type=Path, help="also write the JSON document to this file")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve_litserve(given.serve)
        return
    loads = measure(Settings(), rounds=given.rounds, num_clips=given.clips, clients=given.clients)
    about = {"bench": "against_litserve", "machine": machine(), "litserve": litserve.__version__}
    plan = {"rounds": given.rounds, "clips": given.clips, "clients": given.clients, "size": str(PAPER)}
    document = {**about, **plan, **compare(loads)}
    console = Console()
    console.print(result_table(document))
    report.write_json(given.json, document)
    report.print_last_line(console, document)


if __name__ == "__main__":
    main()
