"""Requests in good order as far as HTTP goes, with anything in their bodies, parameters and headers."""

import gzip
import hashlib
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes

import generating
from generated_values import Values
from graphql import GraphQLSchema

from fuzzing import documents, texts
from fuzzing.cases import Case, Due

Headers = list[tuple[bytes, bytes]]

JSON = (b"Content-Type", b"application/json")
CONTENT_TYPES = (
    *(b"application/json; charset=utf-8", b"application/json;charset=UTF8", b"application/json; charset=utf-16"),
    *(b"application/json; charset=latin-1", b"application/json; charset=", b'application/json; charset="utf-8"'),
    *(b"application/graphql", b"application/graphql+json", b"text/plain", b"text/html", b"application/xml", b""),
    *(b"multipart/form-data; boundary=x", b"multipart/form-data", b"application/x-www-form-urlencoded", b";", b"/"),
    *(b"application/json, text/plain", b"APPLICATION/JSON", b"application/json" + b";a=b" * 500, b"\xff\xfe", b"*/*"),
)
ACCEPTS = (
    *(b"*/*", b"application/json", b"application/graphql-response+json", b"text/html", b"text/event-stream", b"", b","),
    *(b"application/json;q=0", b"application/json;q=nan", b"application/json;q=1e999", b"application/json;q=-1", b"*"),
    *(b"text/*", b"image/png", b"a/b;c=d;q=0.5, */*;q=0.1", b";q=1", b"application/*;q=0.001", b"\xff", b"q" * 2_000),
    *(
        b"application/json;q=0.5.5",
        b'application/json;x="a,b"',
        b"*/json",
        b"a" + b",a" * 400,
        b"/",
        b"text/html;level=1",
    ),
)
ENCODINGS = (b"gzip", b"br", b"deflate", b"identity", b"zstd", b"gzip, gzip", b"", b"x" * 200, b"*")
NAMES = (
    *(b"Accept-Encoding", b"Accept-Language", b"Authorization", b"Cookie", b"Origin", b"Referer", b"User-Agent", b"X"),
    *(b"X-Forwarded-For", b"X-Forwarded-Proto", b"Forwarded", b"X-Request-Id", b"traceparent", b"tracestate", b"Range"),
    *(b"If-None-Match", b"If-Modified-Since", b"Expect", b"TE", b"Trailer", b"Via", b"Date", b"Max-Forwards", b"From"),
    *(
        b"Sec-Fetch-Site",
        b"Sec-Fetch-Mode",
        b"Access-Control-Request-Method",
        b"Access-Control-Request-Headers",
        b"DNT",
    ),
    *(b"X-HTTP-Method-Override", b"Proxy-Authorization", b"Content-Language", b"GraphQL-Require-Preflight", b"Upgrade"),
    *(b"Apollo-Require-Preflight", b"Content-MD5", b"Keep-Alive", b"X-Apollo-Operation-Name", b"!#$%&'*+-.^_`|~0"),
)
VALUES = (
    *(b"", b"null", b"0", b"-1", b"9" * 300, b"Bearer", b"Bearer ", b"Bearer x.y.z", b"Basic Og==", b"Bearer \xff\xfe"),
    *(b"Bearer sql_" + b"a" * 200, b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"null", b"https://evil.example"),
    *(b"bytes=0-", b'for="[::1]"', b"127.0.0.1", b"::1", b"unknown", b", , ,", b"\t a \t", b'a=b; c="d', b"%00%ff"),
    *(b"cross-site", b"navigate", b"100-continue", b"trailers", b"http", b"\x80\x9f\xa0\xff", b"x" * 8_000, b"()<>@"),
    *(b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.", b"Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.", "é🦊".encode(), b"h2c"),
)
TYPENAME = json.dumps({"query": "{ __typename }"}).encode()


@dataclass
class Writer:
    """Writes requests in the name of one chance."""

    schema: GraphQLSchema
    values: Values
    random: random.Random
    known: list[str]
    operations: list[documents.Operation]

    def case(self) -> Case:
        kinds, weights = zip(*KINDS.items(), strict=True)
        kind = self.random.choices(kinds, weights)[0]
        made: Case = kind(self)
        return made

    def document(self) -> Case:
        asked: dict[str, Any] = {"query": documents.document(self.known, self.random)}
        if self.random.random() < 0.3:
            asked["variables"] = {"id": "u1", "v": True, "skip": texts.value(self.random)}
        return post("document", texts.dumped(asked, self.random))

    def drawn(self) -> Case:
        # Large ones are right to take long.
        fields = self.random.choice((2, 3, 4, 6, 8, 12))
        made = generating.Writer(self.schema, self.values, self.random, fields).document()
        drawn = generating.case(made, self.values, self.random)
        return post("drawn query", drawn.body, *([(b"Accept", drawn.accept.encode())] if drawn.accept else []))

    def variables(self) -> Case:
        operation = self.random.choice([each for each in self.operations if each.kind != "subscription"])
        given: Any = documents.good_variables(operation, self.values, self.random)
        for _ in range(self.random.choice((0, 1, 1, 1, 2))):
            given = texts.spoiled(given, self.random)
        return post("variables", texts.dumped({"query": operation.text, "variables": given}, self.random))

    def json(self) -> Case:
        random, body = self.random, TYPENAME
        if random.random() < 0.5:
            operation = random.choice(self.operations)
            given = documents.good_variables(operation, self.values, random)
            body = texts.dumped({"query": operation.text, "variables": given}, random)
        return post("json", random.choice(SPOILING)(body, random))

    def parameters(self) -> Case:
        asked: Any = {
            "query": self.random.choice(self.known),
            "variables": {"id": "u1"},
            "operationName": "Q",
            "extensions": {"persistedQuery": {"version": 1, "sha256Hash": hashlib.sha256(b"{a}").hexdigest()}},
        }
        for name in list(asked):
            if self.random.random() < 0.4:
                del asked[name]
        for name in ("documentId", "doc_id", "id", "extra", "batch", "operationName"):
            if self.random.random() < 0.1:
                asked[name] = texts.value(self.random)
        for _ in range(self.random.choice((1, 1, 2, 3))):
            asked = texts.spoiled(asked, self.random)
        return post("parameters", texts.dumped(asked, self.random))

    def persisted(self) -> Case:
        text = self.random.choice((*self.known, f"{{ a{self.random.randrange(50)}: __typename }}"))
        digest: Any = hashlib.sha256(text.encode()).hexdigest()
        named: Any = {"version": 1, "sha256Hash": digest}
        if self.random.random() < 0.5:
            named = texts.spoiled(named, self.random)
        asked = {"query": text, "extensions": {"persistedQuery": named}}
        if self.random.random() < 0.5:
            del asked["query"]
        return post("persisted", texts.dumped(asked, self.random))

    def in_url(self) -> Case:
        random = self.random
        given = {
            "query": documents.document(self.known, random) if random.random() < 0.5 else random.choice(self.known),
            "variables": texts.dumped(texts.value(random), random).decode("utf-8", "surrogatepass"),
            "operationName": texts.text(random),
            "extensions": texts.dumped(texts.value(random), random).decode("utf-8", "surrogatepass"),
        }
        pairs = [
            f"{name}={quote_from_bytes(each.encode('utf-8', 'surrogatepass'))}"
            for name, each in given.items()
            if random.random() < 0.6
        ]
        query = random.choice(("&", "&", "&", ";", "&&", "&=&")).join(pairs + pairs[: random.randrange(2)])
        if random.random() < 0.2 and query:
            place = random.randrange(len(query))
            query = (
                query[:place] + random.choice(("%", "%zz", "%00", "+", "#", "?", "%ff%fe", "%ed%a0%80")) + query[place:]
            )
        headers = [(b"Accept", random.choice(ACCEPTS[:3]))] if random.random() < 0.5 else []
        return Case(
            "in the URL", (request(b"GET", f"/graphql?{query[:8000]}".encode(), b"", headers),), methods=(b"GET",)
        )

    def headers(self) -> Case:
        random = self.random
        headers: Headers = [JSON]
        body = TYPENAME
        chance = random.random()
        if chance < 0.3:
            headers = [(b"Content-Type", random.choice(CONTENT_TYPES)) for _ in range(random.choice((0, 1, 1, 1, 2)))]
        elif chance < 0.5:
            headers += [(b"Accept", random.choice(ACCEPTS)) for _ in range(random.choice((1, 1, 2, 20)))]
        elif chance < 0.65:
            headers.append((b"Content-Encoding", random.choice(ENCODINGS)))
            body = random.choice((body, gzip.compress(body), gzip.compress(body)[:-4], zlib.compress(body)))
        else:
            for _ in range(random.choice((1, 1, 2, 5, 90))):
                headers.append((random.choice(NAMES[:-1]), random.choice(VALUES)))
        names = {name for name, _ in headers}
        # An upgrade is another kind's; what expects to be told to go on is told so.
        headers = [each for each in headers if each[0] != b"Upgrade"]
        streams = any(b"stream" in value or b"*" in value for name, value in headers if name == b"Accept")
        case = post("headers", body, *headers, plain=True)
        return Case(case.kind, case.sent, Due.STREAM) if streams or b"Expect" in names else case

    def stream(self) -> Case:
        random = self.random
        operation = random.choice([each for each in self.operations if each.kind != "mutation"])
        given: Any = documents.good_variables(operation, self.values, random)
        if random.random() < 0.5:
            given = texts.spoiled(given, random)
        asked: Any = {"query": operation.text, "variables": given}
        if random.random() < 0.2:
            asked = texts.spoiled(asked, random)
        case = post("server-sent events", texts.dumped(asked, random), (b"Accept", b"text/event-stream"))
        return Case(case.kind, case.sent, Due.STREAM)


def post(kind: str, body: bytes, *headers: tuple[bytes, bytes], plain: bool = False) -> Case:
    given = list(headers) if plain else [JSON, *headers]
    return Case(kind, (request(b"POST", b"/graphql", body, given),))


def request(method: bytes, target: bytes, body: bytes, headers: Headers) -> bytes:
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: 127.0.0.1"]
    lines += [name + b": " + value for name, value in headers]
    if body or method == b"POST":
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + body


def _nested(body: bytes, random: random.Random) -> bytes:
    n = random.choice((10, 200, 1_000, 20_000))
    return b'{"query":"{__typename}","variables":{"a":' + random.choice((b"[" * n + b"]" * n, b'{"a":' * n)) + b"}}"


def _utf(body: bytes, random: random.Random) -> bytes:
    text = body.decode("utf-8", "replace")
    return random.choice(
        (
            text.encode("utf-16"),
            text.encode("utf-16-le"),
            text.encode("utf-32"),
            b"\xef\xbb\xbf" + body,
            text.replace("a", "\xe9").encode("latin-1", "replace"),
            text.encode("utf-7"),
        )
    )


def _bytes(body: bytes, random: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(random.choice((1, 1, 2, 8))):
        place = random.randrange(len(changed) + 1)
        what = random.random()
        if what < 0.4:
            changed[place:place] = random.choice(
                (
                    b"\x00",
                    b"\xff",
                    b"\xc0\x80",
                    b"\xed\xa0\x80",
                    b"\xf4\x90\x80\x80",
                    b'"',
                    b"\\",
                    b"\\u",
                    b"{",
                    b"]",
                    b",",
                )
            )
        elif what < 0.7:
            del changed[place : place + random.choice((1, 1, 3, 40))]
        else:
            changed[place : place + 1] = bytes((random.randrange(256),))
    return bytes(changed)


def _other(body: bytes, random: random.Random) -> bytes:
    return random.choice(
        (
            b"",
            b"[]",
            b"[" + body + b"]",
            b"null",
            b'"query"',
            b"0",
            b"{}",
            body + body,
            body + b" \n\t ",
            body[: len(body) // 2],
            b" " * 10_000 + body,
            b'{"query":"{__typename}","query":"{x}"}',
            b'{"query":"{__typename}","variables":{"a":' + b"9" * random.choice((20, 400, 5_000)) + b"}}",
            b'{"query":"{__typename}","variables":{"a":1e' + b"9" * random.choice((3, 20, 400)) + b"}}",
            b'{"query":"{__typename}","variables":{"a":NaN,"b":-Infinity}}',
            b'{"\\u0000":1,"\\ud800":2,"query":"{__typename}"}',
            b'{"query":"{__typename}","variables":{"a":[' + b"[]," * random.choice((10, 5_000)) + b"1]}}",
            bytes(random.randrange(256) for _ in range(random.choice((1, 10, 1_000)))),
        )
    )


SPOILING: tuple[Callable[[bytes, random.Random], bytes], ...] = (_bytes, _bytes, _other, _other, _utf, _nested)
# How many of so many requests.
KINDS: dict[Callable[[Writer], Case], int] = {
    Writer.document: 24,
    Writer.drawn: 10,
    Writer.variables: 20,
    Writer.json: 14,
    Writer.parameters: 10,
    Writer.persisted: 4,
    Writer.in_url: 8,
    Writer.headers: 8,
    Writer.stream: 2,
}
