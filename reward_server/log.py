"""Logs: for people on a terminal, JSON lines otherwise; request_id and job_id come along from the context.

Bind them with `structlog.contextvars.bound_contextvars(request_id=...)`. The standard library's loggers
(uvicorn, grpc, redis) go the same way.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor


def configure(level: str, *, stream: TextIO | None = None) -> None:
    """Send every log line at or above `level` ("debug" .. "error") to `stream`, stderr by default."""
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
    _send_to(target, level, shared, _for_people() if people else _for_programs())


def _for_people() -> list[Processor]:
    return [structlog.dev.ConsoleRenderer()]


def _for_programs() -> list[Processor]:
    return [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]


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
