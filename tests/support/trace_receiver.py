"""A collector of traces: OTLP over HTTP."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from tests.support.nix import wait_until
from tests.support.server import HOST
from tests.support.web_server import serving


@dataclass
class TraceReceiver:
    """The traces received so far."""

    endpoint: str = ""
    received: list[ResourceSpans] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        return [span for resource in self.received for scope in resource.scope_spans for span in scope.spans]

    def wait_for(self, name: str) -> Span:
        """Wait for a span and return it; its children have been sent before it."""
        wait_until(lambda: any(span.name == name for span in self.spans), f"the span {name!r} is received")
        return next(span for span in self.spans if span.name == name)


def attributes(span: Span) -> dict[str, str | int]:
    """Return the attributes of a span by name."""
    return {
        item.key: item.value.int_value if item.value.HasField("int_value") else item.value.string_value
        for item in span.attributes
    }


@contextmanager
def trace_receiver() -> Iterator[TraceReceiver]:
    """Receive traces on a free port of the loopback interface."""
    receiver = TraceReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            assert self.headers["content-type"] == "application/x-protobuf"
            receiver.received.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as port:
        receiver.endpoint = f"http://{HOST}:{port}"
        yield receiver
