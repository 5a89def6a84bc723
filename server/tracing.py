"""Traces by OpenTelemetry: a request, the statements and the commands that it led to.

No trace says which users it was about: statements come without their parameters, commands without their keys, URLs
without what follows their path, and failures without their messages. Where traces are sent to, and how many, is decided
by the variables that all of OpenTelemetry's exporters know (`OTEL_…`).
"""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, Span, SpanKind, Tracer, TraceState, get_current_span
from opentelemetry.trace.status import Status, StatusCode
from opentelemetry.util.types import Attributes
from redis.exceptions import NoScriptError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db.bare import Pool
from db.pipeline import Pipeline
from resolvers import facts

log = logging.getLogger(__name__)
# How long the end of the process waits for the last traces to be taken.
FLUSH_SECONDS = 3
# Asked every few seconds by whoever watches over us.
UNTRACED = frozenset({"/healthz", "/readyz"})
QUERY = "segmentql.query_string"


class Traces:
    """Traces of one application, from its making until `finish`."""

    def __init__(self) -> None:
        resource = Resource.create({SERVICE_NAME: "segmentql", SERVICE_VERSION: version("segmentql")})
        self.provider = TracerProvider(resource=resource)
        # What the environment says of sampling has been read by then.
        self.provider.sampler = OfRequests(self.provider.sampler)
        self.provider.add_span_processor(BatchSpanProcessor(Discreet(OTLPSpanExporter())))

    @property
    def middleware(self) -> Middleware:
        return Middleware(Traced, traces=self)

    @asynccontextmanager
    async def following(self, redis: Pipeline, *pools: AsyncEngine | Pool) -> AsyncIterator[None]:
        """Trace what is sent over these pools, and to Redis, for as long as the block lasts."""
        statements = SQLAlchemyInstrumentor()
        statements.instrument(
            engines=[pool.sync_engine for pool in pools if isinstance(pool, AsyncEngine)],
            tracer_provider=self.provider,
            meter_provider=NoOpMeterProvider(),
            skip_dep_check=True,  # it does not know yet that it works with SQLAlchemy 2.1
        )
        tracer = self.provider.get_tracer("segmentql")
        for pool in pools:
            if isinstance(pool, Pool):
                pool.following = partial(_statement, tracer)
        redis.following = partial(_command, tracer)
        try:
            yield
        finally:
            statements.uninstrument()

    def finish(self) -> None:
        """Send what was not sent yet, if that is possible in a moment."""
        # It waits longer than that for a collector that is away, and would keep the process from ending.
        sending = threading.Thread(target=self.provider.shutdown, daemon=True, name="traces")
        sending.start()
        sending.join(FLUSH_SECONDS)
        if sending.is_alive():
            log.warning("the last traces could not be sent")


def _statement(tracer: Tracer, statement: str) -> AbstractContextManager[Span]:
    """A span as SQLAlchemy's instrumentor makes them."""
    attributes = {"db.system": "postgresql", "db.statement": statement}
    return tracer.start_as_current_span(statement.split(maxsplit=1)[0], kind=SpanKind.CLIENT, attributes=attributes)


def _command(tracer: Tracer, name: str) -> Callable[[object], None]:
    """A span of a command to Redis, which ends when it is told what came of it."""
    span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes={"db.system": "redis"})

    def answered(reply: object) -> None:
        # A script that Redis does not know yet is sent to it: nothing went wrong.
        if isinstance(reply, Exception) and not isinstance(reply, NoScriptError):
            span.set_status(StatusCode.ERROR)
        span.end()

    return answered


class Traced:
    """A span for every request but those for health, named after the GraphQL operation."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self.app = app
        self._traced = OpenTelemetryMiddleware(
            self._named,
            tracer_provider=traces.provider,
            meter_provider=NoOpMeterProvider(),
            exclude_spans=["receive", "send"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self.app(scope, receive, send)
            return
        # A link's signature, or a query with its variables.
        await self._traced({**scope, "query_string": b"", QUERY: scope["query_string"]}, receive, send)

    async def _named(self, scope: Scope, receive: Receive, send: Send) -> None:
        span = get_current_span()

        async def naming(message: Message) -> None:
            noted = facts.current()
            if message["type"] == "http.response.start" and noted.kind is not None:
                span.update_name(f"{noted.kind} {noted.operation or 'unnamed'}")
                span.set_attribute("graphql.operation.type", noted.kind)
                span.set_attribute("graphql.operation.name", noted.operation or "")
                span.set_attribute("graphql.document.hash", noted.document or "")
            if noted.request_id is not None:
                span.set_attribute("segmentql.request_id", noted.request_id)
            await send(message)

        await self.app({**scope, "query_string": scope[QUERY]}, receive, naming)


class OfRequests(Sampler):
    """Samples as the environment says, and only what belongs to a request: not every look whether Redis is there."""

    def __init__(self, requests: Sampler) -> None:
        self._requests = requests

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if kind is not SpanKind.SERVER and not get_current_span(parent_context).get_span_context().is_valid:
            return SamplingResult(Decision.DROP)
        return self._requests.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"OfRequests({self._requests.get_description()})"


class Discreet(SpanExporter):
    """Sends spans without the texts of failures: PostgreSQL's say which row it was."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export([_without_texts(span) for span in spans])

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _without_texts(span: ReadableSpan) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
