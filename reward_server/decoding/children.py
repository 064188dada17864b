"""Decodes clips in a small pool of child processes (child.py), each with limits on memory, time and what it may do.

A child that dies, takes too long or too much memory costs only the clip that it decoded: an InvalidClip at once, and
a new child takes its place. Frames come back in shared memory. Linux only: elsewhere use `decode` itself.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress

from pydantic import ValidationError

from protos.types import Limits, Submission
from reward_server.decoding.decode import DecodedClip
from reward_server.decoding.messages import (
    ANSWERS,
    MAX_MESSAGE_BYTES,
    REQUESTS,
    Answer,
    Request,
    decoded_clip,
    out_of_memory,
    shared,
)
from reward_server.decoding.refusals import LEAVES
from reward_server.decoding.sampling import Sampling
from reward_server.decoding.sandbox import NO_MEMORY, clean_environment
from reward_server.errors import DecodeMemory, DecoderCrashed, DecodeTooSlow, InvalidClip, ScoringFailed
from reward_server.settings import Settings

AVAILABLE = sys.platform == "linux"
START_S = 120.0  # a loaded machine may take long to import
GRACE_S = 2.0  # the reader itself gives up at max_decode_s, with a better message; after this it is killed
INVALID = LEAVES | {"decode_memory": DecodeMemory}


def decode_pool(settings: Settings, size: int) -> DecodePool | None:
    """A pool of at most `size` children, or None if clips are decoded in this process."""
    if not (settings.decode_isolation and AVAILABLE):
        return None
    return DecodePool(size=size, memory_mib=settings.decode_memory_mib)


class DecodePool:
    """At most `size` children at once, started on demand and kept. Thread-safe. `close` ends them, as does the end of
    the pool or the process."""

    def __init__(self, *, size: int, memory_mib: int) -> None:
        self._memory_mib = memory_mib
        self._slots, self._lock = threading.Semaphore(size), threading.Lock()
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()
        self.close = weakref.finalize(self, _end_all, self._children)

    def start(self, num: int) -> None:
        """Start `num` children ahead of the first clips. Does not wait for them."""
        for _ in range(num):
            self._keep(self._new())

    def pids(self) -> list[int]:
        """The process ids of the children."""
        return sorted(child.process.pid for child in self._children)

    def decode(
        self, submission: Submission, sampling: Sampling, limits: Limits, max_decode_s: float, *, threads: int = 1
    ) -> DecodedClip:
        """As `decode`, and raises DecoderCrashed or DecodeMemory too. Raises ScoringFailed if no child can start."""
        request = Request(
            media=submission.media, sampling=sampling, limits=limits, max_decode_s=max_decode_s, threads=threads
        )
        with self._slots:
            child = self._take()
            try:
                return child.decode(request, submission.payload)
            finally:
                self._keep(child if child.usable else self._instead_of(child))

    def _take(self) -> _Child:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        if child and child.process.poll() is not None:  # it died while idle, which is no clip's fault
            return self._instead_of(child)
        return child or self._new()

    def _keep(self, child: _Child) -> None:
        with self._lock:
            self._idle.append(child)

    def _new(self) -> _Child:
        child = _Child(self._memory_mib)
        with self._lock:
            self._children.add(child)
        return child

    def _instead_of(self, child: _Child) -> _Child:
        child.end()
        with self._lock:
            self._children.discard(child)
        return self._new()


class _Child:
    """One child process and the socket to it."""

    def __init__(self, memory_mib: int) -> None:
        self._memory_mib, self._ready, self.usable = memory_mib, False, True
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "reward_server.decoding.child", str(theirs.fileno()), str(memory_mib)]
        with theirs:
            self.process = subprocess.Popen(
                command,
                env=clean_environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def decode(self, request: Request, payload: bytes) -> DecodedClip:
        """Send one clip and wait for its frames. `usable` says whether the child can decode another one."""
        self._await_start()
        self.usable = False  # until it has answered as it should
        answer, held = self._ask(request, payload)
        try:
            if answer.code:
                self.usable = answer.code != DecodeMemory.code
                raise INVALID.get(answer.code, ScoringFailed)(answer.message)
            clip = decoded_clip(answer, held[0], request.sampling)
        except (ValueError, IndexError, OSError) as error:
            raise self._crashed(f"gave a wrong answer ({error})") from error
        finally:
            for one in held:
                os.close(one)
        self.usable = True
        return clip

    def end(self) -> None:
        """Kill the process and free what it held."""
        self._link.close()
        self.process.kill()
        self.process.wait()

    def _await_start(self) -> None:
        if self._ready:
            return
        self._link.settimeout(START_S)
        try:
            self._ready = bool(self._link.recv(MAX_MESSAGE_BYTES))
        except OSError:
            self._ready = False
        if not self._ready:
            self.usable = False
            raise ScoringFailed(
                f"a decode child could not start within {START_S:g} s; run `python -m reward_server.decoding.child 0 "
                f"{self._memory_mib}` to see why, or set MOTION_REWARD_DECODE_ISOLATION=false"
            )

    def _ask(self, request: Request, payload: bytes) -> tuple[Answer, list[int]]:
        limit_s = request.max_decode_s + GRACE_S
        self._limit_cpu(limit_s * request.threads)
        self._link.settimeout(limit_s)
        sent = shared([payload])
        try:
            socket.send_fds(self._link, [REQUESTS.dump_json(request)], [sent])
            message, held, _, _ = socket.recv_fds(self._link, MAX_MESSAGE_BYTES, 1)
        except TimeoutError as error:
            raise _too_slow(request) from error
        except OSError:
            message, held = b"", []
        finally:
            os.close(sent)
        if not message:
            raise self._died(request)
        try:
            return ANSWERS.validate_json(message), held
        except ValidationError as error:
            for one in held:
                os.close(one)
            raise self._crashed("gave an answer that cannot be read") from error

    def _limit_cpu(self, more_s: float) -> None:
        """Allow the child so much more processor time. The parent sets it: the child itself may not."""
        clock = (~self.process.pid << 3) | 2  # CPU time of another process, see clock_getcpuclockid(3)
        with suppress(OSError):  # it is dead, or not ours to limit: the wall clock still ends it
            used_s = time.clock_gettime(clock)
            limits = (math.ceil(used_s + more_s) + 1, resource.RLIM_INFINITY)
            resource.prlimit(self.process.pid, resource.RLIMIT_CPU, limits)

    def _died(self, request: Request) -> InvalidClip:
        status = self.process.wait()
        if status == -signal.SIGXCPU:
            return _too_slow(request)
        if status == NO_MEMORY:
            return DecodeMemory(out_of_memory(self._memory_mib))
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return self._crashed(f"ended with {name}")

    def _crashed(self, how: str) -> DecoderCrashed:
        return DecoderCrashed(
            f"the process that decoded this clip {how}: the file breaks the decoder; re-encode it (ffmpeg -i IN -c:v "
            "libx264 OUT.mp4), and report the file if a player shows it"
        )


def _too_slow(request: Request) -> DecodeTooSlow:
    return DecodeTooSlow(
        f"decoding was stopped after {request.max_decode_s + GRACE_S:g} s, over the limit of {request.max_decode_s:g} s"
        "; send a smaller or shorter clip, use a faster codec (h264) or raise max_decode_s (on the server "
        "MOTION_REWARD_MAX_DECODE_S)"
    )


def _end_all(children: set[_Child]) -> None:
    for child in children:
        child.end()
