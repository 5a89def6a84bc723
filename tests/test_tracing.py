"""Traces, as a collector receives them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import Serve
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from operations import CHANGE, create, new_key
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

USER = "user-that-no-trace-names"
QUERY = "query Where($id: ID!) { user(id: $id) { segments { slug } } }"


@dataclass
class Collector:
    """Takes POST /v1/traces."""

    received: list[ExportTraceServiceRequest] = field(default_factory=list)
    raw: bytes = b""
    url: str = ""

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.received
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    @property
    def resource(self) -> dict[str, str]:
        return values(self.received[0].resource_spans[0].resource.attributes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Collector"]:
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                assert head.startswith(b"post /v1/traces ")
                (length,) = [int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
                body = await reader.readexactly(length)
                self.received.append(ExportTraceServiceRequest.FromString(body))
                self.raw += body
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except EOFError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    async with Collector().running() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        yield running


def values(attributes: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in attributes}


async def test_a_request_is_one_tree_in_which_nobody_is_named(serve: Serve, collector: Collector) -> None:
    key = new_key()
    async with serve(tracing="otlp") as client:
        await create(client, "A")
        await client.ask(CHANGE, input={"userId": USER, "add": ["A"]}, key=key)
        assert await client.ask(QUERY, id=USER) == {"user": {"segments": [{"slug": "A"}]}}
        await client.http.get("/graphql", params={"query": QUERY, "variables": f'{{"id": "{USER}"}}'})
        await client.http.get("/files/00000000-0000-0000-0000-000000000000?signature=of-a-link")
        await client.http.get("/healthz")
        await client.http.post("/graphql", json={"query": QUERY}, headers={"Authorization": "Bearer of-a-caller"})
    assert collector.resource["service.name"] == "segmentql"
    assert collector.resource["service.version"]
    spans = collector.spans
    requests = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    # Every other span belongs to one of these: no look whether Redis is there is a trace of its own.
    assert {span.trace_id for span in spans} == {span.trace_id for span in requests}
    assert [span.parent_span_id for span in requests] == [b""] * len(requests)
    named = [span.name for span in requests]
    assert named[:3] == ["mutation unnamed", "mutation unnamed", "query Where"]
    assert not any("healthz" in name for name in named)
    change, read = requests[1:3]
    below = [span for span in spans if span.trace_id == change.trace_id and span is not change]
    assert {span.parent_span_id for span in below} == {change.span_id}
    told = [(values(span.attributes)["db.system"], span.name) for span in below]
    assert ("redis", "UNLINK") in told
    assert ("postgresql", "SELECT") in told
    attributes = values(read.attributes)
    assert attributes["graphql.operation.name"] == "Where"
    assert len(attributes["segmentql.request_id"]) == 16
    for secret in (USER, key, "of-a-link", "of-a-caller", "variables"):
        assert secret.encode() not in collector.raw


async def test_a_failure_is_told_without_its_text(serve: Serve, collector: Collector, engine: AsyncEngine) -> None:
    async with serve(tracing="otlp") as client:
        await create(client, "A")
        async with engine.begin() as tx:
            await tx.execute(text(f"ALTER TABLE memberships ADD CONSTRAINT wrong CHECK (user_id <> '{USER}')"))
        try:
            answer = await client.post(CHANGE, {"input": {"userId": USER, "add": ["A"]}, "key": new_key()})
        finally:
            async with engine.begin() as tx:
                await tx.execute(text("ALTER TABLE memberships DROP CONSTRAINT wrong"))
    assert answer["errors"][0]["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
    assert [span.status.message for span in collector.spans if span.status.code == Status.STATUS_CODE_ERROR] == [""]
    assert USER.encode() not in collector.raw


async def test_a_collector_that_is_away_keeps_nobody_waiting(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{unused_port}")
    began = asyncio.get_running_loop().time()
    async with serve(tracing="otlp") as client:
        assert await client.ask(QUERY, id=7) == {"user": {"segments": []}}
    assert asyncio.get_running_loop().time() - began < 8
