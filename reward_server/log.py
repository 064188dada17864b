"""Configures logging: readable lines on a terminal, JSON lines otherwise.

Bind request_id and job_id with `structlog.contextvars.bound_contextvars(request_id=...)`; every line logged in
that context then carries them. Lines from standard-library loggers (uvicorn, grpc, redis) take the same format.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor


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
    for_people: list[Processor] = [structlog.dev.ConsoleRenderer()]
    for_programs: list[Processor] = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    _send_to(target, level, shared, for_people if people else for_programs)


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
