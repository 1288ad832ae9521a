"""OpenTelemetry traces: where the time of a request went.

Off unless the standard settings name a collector (`OTEL_EXPORTER_OTLP_ENDPOINT` or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`); the extra `otel` brings what sends to it. A request is one span, continued from
the caller's `traceparent`, with a span within for each stage: receive, decode, queue, infer, render.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vaegis.models.errors import Refusal

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@dataclass(frozen=True)
class Trace:
    """The request under way: its stages are spans within the parent."""

    tracer: Tracer
    parent: Context


CURRENT: ContextVar[Trace | None] = ContextVar("vaegis_trace", default=None)
_off: AbstractContextManager[None] = nullcontext()


def provider(version: str) -> TracerProvider | None:
    """What makes and sends spans, as the environment asks for; None where it does not.

    Raises:
        Refusal: it asks for what is not installed, or for a protocol that is not spoken.
    """
    named = next((e for e in ENDPOINTS if os.environ.get(e)), None)
    if named is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        raise Refusal(
            f"Traces cannot be sent by {protocol[:40]!r}; set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf, and "
            f"{named} to the collector's HTTP port (4318 by default)."
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise Refusal(
            f"{named} is set, but what sends traces is not installed. Install it with `pip install 'vaegis[otel]'`, or "
            "unset the variable."
        ) from error
    attributes = {"service.version": version}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = "vaegis"
    spans = TracerProvider(resource=Resource.create(attributes))
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return spans


def stage(name: str) -> AbstractContextManager[None]:
    """Around what shall be a span of its own, where the request is traced."""
    current = CURRENT.get()
    return _off if current is None else _stage(current, name)


@contextmanager
def _stage(current: Trace, name: str) -> Iterator[None]:
    with current.tracer.start_as_current_span(name, current.parent):
        yield


def record(name: str, began: float, ended: float) -> None:
    """Adds a span of what has happened already: the seconds ago that it began and ended."""
    current = CURRENT.get()
    if current is None:
        return
    now = time.time_ns()
    span = current.tracer.start_span(name, current.parent, start_time=now - int(began * 1e9))
    span.end(now - int(ended * 1e9))
