"""Takes part in OpenTelemetry traces: spans, and the header `traceparent` (W3C) that hands a trace on.

OpenTelemetry is not imported here. A process that traces has imported it and set a tracer provider. In any other
process these functions look up one name and return, and no request carries a header.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

HEADER = "traceparent"
NAME = "motion_reward"  # of the instrumentation

Kind = Literal["internal", "client", "server", "consumer"]
Attributes = Mapping[str, str | int | float]


def is_on() -> bool:
    """Whether this process traces."""
    return _tracer() is not None


def traceparent() -> str:
    """The header that hands on the current span. Empty if nothing is traced."""
    return _header(sys.modules["opentelemetry.trace"].get_current_span()) if is_on() else ""


def headers() -> dict[str, str]:
    """The header of the current span for a request, or none."""
    header = traceparent()
    return {HEADER: header} if header else {}


@contextmanager
def span(
    name: str,
    kind: Kind = "internal",
    *,
    parent: str = "",
    current: bool = True,
    attributes: Attributes | None = None,
) -> Iterator[None]:
    """Trace what the block does. An exception that leaves it marks the span as failed.

    The span belongs to `parent`, a header that was received, or else to the current span. Within the block it is the
    current span itself, unless `current` is False, which asynchronous generators need.
    """
    tracer = _tracer()
    if tracer is None:
        yield
        return
    fields = {"context": _context(parent), "kind": _kind(kind), "attributes": attributes}
    if current:
        with tracer.start_as_current_span(name, **fields):
            yield
        return
    made = tracer.start_span(name, **fields)
    try:
        yield
    except Exception as error:
        made.record_exception(error)
        api = sys.modules["opentelemetry.trace"]
        made.set_status(api.Status(api.StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        raise
    finally:
        made.end()


@dataclass(frozen=True, kw_only=True)
class Past:
    """A span of a time that is over, in seconds since the epoch, with the spans of its parts."""

    name: str
    begin_s: float
    end_s: float
    kind: Kind = "internal"
    attributes: Attributes | None = None
    failure: str = ""  # if set, the span is marked as failed
    parts: tuple[Past, ...] = ()


def record(past: Past, parent: str) -> None:
    """Report a span and its parts. The span belongs to the header `parent`."""
    if (tracer := _tracer()) is not None:
        _record(tracer, past, _context(parent))


def _record(tracer: Any, past: Past, context: Any) -> None:
    api = sys.modules["opentelemetry.trace"]
    made = tracer.start_span(
        past.name,
        context=context,
        kind=_kind(past.kind),
        attributes=past.attributes,
        start_time=_nanoseconds(past.begin_s),
    )
    for part in past.parts:
        _record(tracer, part, api.set_span_in_context(made))
    if past.failure:
        made.set_status(api.Status(api.StatusCode.ERROR, past.failure))
    made.end(end_time=_nanoseconds(past.end_s))


def _tracer() -> Any:
    """The tracer of the provider that this process has set, or None."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if not hasattr(api, "get_tracer_provider"):  # not imported, or another thread is at it
        return None
    provider = api.get_tracer_provider()
    unset = isinstance(provider, (api.ProxyTracerProvider, api.NoOpTracerProvider))
    return None if unset else provider.get_tracer(NAME)


def _kind(kind: Kind) -> Any:
    return sys.modules["opentelemetry.trace"].SpanKind[kind.upper()]


def _context(parent: str) -> Any:
    """The context of a received header. None, the current context, without one or for a header that is malformed."""
    if not parent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 - it is on

    return TraceContextTextMapPropagator().extract({HEADER: parent})


def _header(current: Any) -> str:
    context = current.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _nanoseconds(time_s: float) -> int:
    return round(time_s * 1e9)
