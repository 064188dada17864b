"""Runs as a process of its own and decodes clips, so that a bad clip can hurt nobody else (children.py starts it).

    python -m reward_server.decoding.child SOCKET_FD MEMORY_MIB

It imports no torch, gives up files and network before it reads the first clip, and ends when its socket closes.
"""

from __future__ import annotations

import codecs
import gc
import importlib
import os
import pkgutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress

import av
import cv2
import PIL
from PIL import Image

from protos.error_codes import ErrorCode
from reward_server.decoding.decode import decode_payload
from reward_server.decoding.messages import (
    ANSWERS,
    MAX_MESSAGE_BYTES,
    REQUESTS,
    Answer,
    Request,
    answer_of,
    out_of_memory,
)
from reward_server.decoding.sandbox import NO_MEMORY, confine
from reward_server.errors import InvalidClip

READY = b"ready"
NOT_NEEDED = (
    "av.__main__",
    "PIL.__main__",
    "PIL.ImageTk",
    "PIL.ImageShow",
    "PIL.ImageGrab",
    "PIL.ImageQt",
    "PIL._tkinter_finder",
)
ENCODINGS = ("utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-32-le")  # what bytes may seem to be
MAX_TOLD = 4000  # characters of an error's message


def main(link_fd: int, memory_mib: int) -> None:
    """Answer requests until the socket closes."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)  # the worker drains; it closes the socket when it has finished
    cv2.setNumThreads(1)
    import_the_rest()
    gc.freeze()  # so that a collection after each clip looks at the clip's objects alone
    link = socket.socket(fileno=link_fd)
    confine(memory_mib)
    link.send(READY)
    while True:
        message, held, _, _ = socket.recv_fds(link, MAX_MESSAGE_BYTES, 1)
        if not message:
            return
        try:
            _answer(link, REQUESTS.validate_json(message), held[0], memory_mib)
        except MemoryError:  # not even enough for an answer
            os._exit(NO_MEMORY)
        gc.collect()  # frames can be held in reference cycles


def import_the_rest() -> None:
    """Import what libraries would import at their first use, because no file can be opened then."""
    Image.init()
    for library in (av, PIL):
        for module in pkgutil.walk_packages(library.__path__, f"{library.__name__}."):
            if module.name not in NOT_NEEDED:
                with suppress(ImportError):
                    importlib.import_module(module.name)
    importlib.import_module("numpy.ma")
    for name in ENCODINGS:
        codecs.lookup(name)


def _answer(link: socket.socket, request: Request, payload_fd: int, memory_mib: int) -> None:
    frames_fd: int | None = None
    try:
        with os.fdopen(payload_fd, "rb") as payload:
            clip = decode_payload(
                payload,
                request.media,
                request.sampling,
                request.limits,
                request.max_decode_s,
                threads=request.threads,
            )
            answer, frames_fd = answer_of(clip)
    except Exception as error:  # whatever a crafted file makes a library raise is that clip's answer
        answer = refusal(error, memory_mib)
    socket.send_fds(link, [ANSWERS.dump_json(answer)], [] if frames_fd is None else [frames_fd])
    if frames_fd is not None:
        os.close(frames_fd)


def refusal(error: Exception, memory_mib: int) -> Answer:
    """The answer for an error. Running out of memory may be the cause of another error."""
    if any(_is_memory(one) for one in causes(error)):
        return Answer(code=ErrorCode.DECODE_MEMORY, message=out_of_memory(memory_mib))
    if isinstance(error, InvalidClip):
        return Answer(code=error.code, message=str(error)[:MAX_TOLD])
    told = f"decoding failed with {type(error).__name__}: {error}"
    return Answer(code=ErrorCode.SCORING_FAILED, message=told[:MAX_TOLD])


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
