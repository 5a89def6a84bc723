"""What watches over a process asks it."""

import asyncio

from conftest import Serve
from operations import MEMBERSHIPS
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from server.health import EXHAUSTED


async def test_whoever_watches_needs_no_token_no_points_and_no_name(serve: Serve) -> None:
    limits = {"rate_limit": 1, "rate_burst": 1, "max_concurrent": 1, "allowed_hosts": ("segments.example.com",)}
    async with serve(authentication="required", **limits) as client:
        asked = await asyncio.gather(
            *(client.http.get(path, headers={"Host": "10.0.0.1"}) for path in ["/healthz", "/readyz"] * 5)
        )
    assert [answer.status_code for answer in asked] == [200] * 10
    assert [answer.json() for answer in asked[:2]] == [{"alive": True}, {"ready": True, "problems": [], "redis": True}]


async def test_connections_that_are_all_taken_are_not_called_a_database_that_is_away(
    serve: Serve, engine: AsyncEngine
) -> None:
    async with serve(read_pool_size=3) as client:
        await client.ask("{ __typename }")  # it has started
        async with engine.begin() as tx:
            await tx.execute(text("LOCK TABLE alembic_version, memberships, segments IN ACCESS EXCLUSIVE MODE"))
            waiting = [
                asyncio.create_task(client.post(MEMBERSHIPS, {"id": "7", "freshness": "LATEST"})),
                asyncio.create_task(client.post("{ segments { nodes { slug } } }")),
                asyncio.create_task(client.http.get("/readyz")),
            ]
            async with asyncio.timeout(5):
                while REGISTRY.get_sample_value("segmentql_pool_in_use", {"pool": "reader"}) != 3:
                    await asyncio.sleep(0.01)
            asked = await client.http.get("/readyz")
        await asyncio.gather(*waiting)
    assert (asked.status_code, asked.json()["problems"]) == (503, [EXHAUSTED])
