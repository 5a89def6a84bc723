"""A short run of what `make fuzz` sends by the ten thousand, and what it has found."""

import asyncio
import logging
import struct
from asyncio.selector_events import _SelectorSocketTransport  # type: ignore[attr-defined]  # what a socket is behind

import pytest
from conftest import Client, Serve
from connecting import connected, exchange
from fuzzing.bodies import JSON, TYPENAME, request
from fuzzing.running import Cases, run, world
from operations import change, create, slugs

from server.protocol import Protocol

REQUESTS = 250
SEED = 8
UPGRADE = (
    b"GET /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
    b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n"
)
NOT_UTF8, GOING = b"\x81\x81\0\0\0\0\xff", b"\x88\x82\0\0\0\0\x03\xe8"


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_nothing_that_is_sent_makes_the_server_fail_or_hang(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as client:
        account = await run(client, Cases(SEED, await world(client)), REQUESTS)
        assert [f"{each.number} {each.case.kind}: {each.wrong}" for each in account.findings] == []
        assert account.kinds.total() == REQUESTS
        # Not all was refused, nor all taken.
        assert account.statuses["200"] > REQUESTS / 10
        assert account.statuses["400"] > REQUESTS / 10
        await create(client, "Afterwards")
        assert (await change(client, "afterwards", add=["Afterwards"]))["added"] == ["Afterwards"]
        assert "Afterwards" in await slugs(client, "afterwards")
    assert failures(caplog) == []


async def test_a_page_that_may_not_open_a_websocket_is_no_failure_of_ours(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await exchange(client, UPGRADE + b"Origin: https://elsewhere.example\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert failures(caplog) == []


@pytest.mark.parametrize(("frames", "code"), [(NOT_UTF8, 1007), (NOT_UTF8 + GOING, 1000)])
async def test_a_message_that_is_no_text_ends_its_websocket_alone(
    client: Client, caplog: pytest.LogCaptureFixture, frames: bytes, code: int
) -> None:
    reader, writer = await connected(client)
    writer.write(UPGRADE + b"\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    writer.write(frames)
    assert (await reader.readexactly(4))[2:] == struct.pack(">H", code)
    writer.close()
    assert failures(caplog) == []


async def test_what_is_refused_before_it_is_read_has_no_body_for_head(client: Client) -> None:
    answer = await exchange(client, b"HEAD /graphql HTTP/1.1\r\nHost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"\r\n\r\n")


async def test_who_has_asked_twice_and_left_is_answered_neither_time(
    client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = _SelectorSocketTransport.write

    def write(transport: _SelectorSocketTransport, sent: bytes) -> None:
        # As uvloop's does, which the server has.
        if transport._conn_lost:
            raise RuntimeError("the handler is closed")
        written(transport, sent)

    monkeypatch.setattr(_SelectorSocketTransport, "write", write)
    caplog.set_level(logging.INFO, "server.requests")
    # The first is for uvicorn's way, where it is told of, and for ours, where it is not.
    for first in (b'{"query": "{ segments { nodes { id } } }"}', b'{"query": "{ user(id: 1) { segments { id } } }"}'):
        caplog.clear()
        _, writer = await connected(client)
        writer.write(request(b"POST", b"/graphql", first, [JSON]) + request(b"POST", b"/graphql", TYPENAME, [JSON]))
        writer.close()
        await change(client, "somebody", remove=[])
        await asyncio.sleep(0.1)
        assert failures(caplog) == []


async def test_what_was_refused_is_not_refused_again_for_its_headers(client: Client) -> None:
    reader, writer = await connected(client)
    writer.write(b"POST /graphql HTTP/1.1\r\nHost: ")
    # By then it has read that much, and waits for the rest.
    await slugs(client, "anybody")
    assert len(waiting()) == 1
    writer.write(b"a\r\n\0\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    assert waiting() == []


def waiting() -> list[asyncio.TimerHandle]:
    """What this process, which is the server too, would do when the headers of a request have not come in time."""
    timers: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [timer for timer in timers if not timer.cancelled() and Protocol._give_up.__name__ in repr(timer)]
