"""Requests whose heads were read before: the same bytes mean the same, and nothing else does."""

import asyncio
from collections import Counter

import pytest
from comparing import Answer, Connection, both, counted, posted
from conftest import Client, Serve
from redis.asyncio import Redis
from test_fast_path import body, learned, users

from server import fast_protocol, heads
from server.heads import Heads

NOBODY: dict[str, list[object]] = {"segments": []}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of the answers that were asked of plans, how many were given by one."""
    return counted(monkeypatch)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    """Counts, from now on, the requests whose heads were known, and the others that came at once."""
    found: Counter[bool] = Counter()
    begin = fast_protocol.FastProtocol._begin_known

    def counting(self: fast_protocol.FastProtocol, data: bytes) -> bool:
        begun = begin(self, data)
        found[begun] += 1
        return begun

    monkeypatch.setattr(fast_protocol.FastProtocol, "_begin_known", counting)
    return found


async def test_a_head_that_one_connection_sent_is_known_on_the_next(
    serve: Serve, known: Counter[bool], planned: Counter[str]
) -> None:
    one_length = 300
    known_one, other, wrong, unknown = (
        each.ljust(one_length)
        for each in (body(id="7"), body(id="8"), body(id="\x07"), body('{ user(id: "7") { isIn(slug: "A") } }'))
    )
    async with serve() as short, serve(fast_path="off") as long:
        async with Connection(short) as first:
            await learned(first, *[known_one] * 2)
        known.clear()
        planned.clear()
        # Nothing has come before on these: neither what a plan answers, nor what it does not.
        for sent in (other, unknown, wrong, known_one):
            async with both(short, long) as (one, another):
                assert (await one.post(sent)).comparable == (await another.post(sent)).comparable
                assert users((await learned(one, known_one))[0]) == NOBODY
    assert known == {True: 8}
    assert planned == {"plan": 6}


async def test_more_or_less_than_a_head_and_its_body_is_read_as_ever(
    client: Client, known: Counter[bool], planned: Counter[str]
) -> None:
    request = posted(body(id="7"))
    length = len(body(id="7"))
    async with Connection(client) as connection:
        await learned(connection, *[body(id="7")] * 3)
        assert known[True] == 1
        known.clear()
        connection.writer.write(request[:-1])
        await asyncio.sleep(0.05)
        connection.writer.write(request[-1:])
        answers = [await connection.answer()]
        connection.writer.write(request + request)
        answers += [await connection.answer() for _ in range(2)]
        connection.writer.write(request + request[:40])
        answers.append(await connection.answer())
        connection.writer.write(request[40:])
        answers.append(await connection.answer())
        connection.writer.write(b"\r\n" + request)
        answers.append(await connection.answer())
        connection.writer.write(request)
        answers.append(await connection.answer())
        assert [users(answer) for answer in answers] == [NOBODY] * 7
        assert known[True] == 1
        # A body of another length than the head says is no body of it: what follows is no request.
        connection.writer.write(request.replace(b"%d" % length, b"%d" % (length - 1)))
        assert (await connection.answer()).status == 400


async def test_a_head_that_differs_in_a_byte_is_another(client: Client, known: Counter[bool]) -> None:
    async with Connection(client) as connection:
        await learned(connection, *[body(id="7")] * 3)
        assert known[True] == 1
        for headers, status in (
            ({"Content_Type": "text/plain"}, 415),
            ({"Host": "elsewhere.example"}, 400),
            ({"Accept": "text/css"}, 406),
            ({"X_Anything": "else"}, 200),
        ):
            assert (await connection.post(body(id="7"), **headers)).status == status, headers
        assert known[True] == 1


async def test_what_asks_for_a_websocket_is_none_of_them(client: Client, known: Counter[bool]) -> None:
    sent = body(id="7")
    upgrade = b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + sent
    async with Connection(client) as connection:
        await learned(connection, *[sent] * 3)
        connection.writer.write(upgrade)
        await connection.reader.read()  # whatever it is told, this connection is left
    known.clear()
    async with Connection(client) as connection:
        connection.writer.write(upgrade)
        assert b" 200 " not in (await connection.reader.read())[:20]
    assert known[True] == 0


async def test_a_request_id_is_each_requests_own(client: Client, known: Counter[bool]) -> None:
    async with Connection(client) as connection:
        answers = await learned(connection, *[body(id="7")] * 5)
        assert known[True] == 3
        assert len({answer.header("x-request-id") for answer in answers}) == 5
        named = [await connection.post(body(id="7"), X_Request_Id="mine") for _ in range(3)]
        assert [answer.header("x-request-id") for answer in named] == ["mine"] * 3
        assert known[True] == 3  # who names each request sends no head twice


async def test_the_same_head_from_another_place_spends_the_points_of_that_place(
    serve: Serve, redis: Redis, known: Counter[bool]
) -> None:
    del redis  # of this test alone
    async with serve(rate_limit=1, rate_burst=100) as client, Connection(client) as connection:

        async def spent() -> list[Answer]:
            return [await connection.post(body(id="7")) for _ in range(130)]

        assert {answer.status for answer in await spent()} == {200, 429}
        assert known[True] > 50
        url = client.http.base_url
        connection.writer.close()
        connection.reader, connection.writer = await asyncio.open_connection(
            url.host, url.port, local_addr=("127.0.0.2", 0)
        )
        answers = await spent()
        assert [answer.status for answer in answers[:90]] == [200] * 90
        assert answers[-1].status == 429


async def test_no_more_heads_are_kept_than_is_said_and_none_that_is_long(
    client: Client, known: Counter[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "MOST", 3)
    async with Connection(client) as connection:
        await learned(connection, body(id="7"))

        async def known_of(**headers: str) -> bool:
            known.clear()
            assert (await connection.post(body(id="7"), **headers)).status == 200
            return known[True] == 1

        assert not await known_of(X_A="1")
        assert await known_of(X_A="1")
        for other in ("2", "3", "4"):
            assert not await known_of(X_A=other)
        assert not await known_of(X_A="1")
        assert await known_of(X_A="4")
        long = "x" * heads.LONGEST
        assert [await known_of(X_A=long) for _ in range(3)] == [False] * 3


def test_a_head_is_found_by_all_of_its_bytes_and_by_its_place() -> None:
    kept, head = Heads(), b"POST"
    known = heads.Head([], 0, None)  # type: ignore[arg-type]  # nobody looks at what it asks
    kept.keep(head, "192.0.2.1", known)
    assert kept.find(head, "192.0.2.1") is known
    assert [kept.find(*each) for each in ((head, None), (head, "192.0.2.2"), (b"", "192.0.2.1"))] == [None] * 3
