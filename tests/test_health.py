"""What watches over a process asks it."""

import asyncio
from typing import Any

import pytest
from callers import a_token, bearing, caller
from conftest import Serve
from operations import MEMBERSHIPS
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections
from server import app, health
from server.health import EXHAUSTED
from server.leaving import Leaving
from server.tokens import make


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
    token = await a_token(engine)
    async with serve(read_pool_size=3, authentication="required") as client, caller(client, token) as asking:
        await asking.ask("{ __typename }")  # it has started
        async with engine.begin() as tx:
            await tx.execute(text("LOCK TABLE tokens, memberships, segments IN ACCESS EXCLUSIVE MODE"))
            waiting = [
                asyncio.create_task(asking.post(MEMBERSHIPS, {"id": "7", "freshness": "LATEST"})),
                asyncio.create_task(asking.post("{ segments { nodes { slug } } }")),
                asyncio.create_task(client.http.post("/graphql", headers=bearing(make()))),
            ]
            async with asyncio.timeout(5):
                while value("pool_in_use") != 2:
                    await asyncio.sleep(0.01)
            asked = [asyncio.create_task(client.http.get("/readyz")) for _ in range(30)]
            async with asyncio.timeout(5):
                while value("pool_waiting") == 0:
                    await asyncio.sleep(0.01)
            answers = await asyncio.gather(*asked)
        await asyncio.gather(*waiting)
    assert {(answer.status_code, *answer.json()["problems"]) for answer in answers} == {(503, EXHAUSTED)}


def value(name: str) -> float:
    found = REGISTRY.get_sample_value(f"segmentql_{name}", {"pool": "reader"})
    assert found is not None
    return found


async def test_however_many_ask_there_is_one_look_in_half_a_second(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    is_standby = connections.is_standby

    async def noting(conn: Any) -> bool:
        looks.append(conn)
        return await is_standby(conn)

    monkeypatch.setattr(connections, "is_standby", noting)
    leaving = Leaving()
    monkeypatch.setattr(app, "Leaving", lambda: leaving)
    monkeypatch.setattr(health, "SHARED_SECONDS", 60)
    async with serve() as client:

        async def ask(times: int) -> set[int]:
            return {
                each.status_code for each in await asyncio.gather(*(client.http.get("/readyz") for _ in range(times)))
            }

        assert (await ask(30), len(looks)) == ({200}, 1)
        monkeypatch.setattr(health, "SHARED_SECONDS", 0)
        assert (await ask(1), len(looks)) == ({200}, 2)
        monkeypatch.setattr(health, "SHARED_SECONDS", 60)
        # That it leaves is seen at once.
        leaving.begun = True
        assert (await ask(5), len(looks)) == ({503}, 2)
