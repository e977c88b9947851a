"""Traces: one for each request, with the stages of its build. Needs the extra ``otel``.

OpenTelemetry's own variables configure the exporter and the sampling.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from typing import Any

import requests
from opentelemetry import context as active_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from nixery import __version__
from nixery.builds.events import Build, BuildEvent, Failed, Joined, Reused, Stored
from nixery.plain_text import escaped
from nixery.telemetry.stages import BuildEnd, StagedBuild

# Seconds to send the last spans. A container runtime grants ten to stop, of which nine may have passed.
_FLUSH_TIMEOUT = 0.5

_SERVER_ERROR = 500

# Bytes of a receiver's answer that are read; a real one has a few, or an error message.
_LARGEST_ANSWER = 64 * 1024


class _BoundedAdapter(requests.adapters.HTTPAdapter):
    """Reads the beginning of each answer, undecoded: a receiver could fill the server's memory otherwise."""

    def send(self, *arguments: Any, **options: Any) -> requests.Response:  # noqa: ANN401 -- those of requests
        answer = super().send(*arguments, **options)
        try:
            content = answer.raw.read(_LARGEST_ANSWER, decode_content=False)
        finally:
            # The connection is used again only if the answer was read to its end.
            answer.raw.close()
        answer.raw = io.BytesIO(content)
        return answer


def _bounded_session() -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _BoundedAdapter())
    return session


class RequestSpan:
    """The span of a request."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self, status: int, served: int) -> None:
        """End the span with the answer."""
        self._span.set_attribute("http.response.status_code", status)
        self._span.set_attribute("http.response.body.size", served)
        if status >= _SERVER_ERROR:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class Traces:
    """Sends traces in a background thread; a ``BuildObserver`` and a ``StageListener``.

    Args:
        service: name of the service, unless ``OTEL_SERVICE_NAME`` is set.
    """

    def __init__(self, service: str = "nixery") -> None:
        # create() reads the environment; its attributes take precedence if they are merged last.
        given = Resource({"service.name": service, "service.version": __version__})
        environment = Resource.create()
        named = not str(environment.attributes.get("service.name", "")).startswith("unknown_service")
        resource = given.merge(environment) if named else environment.merge(given)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(session=_bounded_session())))
        self._tracer = self._provider.get_tracer("nixery", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._builds: dict[StagedBuild, tuple[Span, Span]] = {}

    def begin(
        self, request_id: str, method: str, route: str, path: str, headers: Mapping[str, str]
    ) -> RequestSpan:
        """Begin the trace of a request, or continue the client's."""
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "http.route": route,
                "url.path": path,
                "user_agent.original": headers.get("user-agent", ""),
                "nixery.request_id": request_id,
            },
        )
        # Applies to this task and to the builds that it starts.
        active_context.attach(trace.set_span_in_context(span))
        return RequestSpan(span)

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``BuildObserver.observe``."""
        if isinstance(event, Joined):
            span = trace.get_current_span()
            span.set_attribute("nixery.build_request_id", event.first)
            span.set_attribute("nixery.build_id", build.id)

    def stage_began(self, build: StagedBuild) -> None:
        """See ``StageListener.stage_began``."""
        whole = self._builds[build][0] if build in self._builds else self._begin(build)
        stage = self._tracer.start_span(build.stage.value, context=trace.set_span_in_context(whole))
        self._builds[build] = (whole, stage)

    def stage_ended(self, build: StagedBuild, seconds: float) -> None:  # noqa: ARG002 -- spans have their own clock
        """See ``StageListener.stage_ended``."""
        self._builds[build][1].end()

    def build_ended(self, build: StagedBuild | None, end: BuildEnd) -> None:
        """See ``StageListener.build_ended``."""
        if build is None:
            return
        span, _ = self._builds.pop(build)
        match end:
            case Stored(manifest) | Reused(manifest):
                span.set_attribute("nixery.manifest", str(manifest))
            case Failed(error):
                span.set_status(Status(StatusCode.ERROR, escaped(str(error))))
            case None:
                span.set_status(Status(StatusCode.ERROR, "cancelled"))
        span.end()

    def _begin(self, build: StagedBuild) -> Span:
        return self._tracer.start_span(
            "build",
            attributes={
                "nixery.build_id": build.build.id,
                "nixery.image": "/".join(build.build.request.requested),
                "nixery.platform": str(build.build.request.platform),
            },
        )

    def close(self) -> None:
        """Send the remaining spans, within half a second."""
        # The library would wait half a minute for a receiver that does not answer.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(_FLUSH_TIMEOUT)
