"""Requests made to cost much: how long each keeps the service busy, and how much memory it takes; `make bench-floods`.

Each is sent to a server process of its own. The bounds are those of one request: what a caller may send of them in a
second the limits say.
"""

import json
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from statistics import median

import typer

from bench import databases, figures, memory, processes, seeds
from bench.figures import Json, Results, said

TIMES = 20
MOST_MS, MOST_MB = 50, 10
# A body is held whole, and copied while it is taken apart; how large it may be is a setting.
LARGE, COPIES = 2**21, 3
HEADERS = {"Content-Type": "application/json", "Accept": "application/graphql-response+json"}


def floods() -> Iterator[tuple[str, bytes]]:
    for name, document in documents().items():
        yield name, json.dumps({"query": document}).encode()
    yield "batch", b"[" + b",".join([b'{"query": "{ __typename }"}'] * 10_000) + b"]"
    yield "JSON 100 000 deep", b"[" * 100_000 + b"]" * 100_000
    yield "variables 100 000 deep", b'{"query":"{a}","variables":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    yield "5 MB of empty arrays", b'{"query":"{a}","variables":{"a":[' + b"[]," * 1_700_000 + b"[]]}}"


def documents() -> dict[str, str]:
    numbers = range(1_000)
    return {
        "aliases": _in_user(" ".join(f"a{n}:id" for n in numbers[:600])),
        "depth": "{a" * 190 + "}" * 190,
        "50 directives": "{__typename " + "@skip(if:false)" * 50 + "}",
        "tokens": "{" + "a " * 40_000 + "}",
        "150 doubling fragments": _in_user("...F0", *(f"...F{n + 1} ...F{n + 1}" for n in numbers[:150]), "id"),
        "fragments in a circle": _in_user(
            " ".join(f"...F{n}" for n in numbers[:140]), *(f"id ...F{(n + 1) % 140}" for n in numbers[:140])
        ),
        "2 000 equal fields": _in_user("id " * 1_980),
        "equal fields with others below": _in_user("id{id} " * 490),
        "fields that differ": _in_user(" ".join(f'isIn(slug:"a{n}")' for n in numbers[:320])),
        "fields that differ, in fragments": _in_user(
            " ".join(f"...F{n}" for n in numbers[:140]), *(f'isIn(slug:"a{n}")' for n in numbers[:140])
        ),
        "990 unknown fields": _in_user(" ".join(f"segmentz{n}" for n in numbers[:990])),
        "600 unknown fields of an input": (
            "mutation{createSegment(input:{" + " ".join(f"slugg{n}:1" for n in numbers[:600]) + "}){replayed}}"
        ),
        "unused fragments": "{__typename}" + "".join(f"fragment F{n} on User{{id}}" for n in numbers[:240]),
        "a list 5 000 deep": f"{{users(ids:{'[' * 5_000}{']' * 5_000}){{id}}}}",
        "1 MB of comments": "#\n" * 349_000,
        "1 MB in one comment": "#" * 1_048_000,
        "90 000 line ends": "\n" * 90_000 + _in_user(" x" * 20),
        "introspections": "{" + " ".join(f"a{n}:__schema{{types{{fields{{name}}}}}}" for n in numbers[:20]) + "}",
    }


def measure() -> Results:
    results = Results("floods")
    with databases.running() as database:
        seeds.prepare(database)
        with processes.serving(database, tasks=0) as client:
            assert client.pid is not None
            connection = HTTPConnection(client.host, client.port, timeout=60)
            for _, body in floods():
                _refused(connection, body)
            for name, body in floods():
                with memory.growing(client.pid) as growth:
                    taken = [_refused(connection, body) for _ in range(TIMES)]
                results.raw[name] = {"milliseconds": taken, "resident_mb": growth.resident}
                said(f"{name}: most {max(taken):.0f} ms")
                results.add(f"{name}: median", median(taken), "ms", most=MOST_MS)
                most = MOST_MB + COPIES * len(body) / 2**20
                results.add(f"{name}: memory", growth.resident, "MB", most=most if len(body) > LARGE else MOST_MB)
    return results


def main(json: Json = None) -> None:
    figures.conclude([measure()], json)


def _in_user(selection: str, *fragments: str) -> str:
    definitions = "".join(f" fragment F{n} on User{{{fragment}}}" for n, fragment in enumerate(fragments))
    return f"{{user(id:1){{{selection}}}}}{definitions}"


def _refused(connection: HTTPConnection, body: bytes) -> float:
    """Milliseconds until it was. Raises when it was not."""
    began = time.perf_counter()
    connection.request("POST", "/graphql", body, HEADERS)
    response = connection.getresponse()
    answer = response.read()
    milliseconds = (time.perf_counter() - began) * 1_000
    if response.status not in (400, 413):
        raise RuntimeError(f"the service answered {response.status}: {answer[:200]!r}")
    return milliseconds


if __name__ == "__main__":
    typer.run(main)
