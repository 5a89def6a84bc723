"""Reading answers as strictly as a proxy would, and what is wrong about one."""

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [ -~]*\r\n")
HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t -~\x80-\xff]*)\r\n")
BODILESS = (204, 304)
JSON_TYPES = (b"application/json", b"application/graphql-response+json")
# What else there is here: pages and what belongs to them, streams, and the router's own answers.
OTHER_TYPES = (b"text/plain", b"text/html", b"text/css", b"text/javascript", b"text/event-stream", b"image/")
CODES = {
    *("GRAPHQL_PARSE_FAILED", "GRAPHQL_VALIDATION_FAILED", "BAD_USER_INPUT", "LIMIT_EXCEEDED", "FORBIDDEN"),
    *("UNAUTHENTICATED", "PERSISTED_QUERY_NOT_FOUND", "PERSISTED_QUERY_NOT_SUPPORTED"),
}


class MalformedError(Exception):
    """What was read is no answer."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    # The body goes on: it is a stream.
    streams: bool = False

    def header(self, name: bytes) -> bytes:
        return next((value for known, value in self.headers if known == name), b"")

    @property
    def closes(self) -> bool:
        return self.header(b"connection").lower() == b"close"


async def read(reader: asyncio.StreamReader, method: bytes) -> Answer | None:
    """The next answer; None when the connection has ended before it began. Raises MalformedError."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise MalformedError(f"it breaks off: {error.partial[:200]!r}") from error
        return None
    except asyncio.LimitOverrunError as error:
        raise MalformedError("its headers do not end") from error
    status, headers = _head(head)
    if status == 100:
        return await read(reader, method)
    answer = Answer(status, headers, b"")
    if status == 101 or method == b"HEAD" or status in BODILESS:
        return answer
    if answer.header(b"content-type").startswith(b"text/event-stream"):
        return Answer(status, headers, b"", streams=True)
    try:
        body = await _body(reader, answer)
    except asyncio.IncompleteReadError as error:
        raise MalformedError(f"its body breaks off: {error.partial[:200]!r}") from error
    return Answer(status, headers, body)


def _head(head: bytes) -> tuple[int, tuple[tuple[bytes, bytes], ...]]:
    if (line := STATUS_LINE.match(head)) is None:
        raise MalformedError(f"no status line: {head[:200]!r}")
    headers, place = [], line.end()
    while head[place:] != b"\r\n":
        if (found := HEADER.match(head, place)) is None:
            raise MalformedError(f"no header: {head[place:][:200]!r}")
        headers.append((found[1].lower(), found[2].strip()))
        place = found.end()
    for once in (b"content-length", b"transfer-encoding", b"content-type", b"connection"):
        if sum(name == once for name, _ in headers) > 1:
            raise MalformedError(f"{once.decode()} is there twice")
    return int(line[1]), tuple(headers)


async def _body(reader: asyncio.StreamReader, answer: Answer) -> bytes:
    if answer.header(b"transfer-encoding") == b"chunked":
        if answer.header(b"content-length"):
            raise MalformedError("its length is told in two ways")
        body = b""
        while True:
            size = int((await reader.readuntil(b"\r\n")).strip(), 16)
            body += await reader.readexactly(size)
            if await reader.readexactly(2) != b"\r\n":
                raise MalformedError("a chunk does not end")
            if not size:
                return body
    length = answer.header(b"content-length")
    if not length.isdigit():
        raise MalformedError("its length is not told")
    return await reader.readexactly(int(length))


def wrong(answer: Answer, *, graphql: bool, head: bool) -> str | None:
    """What may not be answered, whatever was asked."""
    if answer.status >= 500:
        return f"status {answer.status}"
    if head or answer.streams or answer.status in (101, *BODILESS):
        return None
    type_ = answer.header(b"content-type").partition(b";")[0]
    if type_ in JSON_TYPES:
        return _wrong_json(answer.body, graphql=graphql)
    if graphql and not (type_ == b"text/html" and answer.status == 200):
        return f"{type_.decode()!r} where JSON is due"
    if answer.body and not type_.startswith(OTHER_TYPES):
        return f"the media type {type_.decode()!r}"
    return None


def _wrong_json(body: bytes, *, graphql: bool) -> str | None:
    try:
        found = strict(body)
    except ValueError as error:
        return f"no JSON: {error}"
    if not isinstance(found, dict):
        return "no JSON object"
    if graphql and not ("errors" in found or isinstance(found.get("data"), dict)):
        return "neither data nor errors"
    return wrong_errors(found.get("errors"))


def wrong_errors(errors: Any) -> str | None:
    if errors is None:
        return None
    if not isinstance(errors, list) or not errors:
        return "errors is no list, or an empty one"
    for error in errors:
        if not isinstance(error.get("message"), str):
            return "an error without a message"
        code = error.get("extensions", {}).get("code")
        if code not in CODES:
            return f"the code {code}: {error['message']}"
    return None


def strict(text: bytes) -> Any:
    return json.loads(text.decode(), parse_constant=_refuse)


def _refuse(name: str) -> Any:
    raise ValueError(name)
