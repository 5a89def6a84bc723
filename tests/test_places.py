"""How many requests may be under way, and who keeps his place from whom."""

import asyncio
import json
import random
from collections import Counter
from ipaddress import ip_network
from typing import Any, Self

import httpx
import pytest
from conftest import Client, Serve
from limiting import READ, asked, code
from operations import change, create, new_key
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from resolvers.fair_turns import FairTurns
from resolvers.places import Places
from resolvers.turns import Turns

ADD = """mutation ($input: AddUsersToSegmentInput!, $key: String!) {
  addUsersToSegment(input: $input, idempotencyKey: $key) { added userErrors { code } } }"""
HELD = {"input": {"slug": "HELD", "userIds": ["1"]}, "key": "held-by-nobody"}
STATEMENTS = "query ($ids: [ID!]!) { users(ids: $ids) { history(first: 1) { nodes { at } } } }"
PROXIES = (ip_network("127.0.0.1"),)


class Slow:
    """A request whose body does not come."""

    def __init__(self, client: Client, address: str = "192.0.2.1") -> None:
        self._url, self._address = client.http.base_url, address
        self._body = json.dumps({"query": READ}).encode()

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._url.host, self._url.port)
        head = f"POST /graphql HTTP/1.1\r\nHost: {self._url.host}\r\nX-Forwarded-For: {self._address}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(self._body)}\r\n\r\n"
        self._writer.write(head.encode() + self._body[:-1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def end(self) -> bytes:
        """Send the rest, and return the status."""
        self._writer.write(self._body[-1:])
        return await self._reader.readline()


async def answered(client: Client, status: int, address: str | None = None) -> httpx.Response:
    """The answer when it has become that: the server sees connections one after the other."""
    for _ in range(500):
        if (response := await asked(client, address=address)).status_code == status:
            return response
        await asyncio.sleep(0.01)
    raise AssertionError(f"the status does not become {status}")


async def test_beyond_so_many_at_a_time_nobody_waits(serve: Serve) -> None:
    trusting = serve(max_concurrent=2, trusted_proxies=PROXIES, graphiql="on")
    async with trusting as client, Slow(client) as one, Slow(client):
        response = await answered(client, 503)
        assert (code(response), response.headers["Retry-After"]) == ("OVERLOADED", "1")
        assert response.json()["errors"][0]["extensions"]["retryAfterMs"] == 1_000
        # It was refused before anything was done for it.
        assert "RateLimit" not in response.headers
        # Whoever sends much hears of it, too.
        assert (await client.http.post("/graphql", content=b" " * 5_000_000)).status_code == 503
        # Neither of these takes a place.
        assert (await client.http.get("/healthz")).status_code == 200
        assert (await client.http.get("/graphql", headers={"Accept": "text/html"})).status_code == 200
        assert await one.end() == b"HTTP/1.1 200 OK\r\n"
        await answered(client, 200)


async def test_a_client_takes_no_more_than_its_places(serve: Serve) -> None:
    async with serve(max_concurrent=3, max_concurrent_per_client=1, trusted_proxies=PROXIES) as client:
        async with Slow(client, "192.0.2.1"):
            assert code(await answered(client, 503, "192.0.2.1")) == "OVERLOADED"
            assert (await asked(client, address="192.0.2.2")).status_code == 200
        # Whoever leaves makes room.
        await answered(client, 200, "192.0.2.1")


async def test_changes_that_wait_leave_places_to_others(serve: Serve, engine: AsyncEngine) -> None:
    async with serve(max_concurrent=32, trusted_proxies=PROXIES) as client:
        await create(client, "HELD", "FREE")

        async def add(slug: str, address: str = "192.0.2.1") -> Any:
            variables = {"input": {"slug": slug, "userIds": ["1"]}, "key": new_key()}
            return (await asked(client, ADD, variables, address=address)).json()

        async with engine.begin() as tx:
            await tx.execute(text("SELECT FROM segments WHERE slug = 'HELD' FOR UPDATE"))
            waiting = {asyncio.create_task(add("HELD", f"192.0.2.{n % 4}")) for n in range(16)}
            refused: set[asyncio.Task[Any]] = set()
            # Eight places are there for such changes, and of each client two.
            while len(refused) < 8:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=20)
                assert done
                refused |= done
            assert {task.result()["errors"][0]["extensions"]["code"] for task in refused} == {"OVERLOADED"}
            assert code(await asked(client, ADD, HELD, address="192.0.2.9")) == "OVERLOADED"
            assert (await asked(client)).status_code == 200
            assert (await change(client, 1, add=["FREE"]))["added"] == ["FREE"]
        for task in waiting:
            assert (await task)["data"]["addUsersToSegment"]["userErrors"] == []


async def test_one_client_leaves_places_for_changes_to_others(serve: Serve, engine: AsyncEngine) -> None:
    async with serve(max_concurrent=16, trusted_proxies=PROXIES) as client:
        await create(client, "HELD", "FREE")
        async with engine.begin() as tx:
            await tx.execute(text("SELECT FROM segments WHERE slug = 'HELD' FOR UPDATE"))
            # Copies of one change: of eight places two are for this client.
            storm = {asyncio.create_task(asked(client, ADD, HELD, address="192.0.2.1")) for _ in range(6)}
            refused: set[asyncio.Task[httpx.Response]] = set()
            while len(refused) < 4:
                done, storm = await asyncio.wait(storm, return_when=asyncio.FIRST_COMPLETED, timeout=20)
                assert done
                refused |= done
            assert {code(task.result()) for task in refused} == {"OVERLOADED"}
            free = {"input": {"slug": "FREE", "userIds": ["1"]}, "key": new_key()}
            other = (await asked(client, ADD, free, address="192.0.2.2")).json()
            assert other["data"]["addUsersToSegment"] == {"added": 1, "userErrors": []}
        for task in storm:
            assert (await task).json()["data"]["addUsersToSegment"]["added"] == 1
        # Whoever has left makes room.
        again = await asked(client, ADD, free, address="192.0.2.1")
        assert again.json()["data"]["addUsersToSegment"]["userErrors"] == []


async def test_who_asks_for_much_keeps_others_waiting_for_little(serve: Serve) -> None:
    async with serve(read_pool_size=3, trusted_proxies=PROXIES) as client:
        users = {"ids": [str(n) for n in range(100)]}
        much = [asyncio.create_task(asked(client, STATEMENTS, users, address="192.0.2.1")) for _ in range(2)]
        answered = 0
        while not all(task.done() for task in much):
            response = await asked(client, '{ segment(slug: "A") { slug } }', address="192.0.2.2")
            assert response.json()["data"] == {"segment": None}
            answered += 1
        # Behind two hundred statements it would have been two or three.
        assert answered > 5
        assert {len((await task).json()["data"]["users"]) for task in much} == {100}


async def test_turns_go_round_and_who_leaves_has_none() -> None:
    turns = FairTurns(1)
    order: list[str] = []

    async def one(caller: str) -> None:
        async with turns.one(caller):
            order.append(caller)
            await asyncio.sleep(0)

    async with asyncio.timeout(5), asyncio.TaskGroup() as waiting:
        async with turns.one("first"):
            tasks = [waiting.create_task(one(caller)) for caller in ("a", "a", "a", "b", "c", "b")]
            await asyncio.sleep(0)
            # Before its turn, and with a turn that it has not yet seen.
            tasks[4].cancel()
            tasks[1].cancel()
        tasks[0].cancel()
    assert order == ["b", "a", "b"]
    async with asyncio.timeout(5), turns.one("later"):
        pass


@pytest.mark.parametrize("of_all", [None, 3])
@pytest.mark.parametrize("seed", range(10))
async def test_a_segment_has_so_many_turns_at_a_time_and_who_leaves_keeps_none(seed: int, of_all: int | None) -> None:
    """Whether it leaves at work or while it waits, for one of several segments or for one at all."""
    dice = random.Random(seed)
    places = Places(400)
    turns = Turns(places, 2, of_all)
    at_work: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def one(slugs: set[str], steps: int) -> None:
        async with turns.of(slugs, "somebody"):
            at_work.update({*slugs, "all"})
            most.update({each: 1 for each in {*slugs, "all"} if at_work[each] > most[each]})
            try:
                for _ in range(steps):
                    await asyncio.sleep(0)
            finally:
                at_work.subtract({*slugs, "all"})

    async with asyncio.timeout(20):
        tasks = [
            asyncio.create_task(one(set(dice.choices("ABCD", k=dice.randint(1, 3))), dice.randint(0, 4)))
            for _ in range(100)
        ]
        for leaving in dice.sample(tasks, 30):
            await asyncio.sleep(0)
            leaving.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in ended} == {type(None), asyncio.CancelledError}
    assert all(at_work[each] == 0 and most[each] == 2 for each in "ABCD")
    assert most["all"] <= (of_all or 8)
    # Nobody has a turn or a place any more, and the next ones have them at once.
    assert (turns._segments, places._taken, places._free) == ({}, {}, 400)
    async with asyncio.timeout(5), turns.of("ABCD", "one"), turns.of("ABCD", "other"):
        pass
