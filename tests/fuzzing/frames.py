"""Upgrades to a WebSocket, and what is said over one, right or not."""

import base64
import json
import random
import struct

from fuzzing import texts
from fuzzing.bodies import Headers, request
from fuzzing.cases import Case, Due

KEY = base64.b64encode(b"0123456789abcdef")
SUBSCRIBING = {"query": 'subscription { userChanged(id: "u1") { resync } }'}


def websocket(random: random.Random, files: str) -> Case:
    """An upgrade, right or not, and frames, right or not."""
    given: Headers = [
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Version", b"13"),
        (b"Sec-WebSocket-Key", KEY),
        (b"Sec-WebSocket-Protocol", b"graphql-transport-ws"),
    ]
    if random.random() < 0.3:
        place = random.randrange(len(given))
        odd = (
            b"",
            b"12",
            b"x",
            b"graphql-ws",
            KEY[:-3],
            b"\xff",
            b"13, 8",
            b"graphql-transport-ws, a" + b",b" * 99,
            b"h2c",
        )
        given[place] = (given[place][0], random.choice(odd))
        if random.random() < 0.3:
            del given[place]
    if random.random() < 0.2:
        given.append((b"Sec-WebSocket-Extensions", random.choice((b"permessage-deflate", b'x; y="', b"\xff", b","))))
    if random.random() < 0.2:
        given.append((b"Origin", random.choice((b"null", b"http://127.0.0.1", b"https://evil.example", b"\xff", b"x"))))
    sent = request(b"GET", random.choice((b"/graphql", b"/graphql", b"/graphql", b"/", b"/graphql?a=b")), b"", given)
    frames = b"".join(_frame(random) for _ in range(random.choice((1, 2, 5, 12))))
    if random.random() < 0.6:
        frames = _text(json.dumps({"type": "connection_init"}).encode()) + frames
    if random.random() < 0.2:
        sent, frames = sent + frames, b""
    return Case("WebSocket", (sent,), Due.WEBSOCKET, (b"GET",), graphql=False, frames=frames)


def _frame(random: random.Random) -> bytes:
    chance = random.random()
    if chance < 0.6:
        types = ("connection_init", "subscribe", "complete", "ping", "pong", "next", "error", "", "connection_ack")
        message = {
            "type": random.choice(types),
            "id": random.choice(("1", "2", "", "x" * 300, texts.text(random))),
            "payload": random.choice((SUBSCRIBING, {"query": "{ __typename }"}, {}, None, texts.value(random))),
        }
        return _text(texts.dumped(texts.spoiled(message, random) if random.random() < 0.5 else message, random))
    if chance < 0.75:
        return _text(
            random.choice((b"", b"\xff", b"[]", b"1", b"{}", b'"a"', b"[" * 3_000, b"\xed\xa0\x80", b"x" * 70_000))
        )
    if chance < 0.9:
        opcode = random.choice((0, 2, 3, 7, 8, 9, 10, 11, 15))
        payload = random.choice(
            (b"", b"\x03", b"\x03\xe8", b"\x00\x00", b"\x13\x88" + b"a" * 123, b"a" * 125, b"a" * 126)
        )
        return _masked(random.choice((0x80, 0x00, 0xC0, 0xF0)) | opcode, payload)
    if chance < 0.95:
        return b"\x81\xff" + struct.pack(">Q", random.choice((2**63, 2**62, 2**31, 0))) + b"mask"
    return noise(random)


def _text(payload: bytes) -> bytes:
    return _masked(0x81, payload)


def _masked(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65_536:
        head = bytes((first, 0xFE)) + struct.pack(">H", size)
    else:
        head = bytes((first, 0xFF)) + struct.pack(">Q", size)
    return head + b"\0\0\0\0" + payload


def noise(random: random.Random) -> bytes:
    return bytes(random.randrange(256) for _ in range(random.choice((1, 30, 2_000))))
