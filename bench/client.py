"""What callers of the service say, and how they wait for its tasks."""

import http.client
import itertools
import json
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

ERRORS = "userErrors { code message path }"
TASK = "id status rowsDone startedAt finishedAt error file { url bytes rows sha256 }"
CREATE = f"""mutation ($slug: String!, $key: String!) {{
  createSegment(input: {{slug: $slug}}, idempotencyKey: $key) {{ {ERRORS} }} }}"""
DELETE = (
    f"mutation ($slug: String!, $key: String!) {{ deleteSegment(slug: $slug, idempotencyKey: $key) {{ {ERRORS} }} }}"
)
CHANGE = f"""mutation ($input: ChangeUserSegmentsInput!, $key: String!) {{
  changeUserSegments(input: $input, idempotencyKey: $key) {{ added {ERRORS} }} }}"""
REPORT = f"""mutation ($input: GenerateReportInput!, $key: String!) {{
  generateReport(input: $input, idempotencyKey: $key) {{ task {{ id }} {ERRORS} }} }}"""
LOOK = f"query ($id: ID!) {{ task(id: $id) {{ {TASK} }} }}"
CLEANUPS = f"{{ tasks(first: 1, kind: SEGMENT_CLEANUP) {{ nodes {{ {TASK} }} }} }}"
# A few looks a second: the service has better things to do.
PAUSE_SECONDS = 0.2
PIECE_BYTES = 1024 * 1024

_numbers = itertools.count(1)


def key() -> str:
    return f"bench-key-{next(_numbers)}-{time.time_ns()}"


@dataclass(frozen=True, slots=True)
class Done:
    """A task that succeeded."""

    task: dict[str, Any]

    @property
    def seconds(self) -> float:
        began, ended = (datetime.fromisoformat(self.task[name]) for name in ("startedAt", "finishedAt"))
        return (ended - began).total_seconds()

    @property
    def rows(self) -> int:
        return int(self.task["rowsDone"])


class Client:
    """One connection, and which process it goes to, if that was said."""

    def __init__(self, host: str, port: int, pid: int | None = None) -> None:
        self.host, self.port, self.pid = host, port, pid
        self._connection = http.client.HTTPConnection(host, port, timeout=60)

    def ask(self, query: str, **variables: object) -> Any:
        """Send one operation; its `data` is returned. Raises when it was refused."""
        body = json.dumps({"query": query, "variables": variables})
        self._connection.request("POST", "/graphql", body, {"Content-Type": "application/json"})
        answer = json.loads(self._connection.getresponse().read())
        if "errors" in answer or any(payload["userErrors"] for payload in _payloads(answer["data"])):
            raise RuntimeError(f"the service refused: {answer}")
        return answer["data"]

    def create(self, slug: str) -> None:
        self.ask(CREATE, slug=slug, key=key())

    def delete(self, slug: str) -> float:
        """How many seconds it took."""
        began = time.perf_counter()
        self.ask(DELETE, slug=slug, key=key())
        return time.perf_counter() - began

    def report(self, since: datetime, until: datetime) -> Done:
        period = {"from": since.isoformat(), "to": until.isoformat()}
        task_id = self.ask(REPORT, input=period, key=key())["generateReport"]["task"]["id"]
        while (done := _done(self.ask(LOOK, id=task_id)["task"])) is None:
            time.sleep(PAUSE_SECONDS)
        return done

    def cleanup(self) -> Done:
        """The cleanup that was begun last, when it is done."""
        while (done := _done(self.ask(CLEANUPS)["tasks"]["nodes"][0])) is None:
            time.sleep(PAUSE_SECONDS)
        return done

    def download(self, url: str, path: Path) -> None:
        parts = urlsplit(url)
        self._connection.request("GET", f"{parts.path}?{parts.query}")
        response = self._connection.getresponse()
        assert response.status == http.HTTPStatus.OK, response.read()
        with path.open("wb") as file:
            while piece := response.read(PIECE_BYTES):
                file.write(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def _payloads(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [payload for payload in answer.values() if isinstance(payload, dict) and "userErrors" in payload]


def _done(task: dict[str, Any]) -> Done | None:
    if task["status"] in ("QUEUED", "RUNNING"):
        return None
    if task["status"] != "SUCCEEDED":
        raise RuntimeError(f"the task did not succeed: {task}")
    return Done(task)
