"""What Prometheus is told, and that the dashboard and the manual speak of nothing else."""

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Serve
from operations import CHANGE, CREATE, MEMBERSHIPS, SEGMENTS, create, new_key
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from server import metrics
from server.graphql import GraphQLView

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"\bsegmentql_[a-z_]+")
# The library's own, of the process.
PROCESS = re.compile(r"\bprocess_[a-z_]+")
# How Prometheus calls the parts of a histogram, and what a counter is called when it is described.
PARTS = ("_bucket", "_sum", "_count")


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Change:
    """How much a sample has grown since it was looked at: the registry is that of the whole test run."""

    def __init__(self, name: str, **labels: str) -> None:
        self._name, self._labels = name, labels
        self._before = value(name, **labels)

    @property
    def by(self) -> float:
        return value(self._name, **self._labels) - self._before


async def test_operations_are_counted_by_name_type_and_code(serve: Serve) -> None:
    fine = Change("segmentql_operations_total", operation="Named", type="query", code="OK")
    slow = Change("segmentql_operation_duration_seconds_count", operation="Named", type="query")
    wrong = Change("segmentql_operations_total", operation="", type="none", code="GRAPHQL_PARSE_FAILED")
    refused = Change("segmentql_operations_total", operation="Twice", type="mutation", code="SEGMENT_EXISTS")
    not_json = Change("segmentql_operations_total", operation="", type="none", code="BAD_USER_INPUT")
    posted = Change("segmentql_http_requests_total", route="/graphql", method="POST", status="200")
    strange = Change("segmentql_http_requests_total", route="other", method="other", status="404")
    async with serve() as client:
        for _ in range(2):
            await client.ask("query Named($id: ID!) { user(id: $id) { segments { slug } } }", id=7)
        await client.post("{")
        await create(client, "A")
        await client.post(CREATE.replace("mutation", "mutation Twice", 1), {"slug": "A", "key": new_key()})
        assert (await client.http.post("/graphql", content=b"not JSON")).status_code == 415
        assert (await client.http.request("PATCH", "/somewhere")).status_code == 404
        assert value("segmentql_http_requests_open") == 0
    assert (fine.by, slow.by, wrong.by, refused.by, not_json.by) == (2, 2, 1, 1, 1)
    assert (posted.by, strange.by) == (5, 1)


async def test_what_nobody_has_expected_is_counted_as_a_failure(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Change("segmentql_operations_total", operation="Named", type="query", code="INTERNAL_SERVER_ERROR")
    early = Change("segmentql_operations_total", operation="", type="none", code="INTERNAL_SERVER_ERROR")
    fine = Change("segmentql_operations_total", operation="Named", type="query", code="OK")

    def fails(*_: object) -> None:
        raise RuntimeError

    async with serve(fast_path="off") as client:
        for name in ("encode_json", "parse_json"):
            monkeypatch.setattr(GraphQLView, name, fails)
            assert (await client.http.post("/graphql", json={"query": "query Named { __typename }"})).status_code == 500
    assert (known.by, early.by, fine.by) == (1, 1, 0)


async def test_callers_do_not_decide_how_many_series_there_are(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_names", metrics._Names())
    monkeypatch.setattr(metrics, "NAMES", 3)
    other = Change("segmentql_operations_total", operation="other", type="query", code="OK")
    async with serve() as client:
        for number in range(6):
            await client.ask(f"query Name{number} {{ __typename }}")
        assert other.by == 3
        await client.ask("query Name1 { __typename }")
        await client.ask(f"query {'N' * 500} {{ __typename }}")
    assert other.by == 4
    # What is not valid is not a name.
    assert b"N" * 65 not in generate_latest()


async def test_the_cache_is_counted(serve: Serve, redis: Redis) -> None:
    hits, misses, bypasses = (
        Change("segmentql_cache_lookups_total", result=result) for result in ("hit", "miss", "bypass")
    )
    fills, left = Change("segmentql_cache_fills_total"), Change("segmentql_redis_left_total")
    # On a busy machine Redis may take longer than others would wait for it.
    async with serve(redis_budget_ms=5_000) as client:
        await client.ask(SEGMENTS, id=7)
        assert value("segmentql_redis_available") == 1
        async with asyncio.timeout(5):
            while fills.by == 0:  # it is stored after the answer
                await asyncio.sleep(0.01)
        await client.ask(SEGMENTS, id=7)
        await client.ask(SEGMENTS, id=7, freshness="LATEST")
        await client.ask('{ users(ids: ["7", "8"]) { segments { slug } } }')
    assert (hits.by, misses.by, bypasses.by, left.by) == (2, 2, 1, 0)
    async with serve(redis_url="redis://127.0.0.1:1") as client:
        await client.ask(SEGMENTS, id=7)
        assert value("segmentql_redis_available") == 0
    assert (hits.by, misses.by) == (2, 3)


async def test_refusals_and_replays_of_mutations_are_counted(serve: Serve) -> None:
    replays = Change("segmentql_mutation_replays_total", mutation="changeUserSegments")
    reused = Change("segmentql_mutation_refusals_total", code="IDEMPOTENCY_KEY_REUSED")
    key = new_key()
    async with serve() as client:
        await create(client, "A")
        for users in (7, 7, 8):
            await client.ask(CHANGE, input={"userId": users, "add": ["A"]}, key=key)
    assert (replays.by, reused.by) == (1, 1)


async def test_pools_show_who_works_and_who_waits(serve: Serve, engine: AsyncEngine) -> None:
    statements = Change("segmentql_statements_total", pool="memberships")
    async with serve(read_pool_size=3) as client:
        await client.ask("{ __typename }")  # it has started
        # One is the catalogue's, and one for all other queries.
        assert value("segmentql_pool_size", pool="reader") == 2
        assert value("segmentql_pool_size", pool="memberships") == 1
        async with engine.begin() as tx:
            await tx.execute(text("LOCK TABLE memberships IN ACCESS EXCLUSIVE MODE"))
            asking = asyncio.create_task(client.post(MEMBERSHIPS, {"id": "7", "freshness": "LATEST"}))
            async with asyncio.timeout(5):
                while value("segmentql_pool_in_use", pool="memberships") == 0:
                    await asyncio.sleep(0.01)
            assert value("segmentql_http_requests_open") == 1
            assert value("segmentql_pool_waiting", pool="memberships") == 0
        await asking
        assert value("segmentql_pool_in_use", pool="memberships") == 0
        assert statements.by > 0
    assert REGISTRY.get_sample_value("segmentql_pool_size", {"pool": "memberships"}) is None


async def test_tasks_that_wait_are_counted_by_those_who_work_them_off(serve: Serve, engine: AsyncEngine) -> None:
    async with engine.begin() as tx:
        await tx.execute(
            text(
                "INSERT INTO tasks (kind, client, run_after) VALUES ('REPORT', 'anonymous', now() + interval '1 hour')"
            )
        )
    async with serve(serve_tasks=1):
        async with asyncio.timeout(10):
            while value("segmentql_tasks_unfinished", kind="REPORT", status="QUEUED") != 1:
                await asyncio.sleep(0.02)
        assert value("segmentql_tasks_oldest_seconds", kind="REPORT", status="QUEUED") == 0
        assert value("segmentql_tasks_counted_timestamp_seconds") > 0


async def test_what_the_dashboard_and_the_manual_name_is_there(serve: Serve) -> None:
    async with serve() as client:
        await client.ask(SEGMENTS, id=7)
    families = {family.name: family for family in text_string_to_metric_families(generate_latest().decode())}
    known = {f"{name}_total" if family.type == "counter" else name for name, family in families.items()}
    known |= {name + part for name, family in families.items() if family.type == "histogram" for part in PARTS}
    shown = {name for expression in expressions() for name in NAME.findall(expression) + PROCESS.findall(expression)}
    assert shown
    assert shown - known == set()
    manual = (ROOT / "docs" / "monitoring.md").read_text() + (ROOT / "docs" / "operating.md").read_text()
    assert {name for name in NAME.findall(manual) if not name.endswith("_")} - known == set()
    ours = {name for name in known if name.startswith("segmentql_") and not name.endswith(PARTS)}
    assert ours - set(NAME.findall(manual)) == set()
    assert [name for name, family in families.items() if not family.documentation] == []


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    assert {"title", "uid", "schemaVersion", "templating", "time"} <= dashboard.keys()
    (source,) = [each for each in dashboard["templating"]["list"] if each["type"] == "datasource"]
    assert source["query"] == "prometheus"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": f"${{{source['name']}}}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)) > 0
    assert overlapping(dashboard["panels"]) == []


def overlapping(placed: list[dict[str, Any]]) -> list[tuple[str, str]]:
    found = []
    for number, one in enumerate(placed):
        found += [
            (one["title"], other["title"]) for other in placed[:number] if overlap(one["gridPos"], other["gridPos"])
        ]
    return found


def overlap(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )
