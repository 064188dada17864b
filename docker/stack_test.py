"""Tests the stack of compose.yaml on a real Docker engine, from build to teardown (`make stack-test`).

It builds both images, starts the stack, scores a clip over HTTP and gRPC, restarts Redis, scales to two workers, kills
a worker that holds jobs, takes a few SHIFT steps, and removes the stack. The last line is JSON. The test has its own
project name and ports, so it does not touch a running stack. It needs only Python and Docker with Compose; clips are
scored by stack_client.py in a container. If the engine has its own network namespace, set STACK_PREFIX to the command
that enters it, for instance "nsenter --net=/run/netns/NAME".
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CLIENT = (ROOT / "docker" / "stack_client.py").read_bytes()
PROJECT = "motion-reward-stack-test"
WAIT_S = "300"
NUM_CLIPS = 4
NUM_FLOOD = 20  # more than one worker claims at once
BUFFERS, BUFFER_CLIPS, ROLLOUTS = 2, 2, 2
TRAIN_ARGS = (
    f"loop.num_buffers={BUFFERS} loop.buffer_clips={BUFFER_CLIPS} loop.num_rollouts={ROLLOUTS} "
    "loop.passes=1 refresh.enabled=true refresh.clips_per_step=2"
)
ANSWERS = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=30).status)"
CONNECTS = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 30); print('open')"
TRAINED = "import pathlib; print(*(p.relative_to('/runs') for p in pathlib.Path('/runs').rglob('*.safetensors')))"


class StackError(Exception):
    """The stack does not behave as it should."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Runs Docker Compose on this test's project."""

    environment: Mapping[str, str]
    prefix: tuple[str, ...]  # STACK_PREFIX: put before a command that connects to the published ports

    def compose(self, *arguments: str, stdin: bytes = b"", loud: bool = False) -> bytes:
        """Run `docker compose ARGUMENTS` and return its standard output.

        If `loud`, the output goes to standard error instead. Raises StackError if the command fails.
        """
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            stdout=sys.stderr if loud else subprocess.PIPE,
            env=self.environment,
            check=False,
        )
        if done.returncode:
            raise StackError(f"docker compose {shlex.join(arguments)} ended with {done.returncode}")
        return done.stdout or b""

    def command(self, *arguments: str) -> list[str]:
        """The command line of `docker compose ARGUMENTS` on this project."""
        return ["docker", "compose", "--project-directory", str(ROOT), "-p", PROJECT, *arguments]

    def up(self, workers: int) -> None:
        """Start the stack with this many workers and wait until it is healthy."""
        self.compose("up", "--detach", "--wait", "--wait-timeout", WAIT_S, "--scale", f"worker={workers}", loud=True)

    def client(self, *arguments: str) -> bytes:
        """Run a command of stack_client.py in the stack. Returns its standard output."""
        return self.compose(*self.client_arguments(*arguments), stdin=CLIENT)

    def told(self, *arguments: str) -> dict[str, Any]:
        """Run a command of stack_client.py that prints one line of JSON. Returns the parsed line."""
        return dict(json.loads(self.client(*arguments)))

    @staticmethod
    def client_arguments(*arguments: str) -> tuple[str, ...]:
        """The arguments of `docker compose` that run stack_client.py from standard input."""
        return "run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "server", "-", *arguments

    def reached(self, code: str, *arguments: str) -> str:
        """Run Python `code` where the published ports can be reached. Returns what it prints."""
        done = subprocess.run(
            [*self.prefix, sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=False
        )
        return done.stdout.strip()


@dataclass(kw_only=True)
class Report:
    """The content of the last line."""

    steps_s: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    failed: str = ""


def expect(truth: bool, otherwise: str) -> None:
    """Raises StackError with the message `otherwise` if `truth` is false."""
    if not truth:
        raise StackError(otherwise)


# --- the steps, in order ------------------------------------------------------------------------


def build(stack: Stack, report: Report) -> None:
    """Build both images."""
    stack.compose("--profile", "*", "build", loud=True)


def start(stack: Stack, report: Report) -> None:
    """Start with one worker. All are healthy, server and worker are no root and cannot write, Redis keeps its data."""
    stack.up(workers=1)
    for service in ("server", "worker"):
        user = stack.compose("exec", "-T", service, "id", "-u").strip()
        expect(user not in (b"", b"0"), f"{service} runs as {user!r}")
        touch = "touch /home/motion/x 2>/dev/null && echo written || true"
        written = stack.compose("exec", "-T", service, "sh", "-c", touch)
        expect(not written, f"{service} can write to its image")
    told = stack.compose("exec", "-T", "redis", "redis-cli", "--user", "motion", "info").split()
    expect(
        {b"aof_enabled:1", b"maxmemory_policy:noeviction"} <= set(told) and b"maxmemory:0" not in told,
        "Redis is not configured as expected: an append-only file, noeviction and a limit of memory",
    )


def ports(stack: Stack, report: Report) -> None:
    """HTTP and gRPC answer at their published addresses, which are on loopback."""
    http, grpc = (stack.compose("port", "server", port).decode().strip() for port in ("8000", "50051"))
    for door in (http, grpc):
        expect(door.startswith("127.0.0.1:"), f"a port is published at {door}; expected 127.0.0.1")
    expect(stack.reached(ANSWERS, f"http://{http}/readyz") == "200", f"http://{http}/readyz is not ready")
    expect(stack.reached(CONNECTS, *grpc.split(":")) == "open", f"nothing listens at {grpc}")


def doors(stack: Stack, report: Report) -> None:
    """A clip has the same reward over HTTP and gRPC. The reward is still there after Redis is killed and restarted."""
    scored = stack.told("doors")
    report.figures["combined"] = scored["combined"]["http"]
    time.sleep(2)  # appendfsync everysec: Redis writes to disk once a second
    stack.compose("kill", "redis")
    stack.up(workers=1)
    again = stack.told("job", scored["job_id"])
    expect(
        again["combined"] == scored["combined"]["grpc"], f"after its restart Redis has {again}, but was given {scored}"
    )


def scale(stack: Stack, report: Report) -> None:
    """Two workers share clips that are submitted at once."""
    stack.up(workers=2)
    *_, end = flood(stack)
    expect(end["outcomes"] == {"ok": NUM_FLOOD}, f"of {NUM_FLOOD} clips {end['outcomes']} came back")
    expect(len(end["workers"]) == 2, f"only {end['workers']} had jobs")


def kill(stack: Stack, report: Report) -> None:
    """A worker that holds jobs is killed. The other worker gets its jobs and none is lost; then the worker restarts."""
    killed, end = "", {}
    for told in flood(stack):
        end = told
        if not killed and len(told.get("held", ())) == 2:
            killed = min(told["held"]).partition("-")[0]  # a worker's id begins with its host's name
            report.figures["jobs_of_the_killed_worker"] = told["held"][min(told["held"])]
            subprocess.run(["docker", "kill", killed], env=stack.environment, check=True, stdout=subprocess.DEVNULL)
    expect(bool(killed), "the two workers never held jobs at the same time, so none was killed")
    expect(end["outcomes"] == {"ok": NUM_FLOOD}, f"of {NUM_FLOOD} clips {end['outcomes']} came back")
    report.figures["redelivered"] = stack.told("counts").get("redelivered", 0)
    expect(report.figures["redelivered"] > 0, "the killed worker's jobs were not delivered again")
    stack.up(workers=2)


def flood(stack: Stack) -> Iterator[dict[str, Any]]:
    """The JSON lines that the client prints while it scores NUM_FLOOD clips at once. The last has the outcomes."""
    command = stack.command(*stack.client_arguments("flood", str(NUM_FLOOD)))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=stack.environment) as process:
        assert process.stdin and process.stdout
        process.stdin.write(CLIENT)
        process.stdin.close()
        for line in process.stdout:
            yield json.loads(line)
    expect(process.returncode == 0, f"the client ended with {process.returncode}")


def train(stack: Stack, report: Report) -> None:
    """The trainer takes SHIFT steps on the toy model, with rewards and refreshes from the stack, and saves a LoRA."""
    with tarfile.open(fileobj=io.BytesIO(stack.client("clips", str(NUM_CLIPS)))) as archive:
        archive.extractall(stack.environment["TRAIN_DATA"], filter="data")
    before = stack.told("counts")
    # More threads do not help toy tensors, and on a busy machine they slow the run down.
    one_thread = ("-e", "OMP_NUM_THREADS=1")
    said = stack.compose("--profile", "train", "run", "--rm", "-T", *one_thread, "trainer").decode()
    expect(
        f"trained {BUFFERS * BUFFER_CLIPS} steps" in said,
        f"the trainer did not finish its steps; its output ends with: {said[-2000:]}",
    )
    run = ("--profile", "train", "run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "trainer", "-c", TRAINED)
    files = stack.compose(*run).decode().split()
    expect(any("lora" in file for file in files), f"no LoRA among {files}")
    after = stack.told("counts")
    gained = {name: after.get(name, 0) - before.get(name, 0) for name in ("ok", "refreshed")}
    expect(
        gained["ok"] >= BUFFERS * BUFFER_CLIPS * (1 + ROLLOUTS),
        f"only {gained['ok']} clips were scored for the trainer",
    )
    expect(gained["refreshed"] >= 1, "the discriminators were not refreshed")
    report.figures |= {
        "shift_steps": BUFFERS * BUFFER_CLIPS,
        "scored_for_shift": gained["ok"],
        "refreshes": gained["refreshed"],
    }


STEPS: tuple[Callable[[Stack, Report], None], ...] = (build, start, ports, doors, scale, kill, train)


def down(stack: Stack) -> None:
    """Remove the containers, networks and volumes of this project, and nothing else."""
    stack.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "60", loud=True)
    left = stack.compose("--profile", "*", "ps", "--all", "--quiet").decode().split()
    expect(not left, f"containers are left: {left}")


def run(stack: Stack, report: Report, *, keep: bool) -> None:
    """Run all steps, and always tear down (unless `keep`). A failure is noted in the report."""
    try:
        down(stack)
        for step in STEPS:
            print(f"--- {step.__name__}: {step.__doc__}", file=sys.stderr, flush=True)
            began = time.monotonic()
            try:
                step(stack, report)
            except Exception as error:
                report.failed = f"{step.__name__}: {error}"
                raise
            finally:
                report.steps_s[step.__name__] = round(time.monotonic() - began, 1)
    except (StackError, subprocess.CalledProcessError) as error:
        report.failed = report.failed or str(error)
        subprocess.run(stack.command("logs", "--tail", "60"), env=stack.environment, stdout=sys.stderr, check=False)
    finally:
        if not keep:
            down(stack)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--keep", action="store_true", help="do not remove the stack at the end, so that it can be inspected"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # raises SystemExit, so that the teardown runs
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the container's user must be able to read it
        environment = {
            **os.environ,
            "MOTION_REWARD_PROFILE": "embedded",
            "MOTION_REWARD_THREADS": "1",
            "WORKERS": "2",  # `compose run` starts this many; the steps before it pass --scale
            "HTTP_PUBLISH": "127.0.0.1:0",
            "GRPC_PUBLISH": "127.0.0.1:0",
            "TRAIN_DATA": folder,
            "TRAIN_CONFIG": "tiny",
            "TRAIN_RUN": "stack-test",
            "TRAIN_ARGS": TRAIN_ARGS,
        }
        prefix = tuple(shlex.split(os.environ.get("STACK_PREFIX", "")))
        run(Stack(environment=environment, prefix=prefix), report, keep=arguments.keep)
    told = {"stack_test": "failed" if report.failed else "ok", "steps_s": report.steps_s, **report.figures}
    print(json.dumps(told | ({"failed": report.failed} if report.failed else {})))
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
