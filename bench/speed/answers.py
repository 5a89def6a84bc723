"""Whether everybody gives the same answers: a fast wrong one is none."""

import http.client
import json
from typing import Any

from bench.speed import works
from bench.speed.competitors import Competitor
from bench.speed.data import Data
from bench.speed.servers import Server
from bench.speed.works import Work

SAMPLE = 100


class DifferentError(Exception):
    """Somebody's answer is not the one that the others give."""


def check(data: Data, work: Work, competitor: Competitor, server: Server, reference: Server) -> None:
    """Raise DifferentError when an answer is another than the reference gives, or not what a change asks for."""
    document = competitor.documents.get(work.name, work.document)
    for variables in work.variables(data, works.turn())[:SAMPLE]:
        answer = competitor.told(_ask(server, document, variables), variables)
        if "input" in variables:
            changed = {"added": variables["input"]["add"], "replayed": False, "userErrors": []}
            expected: Any = {"changeUserSegments": changed}
        else:
            expected = _ask(reference, work.document, variables)
        if answer != expected:
            raise DifferentError(f"{work.name}: the answer to {variables} is {answer}, and not {expected}")


def _ask(server: Server, document: str, variables: dict[str, Any]) -> Any:
    body = json.dumps({"query": document, "variables": variables}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", server.path, body, {"Content-Type": "application/json"} | server.headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    if "errors" in answer:
        raise DifferentError(f"the answer to {variables} is {answer}")
    return answer["data"]
