"""What a single connection, and a body, may take of the server, whoever is at the other end."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

import pytest
from conftest import Client, Serve
from importing import ask_to_import
from operations import create

from server import graphql, middleware, protocol, uploads

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
TYPENAME = b'{"query": "{ __typename }"}'
POST = b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
PUT = b"PUT /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


async def test_a_connection_is_closed_when_the_rest_of_a_body_does_not_come_after_the_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.2)
    async with serve(authentication="required") as client:
        for begun, status in (
            (HEALTH + b"Content-Length: 1000\r\n\r\nx", b"200"),
            (POST + b"Content-Length: 1000\r\n\r\nx", b"401"),
            (PUT, b"405"),
            (POST.replace(b"/graphql", b"/nothing") + b"Content-Length: 1000\r\n\r\nx", b"404"),
        ):
            async with Peer(client) as peer:
                peer.write(begun)
                assert (await peer.answer())[9:12] == status
                with peer.trickling():
                    assert await peer.rest() == b""


async def test_a_body_that_comes_after_its_answer_leaves_the_connection_to_the_next_request(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as client:
        monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.2)
        async with Peer(client) as peer:
            peer.write(HEALTH + b"Content-Length: 10\r\n\r\n12345")
            assert (await peer.answer())[9:12] == b"200"
            peer.write(b"67890")
            await asyncio.sleep(0.4)  # as long as it would take to be cut off
            peer.write(HEALTH + b"\r\n")
            assert (await peer.answer())[9:12] == b"200"


async def test_a_method_that_is_not_allowed_needs_neither_a_body_nor_a_token(serve: Serve) -> None:
    async with serve(authentication="required", max_concurrent=1) as client:
        peers = [Peer(client) for _ in range(3)]
        for peer in peers:
            await peer.__aenter__()
            peer.write(PUT)
            answer = await peer.answer()
            assert answer[9:12] == b"405"
            assert b"\r\nallow: GET, POST\r\n" in answer
        for peer in peers:
            await peer.__aexit__()


async def test_what_trails_behind_a_body_is_bounded_and_changes_nothing(client: Client) -> None:
    whole = POST + CHUNKED + b"%x\r\n%b\r\n0\r\n" % (len(TYPENAME), TYPENAME)
    async with Peer(client) as peer:
        # A header of the answer that only a header of the request can bring about.
        peer.write(whole + b"X-Request-Id: trailing\r\n\r\n")
        answer = await peer.answer()
        assert answer[9:12] == b"200"
        assert b"trailing" not in answer
        peer.write(whole + b"X: ")
        for _ in range(40):
            peer.write(b"x" * 10_000)
            await asyncio.sleep(0)
        assert b" 431 " in await peer.answer()


async def test_a_body_in_many_small_chunks_is_a_body(client: Client) -> None:
    body = TYPENAME.ljust(20_000)
    async with Peer(client) as peer:
        peer.write(POST + CHUNKED)
        for start in range(0, len(body), 1_000):
            peer.write(b"".join(b"1;abcdef\r\n%c\r\n" % byte for byte in body[start : start + 1_000]))
            await peer.writer.drain()
        peer.write(b"0\r\n\r\n")
        assert (await peer.answer())[9:12] == b"200"


async def test_a_body_that_cannot_be_understood_is_refused_at_once(client: Client) -> None:
    async with Peer(client) as peer:
        peer.write(POST + CHUNKED + b"5\r\nabcde\r\n")
        peer.write(b"nonsense\r\n")
        async with asyncio.timeout(5):
            assert (await peer.answer())[9:12] == b"400"


async def test_only_a_few_requests_are_queued(client: Client) -> None:
    async with Peer(client) as peer:
        peer.write((HEALTH + b"\r\n") * 5_000)
        answers = await peer.rest()
    assert 1 < answers.count(b"HTTP/1.1 200 ") <= protocol.MOST_QUEUED + 1
    assert answers.count(b"\r\nconnection: close\r\n") == 1


async def test_a_large_answer_is_not_sent_for_ever(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "READ_SECONDS", 0.1)
    monkeypatch.setattr(protocol, "READ_BYTES", 1)
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 0.5)
    async with serve() as client, Peer(client, limit=1_000) as peer:
        peer.write(b"GET /graphiql/graphiql@3.8.3/graphiql.min.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5)
        read = 0
        with suppress(ConnectionError):
            async with asyncio.timeout(20):
                while piece := await peer.reader.read(200_000):
                    read += len(piece)
                    await asyncio.sleep(0.05)
        assert read < 15_000_000


async def test_all_bodies_together_hold_so_much_and_small_ones_find_room(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "MOST_LARGE", 2)
    async with serve(max_body_bytes=200_000) as client:
        begun = POST + b"Content-Length: 200000\r\n\r\n" + b"x" * 199_999
        statuses = []
        async with Peer(client) as one, Peer(client) as two, Peer(client) as three:
            for peer in (one, two):
                peer.write(begun)
                await peer.writer.drain()
            three.write(begun + b"x")
            statuses.append((await three.answer())[9:12])
            # Two hold 270 kB of 400: the third does not fit in beside them.
            assert (await client.http.post("/graphql", json=json.loads(TYPENAME))).status_code == 200
        assert statuses == [b"503"]
        async with asyncio.timeout(20):
            content = TYPENAME.ljust(200_000)
            headers = {"Content-Type": "application/json"}
            while (await client.http.post("/graphql", content=content, headers=headers)).status_code != 200:
                await asyncio.sleep(0.02)


async def test_values_are_counted_in_time_that_grows_with_the_body_alone() -> None:
    commas = b"," * (graphql.MOST_VALUES + 1)
    for nasty in (b'\\"', b'"', b"\\", b'",', b'"\\', b'x\\"', b'"",'):
        body = b'"' + nasty * (4_000_000 // len(nasty)) + b"\\"
        began = time.process_time()
        graphql._values(commas + body)
        assert time.process_time() - began < 1, nasty
    many = graphql.MOST_VALUES + 1
    assert graphql._values(b'["' + rb"\\\"," * many + b'"]') == 1
    assert graphql._values(b'[""' + b',""' * many + b"]") > graphql.MOST_VALUES


async def test_an_upload_that_trickles_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "WAIT_SECONDS", 0.3)
    async with serve() as client:
        await create(client, "A")
        url = (await ask_to_import(client, "A"))["task"]["uploadUrl"]
        path = url[url.index("/files/") :].encode()
        async with Peer(client) as peer:
            peer.write(b"PUT " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
            with peer.trickling():
                assert (await peer.answer())[9:12] == b"408"


class Peer:
    """Somebody at the other end of a connection, who may write what no client would."""

    def __init__(self, client: Client, limit: int = 2**16) -> None:
        url = client.http.base_url
        self._opening = asyncio.open_connection(url.host, url.port, limit=limit)

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await self._opening
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        (length,) = [int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")]
        return head + await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """Until the server closes the connection."""
        async with asyncio.timeout(20):
            return await self.reader.read()

    @contextmanager
    def trickling(self) -> Iterator[None]:
        async def trickle() -> None:
            while True:
                self.write(b"x")
                await asyncio.sleep(0.05)

        task = asyncio.create_task(trickle())
        try:
            yield
        finally:
            task.cancel()
