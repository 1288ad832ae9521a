"""Traces, received by a collector that speaks OTLP over HTTP."""

import http.server
import threading
from contextlib import contextmanager

import pytest
from http_server import OCTETS, serving, until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from vaegis.models.errors import Refusal
from vaegis.service.tracing import provider

X = bytes([100] * 16)


@contextmanager
def collector():
    """The address of a collector, and what it has received: a list of requests."""
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(raw)))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_request_is_traced_stage_by_stage(fill, tmp_path, monkeypatch):
    settings = fill(tmp_path / "home")
    with collector() as (address, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        with serving(settings) as client:
            sent = {"traceparent": f"00-{trace}-{parent}-01", "X-Request-ID": "line-3:42"}
            assert client.score("image", X * 3, OCTETS, headers=sent)[0] == 200
            assert client.score("nope", X, OCTETS)[0] == 404

        def spans():
            return [
                (span, {a.key: a.value for a in resource.resource.attributes})
                for _, request in received
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]

        until(lambda: len(spans()) >= 7)
        assert {path for path, _ in received} == {"/v1/traces"}
        ours = [span for span, _ in spans() if span.trace_id.hex() == trace]
        (whole,) = [s for s in ours if s.parent_span_id.hex() == parent]
        assert whole.name == "POST /v1/models/{model}/score"
        facts = {a.key: a.value for a in whole.attributes}
        assert facts["http.response.status_code"].int_value == 200 and facts["vaegis.samples"].int_value == 3
        assert facts["vaegis.model"].string_value == "image"
        assert facts["vaegis.request_id"].string_value == "line-3:42"
        stages = {s.name: s for s in ours if s.parent_span_id == whole.span_id}
        assert set(stages) == {"receive", "decode", "queue", "infer", "render"} and len(ours) == 6
        for s in stages.values():
            assert whole.start_time_unix_nano <= s.start_time_unix_nano <= s.end_time_unix_nano
            assert s.end_time_unix_nano <= whole.end_time_unix_nano + 1_000_000
        assert spans()[0][1]["service.name"].string_value == "vaegis"
        # Probes are not traced; another request is a trace of its own.
        assert {s.name for s, _ in spans() if s.trace_id.hex() != trace and not s.parent_span_id} == {
            "POST /v1/models/{model}/score"
        }


def test_traces_are_off_unless_the_environment_asks(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert provider("1") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    for name, value in (("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")):
        with monkeypatch.context() as only:
            only.setenv(name, value)
            assert provider("1") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(Refusal, match="'grpc'.*http/protobuf"):
        provider("1")
