"""Requests that are out of order as HTTP: their lines, lengths and chunks, and what follows them."""

import json
import random
from collections.abc import Callable

from fuzzing import frames
from fuzzing.bodies import JSON, NAMES, TYPENAME, VALUES, request
from fuzzing.cases import Case, Due

METHODS = (
    *(b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT", b"PROPFIND", b"QUERY", b"PURGE"),
    *(b"get", b"POST\t", b"", b"P", b"PRI", b"X" * 300, b"SEARCH", b"M-SEARCH", b"\x00", b"POST POST", b"SOURCE"),
)
TARGETS = (
    *(
        b"/",
        b"/graphql/",
        b"/graphql//",
        b"//graphql",
        b"/graphql?",
        b"/graphql#a",
        b"*",
        b"",
        b"graphql",
        b"/%67raphql",
    ),
    *(b"/graphql%00", b"/graphql%0a", b"/%", b"/%zz", b"/%ff%fe", b"/../graphql", b"/./graphql", b"/graphql;a=b", b"?"),
    *(b"http://127.0.0.1/graphql", b"http://evil.example/graphql", b"http://[::1", b"http://", b"//", b"127.0.0.1:80"),
    *(b"/health", b"/healthz", b"/readyz", b"/livez", b"/metrics", b"/static/", b"/static/../app.py", b"/favicon.ico"),
    *(b"/files/00000000-0000-0000-0000-000000000000", b"/files/x", b"/tasks/", b"/graphql/\xc3\xa9", b"/\xff", b"/a b"),
    *(
        b"/downloads/00000000-0000-0000-0000-000000000000?expires=1&signature=x",
        b"/?" + b"a" * 9_000,
        b"/" + b"a" * 9_000,
    ),
    *(b"/files/00000000-0000-0000-0000-000000000000?expires=nan&signature=\xff", b"https://127.0.0.1:99999/graphql"),
)
VERSIONS = (
    *(
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/1.1",
        b"HTTP/0.9",
        b"HTTP/2.0",
        b"HTTP/3",
        b"HTTP/1.2",
        b"HTTP/9.9",
        b"http/1.1",
    ),
    *(b"", b"HTTP/", b"HTTP/1.11", b"RTSP/1.0", b"HTTP/1.1 x", b"ICE/1.0"),
)
# The bytes that have a meaning, and some that have none.
MEANING = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b":",
    b" ",
    b"\t",
    b"\x00",
    b"\xff",
    b"0",
    b";",
    b",",
    b"\x7f",
    b"HTTP/1.1",
)


def line(random: random.Random, files: str) -> Case:
    """A request line that may be anything."""
    method, target, version = b"POST", b"/graphql", b"HTTP/1.1"
    if random.random() < 0.5:
        method = random.choice(METHODS)
    if random.random() < 0.6:
        target = random.choice(
            (*TARGETS, files.encode() + b"00000000-0000-0000-0000-000000000000?expires=1e9&signature=%00")
        )
    if random.random() < 0.3:
        version = random.choice(VERSIONS)
    body = TYPENAME if random.random() < 0.7 else b""
    head = method + b" " + target + b" " + version + b"\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return Case(
        "request line", (head + b"Content-Length: %d\r\n\r\n" % len(body) + body,), Due.PERHAPS, (method,), False
    )


def host(random: random.Random, files: str) -> Case:
    hosts = (
        b"",
        b"a",
        b"127.0.0.1:1",
        b"[::1]",
        b"[",
        b"localhost",
        b"\xff",
        b"a b",
        b"x" * 300,
        b"evil.example",
        b"a:b:c",
    )
    lines = b"".join(b"Host: " + random.choice(hosts) + b"\r\n" for _ in range(random.choice((0, 1, 1, 2))))
    sent = b"POST /graphql HTTP/1.1\r\n" + lines + b"Content-Type: application/json\r\n"
    return Case("host", (sent + b"Content-Length: %d\r\n\r\n" % len(TYPENAME) + TYPENAME,), Due.PERHAPS)


def mutated(random: random.Random, files: str) -> Case:
    """Good requests of which some bytes are others."""
    sent = bytearray(_good(random))
    for _ in range(random.choice((1, 1, 2, 3, 10))):
        place, what = random.randrange(len(sent) + 1), random.random()
        if what < 0.5:
            sent[place : place + random.randrange(3)] = random.choice(MEANING)
        elif what < 0.75:
            del sent[place : place + random.choice((1, 2, 20))]
        else:
            sent[place : place + 1] = bytes((random.randrange(256),))
    return Case("bytes", _pieces(bytes(sent), random), Due.PERHAPS, graphql=False)


def chunked(random: random.Random, files: str) -> Case:
    """A body in chunks, with something wrong about them."""
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in _pieces(TYPENAME, random)] + [b"0\r\n\r\n"]
    for _ in range(random.choice((0, 1, 1, 2))):
        place = random.randrange(len(chunks))
        size, _, rest = chunks[place].partition(b"\r\n")
        chunks[place] = random.choice(
            (
                size.upper() + b"\r\n" + rest,
                b"0" * random.choice((1, 20, 5_000)) + size + b"\r\n" + rest,
                size + b";ext=" + b"a" * random.choice((1, 40_000)) + b"\r\n" + rest,
                b"-" + size + b"\r\n" + rest,
                b"+" + size + b"\r\n" + rest,
                b"0x" + size + b"\r\n" + rest,
                b"f" * random.choice((8, 16, 17, 100)) + b"\r\n" + rest,
                b"\r\n" + rest,
                size + b"\n" + rest,
                size + b" \r\n" + rest,
                size + b"\r\n" + rest[:-2],
                size + b"\r\n" + rest[:-2] + b"xx",
                b"zz\r\n" + rest,
                size,
                b"",
                size + b"\r\nTrailer: a\r\n" + rest,
                b"0\r\nContent-Length: 1\r\nHost: b\r\n\r\n",
                b"0\r\n" + b"A: b\r\n" * random.choice((2, 3_000)) + b"\r\n",
            )
        )
    codings = (
        b"chunked",
        b"chunked",
        b"chunked",
        b"Chunked",
        b"gzip, chunked",
        b"chunked, gzip",
        b"identity",
        b"chunked,",
        b"\x0bchunked",
        b"chunked\r\nTransfer-Encoding: chunked",
        b"x",
    )
    head = b"POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: "
    sent = (head + random.choice(codings) + b"\r\n\r\n", *chunks)
    return Case("chunks", (b"".join(sent),) if random.random() < 0.7 else sent, Due.PERHAPS)


def lengths(random: random.Random, files: str) -> Case:
    """Lies about how long the body is."""
    body, actual = TYPENAME, len(TYPENAME)
    told = random.choice(
        (
            *(
                b"%d" % (actual - 3),
                b"%d" % (actual + 3),
                b"0",
                b"-1",
                b"+%d" % actual,
                b"1e2",
                b"0x10",
                b" %d " % actual,
            ),
            *(
                b"9" * 18,
                b"9" * 19,
                b"9" * 30,
                b"18446744073709551615",
                b"%d, %d" % (actual, actual),
                b"",
                b"a",
                b"1_0",
            ),
            *(b"%d\r\nContent-Length: %d" % (actual, actual), b"%d\r\nContent-Length: 3" % actual, b"16777217"),
            *(b"%d\r\nTransfer-Encoding: chunked" % actual, b"00%d" % actual, "٣".encode(), b"%d.0" % actual),
        )
    )
    sent = b"POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: " + told
    return Case("lengths", (sent + b"\r\n\r\n" + body,), Due.PERHAPS)


def pipelined(random: random.Random, files: str) -> Case:
    """Several requests at once, all of them good; up to as many as may wait."""
    many = random.choice((2, 3, 8, 16))
    one = [_good(random) for _ in range(many)]
    sent = b"".join(one)
    return Case("pipelined", _pieces(sent, random), methods=tuple(each.split(b" ")[0] for each in one))


def flooded(random: random.Random, files: str) -> Case:
    """More requests at once than may wait, or followed by what is none."""
    sent = _good(random) * random.choice((17, 40)) if random.random() < 0.5 else _good(random) + frames.noise(random)
    return Case("too many at once", (sent,), Due.PERHAPS, (b"POST",) * 50)


def headers(random: random.Random, files: str) -> Case:
    """Header lines that are none, or too many, or too long."""
    lines = [random.choice(NAMES) + b": " + random.choice(VALUES) for _ in range(random.choice((0, 1, 3)))]
    lines.append(
        random.choice(
            (
                *(
                    b"A",
                    b": b",
                    b" A: b",
                    b"A : b",
                    b"A\t: b",
                    b"A:b\r\n folded",
                    b"A:b\r\n\tfolded",
                    b"A:\x00",
                    b"\x00: b",
                ),
                *(
                    b"A:" + b"b" * 40_000,
                    b"A" * 40_000 + b":b",
                    b"\r\n".join([b"A: b"] * 150),
                    b"A:b\rC:d",
                    b"A:b\nC:d",
                ),
                *(
                    "é: é".encode(),
                    b"(): b",
                    b"A\xff: b",
                    b"Connection: close, keep-alive",
                    b"Connection: \xff",
                    b"A:\x7f",
                ),
                *(
                    b"Expect: 200-ok",
                    b"Expect: 100-continue",
                    b"Upgrade: h2c\r\nConnection: Upgrade",
                    b"Connection: upgrade",
                ),
                *(b"Upgrade: websocket", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", b"Content-Length : 3", b"a:\x0b"),
            )
        )
    )
    random.shuffle(lines)
    sent = b"POST /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" + b"\r\n".join(lines)
    sent += b"\r\nContent-Length: %d\r\n\r\n" % len(TYPENAME) + TYPENAME
    return Case("header lines", (sent,), Due.PERHAPS)


def unfinished(random: random.Random, files: str) -> Case:
    sent = _good(random)
    return Case("unfinished", (sent[: random.randrange(1, len(sent))],), Due.PERHAPS)


def _good(random: random.Random) -> bytes:
    if random.random() < 0.2:
        return request(b"GET", b"/graphql?query=%7B__typename%7D", b"", [])
    body = TYPENAME
    if random.random() < 0.6:
        body = json.dumps({"query": f'{{ user(id: "u{random.randrange(40)}") {{ segments {{ slug }} }} }}'}).encode()
    return request(b"POST", b"/graphql", body, [JSON])


def _pieces(sent: bytes, random: random.Random) -> tuple[bytes, ...]:
    """As they may arrive."""
    if len(sent) < 2 or random.random() < 0.4:
        return (sent,)
    cuts = sorted({random.randrange(1, len(sent)) for _ in range(random.choice((1, 2, 5)))})
    return tuple(sent[begin:end] for begin, end in zip((0, *cuts), (*cuts, len(sent)), strict=True))


KINDS: dict[Callable[[random.Random, str], Case], int] = {
    line: 5,
    host: 1,
    mutated: 6,
    chunked: 4,
    lengths: 2,
    pipelined: 2,
    flooded: 1,
    headers: 4,
    unfinished: 1,
    frames.websocket: 3,
}


def case(random: random.Random, files: str) -> Case:
    return random.choices(list(KINDS), list(KINDS.values()))[0](random, files)
