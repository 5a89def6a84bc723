"""How many requests may be under way, and who keeps his place from whom."""

import asyncio
import json
from ipaddress import ip_network
from typing import Any, Self

import httpx
from conftest import Client, Serve
from limiting import READ, asked, code
from operations import change, create, new_key
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

ADD = """mutation ($input: AddUsersToSegmentInput!, $key: String!) {
  addUsersToSegment(input: $input, idempotencyKey: $key) { added userErrors { code } } }"""


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
    async with serve(max_concurrent=2) as client, Slow(client) as one, Slow(client):
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
    proxies = (ip_network("127.0.0.1"),)
    async with serve(max_concurrent=3, max_concurrent_per_client=1, trusted_proxies=proxies) as client:
        async with Slow(client, "192.0.2.1"):
            assert code(await answered(client, 503, "192.0.2.1")) == "OVERLOADED"
            assert (await asked(client, address="192.0.2.2")).status_code == 200
        # Whoever leaves makes room.
        await answered(client, 200, "192.0.2.1")


async def test_changes_that_wait_leave_places_to_others(serve: Serve, engine: AsyncEngine) -> None:
    async with serve(max_concurrent=8) as client:
        await create(client, "HELD", "FREE")

        async def add(slug: str) -> Any:
            return await client.post(ADD, {"input": {"slug": slug, "userIds": ["1"]}, "key": new_key()})

        async with engine.begin() as tx:
            await tx.execute(text("SELECT FROM segments WHERE slug = 'HELD' FOR UPDATE"))
            waiting = {asyncio.create_task(add("HELD")) for _ in range(5)}
            refused: set[asyncio.Task[Any]] = set()
            while len(refused) < 3:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=20)
                assert done
                refused |= done
            assert {task.result()["errors"][0]["extensions"]["code"] for task in refused} == {"OVERLOADED"}
            assert (await asked(client)).status_code == 200
            assert (await change(client, 1, add=["FREE"]))["added"] == ["FREE"]
        for task in waiting:
            assert (await task)["data"]["addUsersToSegment"]["userErrors"] == []
