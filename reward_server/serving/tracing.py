"""Exports this process's spans with OpenTelemetry, if settings.tracing asks for it. Otherwise nothing is imported."""

from __future__ import annotations

from reward_server.errors import NotReady
from reward_server.settings import Settings


def start_tracing(settings: Settings, service: str) -> None:
    """Set the process's tracer provider. The variables OTEL_... of the environment say where spans go.

    Spans go out over HTTP, by default to localhost:4318, in a thread of their own. Raises NotReady if the packages of
    the extra `tracing` are not installed.
    """
    if not settings.tracing:
        return
    try:
        from opentelemetry import trace  # noqa: PLC0415 - only a process that traces needs them
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise NotReady(
            f"MOTION_REWARD_TRACING is on, but {error.name} is not installed; "
            "pip install 'motion-reward[server,tracing]', or turn it off"
        ) from error
    named = Resource.create({SERVICE_NAME: service}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
