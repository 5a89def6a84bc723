"""One request to two servers, and whether they answer the same."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import pytest
from conftest import Client

from server.fast_path import Begun, FastPath, Written

# What is made anew for every answer: ids of errors, and links with when they end.
OWN = (
    (re.compile(rb"under [0-9a-f]{16}\."), b"under ID."),
    (re.compile(rb'"id":"[0-9a-f]{16}"'), b'"id":"ID"'),
    (re.compile(rb"http://[^\"]*/files/[^\"]*"), b"LINK"),
    (re.compile(rb'"(urlExpiresAt\d*)":"[^"]*"'), rb'"\1":"INSTANT"'),
)
Comparable = tuple[int, tuple[tuple[str, str], ...], bytes]
OWN_HEADERS = frozenset({"date", "x-request-id", "content-length", "ratelimit"})


@dataclass(frozen=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        (*_, found) = [None, *(value for known, value in self.headers if known == name)]
        return found

    @property
    def comparable(self) -> Comparable:
        """What has to be the same of the same answer, given twice."""
        body = self.body
        for pattern, instead in OWN:
            body = pattern.sub(instead, body)
        return self.status, tuple(sorted(pair for pair in self.headers if pair[0] not in OWN_HEADERS)), body


class Connection:
    """Kept from request to request, and costs next to nothing."""

    def __init__(self, client: Client) -> None:
        self._url = client.http.base_url

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def post(self, body: bytes, **headers: str | None) -> Answer:
        self.writer.write(posted(body, **headers))
        answer = await self.answer()
        if answer.header("connection") == "close":
            self.writer.close()
            await self._open()
        return answer

    async def answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *lines = head[:-4].split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        headers = tuple((name.lower(), value) for name, _, value in pairs)
        length = next(int(value) for name, value in headers if name == "content-length")
        return Answer(int(status.split(" ")[1]), headers, await self.reader.readexactly(length))

    async def _open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(self._url.host, self._url.port)


def posted(body: bytes, **headers: str | None) -> bytes:
    """A request as nearly all are; a header's name has underscores for its hyphens."""
    given = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body))}
    given |= {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"POST /graphql HTTP/1.1\r\n{head}\r\n".encode() + body


@asynccontextmanager
async def both(short: Client, long: Client) -> AsyncIterator[tuple[Connection, Connection]]:
    async with Connection(short) as one, Connection(long) as other:
        yield one, other


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts, from now on, the answers by a plan, and those that were begun by one and left to graphql-core."""
    found: Counter[str] = Counter()
    written = FastPath.written

    def counting(self: FastPath, begun: Begun, failure: BaseException | None) -> Written | None:
        answer = written(self, begun, failure)
        found["left" if answer is None else "plan"] += 1
        return answer

    monkeypatch.setattr(FastPath, "written", counting)
    return found
