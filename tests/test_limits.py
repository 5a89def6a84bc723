"""How much a caller may ask for in a while: points."""

import asyncio
import time
from collections import Counter
from ipaddress import ip_network
from math import ceil

import httpx
import pytest
from breaking import Valkey
from callers import a_token, caller
from conftest import Serve
from limiting import READ, asked, code, cost
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from server.client import Api, Patience

# A machine that is busy with other tests makes Redis slow, and then each process counts for itself.
PATIENT = {"redis_budget_ms": 5_000}
FOUR = "{ segments(first: 100) { nodes { slug } } }"


async def test_a_client_that_asks_too_fast_is_told_when_to_come_back(serve: Serve) -> None:
    async with serve(**PATIENT, rate_limit=5, rate_burst=10) as client:
        first = await asked(client)
        assert (first.status_code, first.headers["RateLimit-Policy"]) == (200, '"default";q=10;w=2')
        assert first.headers["RateLimit"] == '"default";r=9;t=1'
        assert cost(first) == {"requested": 1, "remaining": 9, "restoreRate": 5}
        while (response := await asked(client, FOUR)).status_code == 200:
            pass
        assert (response.status_code, code(response)) == (429, "RATE_LIMITED")
        response = await asked(client, FOUR, media="application/graphql-response+json")
        received = time.monotonic()
        assert (response.status_code, response.headers["Retry-After"]) == (429, "1")
        retry_ms = response.json()["errors"][0]["extensions"]["retryAfterMs"]
        # With what the refusals have cost.
        assert 0 < retry_ms <= 800
        await asyncio.sleep(received + retry_ms / 1_000 - time.monotonic())
        assert (await asked(client, FOUR)).status_code == 200


async def test_who_is_told_to_come_back_pays_for_being_looked_at(serve: Serve) -> None:
    fifteen = '{ segment(slug: "A") { memberCount(limit: 120000) { value } } }'
    async with serve(**PATIENT, rate_limit=1, rate_burst=20) as client:
        began = time.monotonic()
        assert (await asked(client, fifteen)).status_code == 200
        five_left = time.monotonic()
        for refusals in (1, 2, 3):
            sent = time.monotonic()
            response = await asked(client, fifteen)
            received = time.monotonic()
            assert (response.status_code, code(response)) == (429, "RATE_LIMITED")
            # Ten are lacking, and what the refusals have cost; what comes back meanwhile is there.
            retry_seconds = response.json()["errors"][0]["extensions"]["retryAfterMs"] / 1_000
            assert began - received - 0.01 <= retry_seconds - 10 - refusals <= five_left - sent + 0.01


async def test_what_is_new_costs_its_reading(serve: Serve) -> None:
    long = f"{{ user(id: 1) {{ {'id ' * 200} }} }}"
    async with serve(**PATIENT, rate_limit=1, rate_burst=200) as client:
        for points in (1 + 210 // 25, 1):
            assert cost(await asked(client, long))["requested"] == points
        # Who makes comments of it pays for these.
        assert cost(await asked(client, f"{READ} #{' ' * 5_000}"))["requested"] == 1 + 5_000 // 500
        assert cost(await asked(client, long, {"u": ["x" * 2**19]}))["requested"] == 1 + 2
        before = cost(await asked(client))["remaining"]
        refused = await asked(client, f"{{ user(id: 1) {{ {'oops ' * 200} }} }}")
        assert code(refused) == "GRAPHQL_VALIDATION_FAILED"
        left = int(refused.headers["RateLimit"].partition("r=")[2].partition(";")[0])
        assert 8 <= before - left <= 9


async def test_whoever_has_no_point_is_refused_for_as_long_as_is_said(serve: Serve) -> None:
    async with serve(**PATIENT, rate_limit=2, rate_burst=3) as client:
        while (response := await asked(client)).status_code == 200:
            pass
        allowed = 0
        for _ in range(3):
            received = time.monotonic()
            retry_ms = response.json()["errors"][0]["extensions"]["retryAfterMs"]
            assert response.headers["Retry-After"] == "1"
            assert response.headers["RateLimit"].startswith('"default";r=0;t=')
            await asyncio.sleep(received + retry_ms / 1_000 - time.monotonic())
            allowed += (await asked(client)).status_code == 200
            while (response := await asked(client)).status_code == 200:
                pass
        assert allowed == 3


async def test_another_client_notices_nothing(serve: Serve) -> None:
    async with serve(**PATIENT, rate_limit=1, rate_burst=3, trusted_proxies=(ip_network("127.0.0.1"),)) as client:
        for address, other, same in (
            ("192.0.2.1", "192.0.2.2", "::ffff:192.0.2.1"),
            ("2001:db8:1:2::1", "2001:db8:1:3::1", "2001:db8:1:2:3:4:5:6"),
        ):
            while (await asked(client, address=address)).status_code == 200:
                pass
            assert (await asked(client, address=same)).status_code == 429
            response = await asked(client, address=f"{address}, {other}")
            assert (response.status_code, cost(response)["remaining"]) == (200, 2)


async def test_a_client_with_a_token_has_points_of_its_own(serve: Serve, engine: AsyncEngine) -> None:
    one, other = await a_token(engine, "read", "one"), await a_token(engine, "read", "other")
    async with (
        serve(**PATIENT, rate_limit=1, rate_burst=3, authentication="required") as client,
        caller(client, one) as first,
        caller(client, other) as second,
    ):
        refused = await asked(first, 'mutation { deleteSegment(slug: "A", idempotencyKey: "x") { replayed } }')
        assert (refused.status_code, code(refused)) == (403, "FORBIDDEN")
        # It has cost a point, too.
        assert cost(await asked(first))["remaining"] == 1
        while (await asked(first)).status_code == 200:
            pass
        assert cost(await asked(second))["remaining"] == 2


async def test_what_a_caller_says_of_its_address_is_not_believed(serve: Serve) -> None:
    async with serve(**PATIENT, rate_limit=1, rate_burst=3, unauthenticated="anywhere") as client:
        answers = [await asked(client, address=f"192.0.2.{n}") for n in range(6)]
        assert Counter(answer.status_code for answer in answers)[429] >= 2


async def test_processes_share_what_a_client_has(serve: Serve, redis: Redis) -> None:
    async with (
        serve(**PATIENT, rate_limit=1, rate_burst=20) as one,
        serve(**PATIENT, rate_limit=1, rate_burst=20) as two,
    ):
        began = time.monotonic()
        answers = await asyncio.gather(*(asked((one, two)[n % 2]) for n in range(60)))
        allowed = sum(answer.status_code == 200 for answer in answers)
        assert 20 <= allowed <= 20 + ceil(time.monotonic() - began)
        assert 0 < await redis.pttl("segmentql:limit:address:127.0.0.1") <= 20_000


async def test_without_redis_each_process_counts_for_itself(serve: Serve, valkey: Valkey) -> None:
    async with serve(rate_limit=1, rate_burst=5, redis_url=valkey.url) as client:
        assert cost(await asked(client))["remaining"] == 4
        valkey.kill()
        # The first one finds it gone, and is counted here already.
        assert cost(await asked(client))["remaining"] == 4
        while (response := await asked(client)).status_code == 200:
            pass
        assert code(response) == "RATE_LIMITED"
        await valkey.start()
        for _ in range(500):
            if (await client.http.get("/readyz")).json()["redis"]:
                break
            await asyncio.sleep(0.01)
        # What was spent meanwhile is forgiven.
        await asyncio.sleep(response.json()["errors"][0]["extensions"]["retryAfterMs"] / 1_000)
        assert cost(await asked(client))["remaining"] == 4


async def test_what_can_never_be_paid_is_no_matter_of_waiting(serve: Serve) -> None:
    async with serve(**PATIENT, rate_limit=5, rate_burst=10) as client:
        response = await asked(client, "{ segments(first: 100) { nodes { memberCount { value } } } }")
        (error,) = response.json()["errors"]
        assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
        assert error["message"] == "The operation costs 204 points, and at most 10 can be spent."
        assert response.headers["RateLimit"] == '"default";r=9;t=1'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"query": "{"}', 400),
        (b'{"query": "{ nothing }"}', 400),
        (b'{"query": "query ($i: ID!) { user(id: $i) { id } }", "variables": {"i": null}}', 400),
        (b"not JSON", 400),
        (b"{}", 400),
    ],
)
async def test_what_is_refused_costs_a_point(serve: Serve, body: bytes, status: int) -> None:
    async with serve(**PATIENT, rate_limit=1, rate_burst=10) as client:
        headers = {"Content-Type": "application/json", "Accept": "application/graphql-response+json"}
        response = await client.http.post("/graphql", content=body, headers=headers)
        assert response.status_code == status
        assert response.headers["RateLimit"] == '"default";r=9;t=1'


async def test_without_a_limit_nothing_is_counted(serve: Serve, redis: Redis) -> None:
    async with serve(**PATIENT, rate_limit=0, rate_burst=1) as client:
        answers = [await asked(client) for _ in range(5)]
        assert {answer.status_code for answer in answers} == {200}
        assert cost(answers[0]) == {"requested": 1, "remaining": None, "restoreRate": None}
        assert "RateLimit" not in answers[0].headers
        assert not await redis.keys("segmentql:limit:*")


async def test_a_client_of_ours_waits_as_long_as_it_is_told(serve: Serve) -> None:
    async with serve(**PATIENT, rate_limit=1, rate_burst=1) as client:
        said: list[str] = []
        url = f"{client.http.base_url}/graphql"

        def ask() -> None:
            with httpx.Client() as http:
                api = Api(http, url, None, Patience(30, said.append))
                for _ in range(2):
                    assert api.ask(READ) == {"user": {"segments": []}}

        await asyncio.to_thread(ask)
        assert said
