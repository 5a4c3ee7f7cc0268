"""A collector of OpenTelemetry's traces over HTTP on 127.0.0.1."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    """`received` holds what came to /v1/traces, one request after the other."""

    url: str = ""
    received: list[ExportTraceServiceRequest] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        resources = [resource for request in self.received for resource in request.resource_spans]
        return [
            span for resource in resources for scope in resource.scope_spans for span in scope.spans
        ]

    @property
    def services(self) -> set[str]:
        resources = [resource for request in self.received for resource in request.resource_spans]
        attributes = [
            attribute for resource in resources for attribute in resource.resource.attributes
        ]
        return {
            attribute.value.string_value
            for attribute in attributes
            if attribute.key == "service.name"
        }


@contextmanager
def running_collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                collector.received.append(ExportTraceServiceRequest.FromString(content))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not in the output of tests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
