"""Configures logging: readable lines on a terminal, JSON lines otherwise.

Bind request_id and job_id with `structlog.contextvars.bound_contextvars(request_id=...)`; every line logged in
that context then carries them. Lines from standard-library loggers (uvicorn, grpc, redis) take the same format.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import TextIO

import structlog
import structlog.dev
import structlog.tracebacks
from structlog.typing import EventDict, ExcInfo, Processor

MAX_FRAMES = 30  # of each traceback
MAX_ERRORS = 8  # of a chain of errors, the latest
MAX_CHARACTERS = 4000  # of the text of an error


def configure(level: str, *, stream: TextIO | None = None) -> None:
    """Send log lines at or above `level` ("debug", "info", "warning" or "error") to `stream`, by default stderr."""
    target = stream or sys.stderr
    people = target.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if people else "iso", utc=not people),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    # Local variables may hold clips and secrets, and a long chain or text of errors would fill the log.
    transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=MAX_FRAMES)
    for_people: list[Processor] = [
        structlog.dev.ConsoleRenderer(exception_formatter=_plain_traceback),
    ]
    for_programs: list[Processor] = [
        structlog.processors.ExceptionRenderer(transformer),
        _bounded,
        structlog.processors.JSONRenderer(),
    ]
    _send_to(target, level, shared, for_people if people else for_programs)


def _plain_traceback(stream: TextIO, raised: ExcInfo) -> None:
    """Write the last lines of a traceback for people."""
    lines = "".join(traceback.format_exception(*raised, limit=-MAX_FRAMES)).splitlines()
    most = 2 * MAX_FRAMES + MAX_ERRORS
    shortened = [f"... {len(lines) - most} lines ..."] if len(lines) > most else []
    stream.write("\n" + "\n".join(line[:MAX_CHARACTERS] for line in [*shortened, *lines[-most:]]))


def _bounded(logger: object, method: str, event: EventDict) -> EventDict:
    """Shorten the chain of errors of a line, and their texts. The latest error comes first."""
    if isinstance(chain := event.get("exception"), list):
        del chain[MAX_ERRORS:]
        for error in chain:
            error["exc_value"] = error["exc_value"][:MAX_CHARACTERS]
    return event


def _send_to(target: TextIO, level: str, shared: list[Processor], last: list[Processor]) -> None:
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
