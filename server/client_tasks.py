"""A background task as a client sees it: asked for once, whatever happens, and followed to its end."""

import time
from dataclasses import dataclass
from pathlib import Path

from server.client import Api, Json
from server.client_bars import Bars
from server.client_state import Kept, Over, begun
from server.transfers import Source, delivered, download, upload

FIELDS = "id status progress rowsDone startedAt finishedAt pollAfterMs error file { url bytes rows sha256 }"
# However eager the server is.
SHORTEST_PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked for: a mutation, the type of its input, and what is asked of its task besides FIELDS."""

    # For the bar.
    name: str
    mutation: str
    input: str
    more: str = ""

    @property
    def start(self) -> str:
        return (
            f"mutation ($input: {self.input}!, $key: String!) {{ "
            f"{self.mutation}(input: $input, idempotencyKey: $key) {{ "
            f"task {{ {FIELDS} {self.more} }} userErrors {{ code message path }} }} }}"
        )

    @property
    def look(self) -> str:
        return f"query ($id: ID!) {{ task(id: $id) {{ {FIELDS} {self.more} }} }}"


REPORT = Work("report", "generateReport", "GenerateReportInput")
EXPORT = Work("export", "exportMembers", "ExportMembersInput")
IMPORT = Work(
    "import",
    "importMembers",
    "ImportMembersInput",
    "uploadUrl importResult { dryRun rows added updated removed unchanged duplicate invalid }",
)


def finished(api: Api, bars: Bars, work: Work, place: tuple[Path, Kept], source: Source | None = None) -> Json:
    """The task, once it has SUCCEEDED; a task that waits for the source gets it."""
    task = _asked_for(api, bars, work, place)
    if source is not None and task["finishedAt"] is None and task["uploadUrl"] is not None:
        task = _supplied(api, bars, work, task, source)
    show = bars.of_task(work.name)
    while task["finishedAt"] is None:
        show(task)
        time.sleep(max(SHORTEST_PAUSE, (task["pollAfterMs"] or 0) / 1000))
        task = _seen(api, work, task["id"])
    show(task)
    if task["status"] != "SUCCEEDED":
        why = f"has FAILED: {task['error']}" if task["status"] == "FAILED" else f"was {task['status']}."
        raise Over(f"The {work.name} {task['id']} {why}")
    return task


def fetch(api: Api, bars: Bars, work: Work, task: Json, path: Path | None) -> int:
    """Bring the task's file to its place, or standard output, and say how many rows it has."""
    if task["file"] is None:
        raise _gone(work, task)
    show = bars.of_bytes("download", task["file"]["bytes"])
    with delivered(path) as target:

        def attempt() -> None:
            # A link is good for some minutes, and what this waits for may take longer.
            file = _seen(api, work, task["id"])["file"]
            if file is None:
                raise _gone(work, task)
            download(api.http, file, target, show)

        api.patience.persist(attempt)
        if path is None:
            # Bars that are drawn again would wipe out what is printed below them.
            bars.stop()
    rows: int = task["file"]["rows"]
    return rows


def _gone(work: Work, task: Json) -> Over:
    return Over(f"The file of the {work.name} {task['id']} was removed: it is kept for some days only.")


def _asked_for(api: Api, bars: Bars, work: Work, place: tuple[Path, Kept]) -> Json:
    path, kept = place
    if kept.task_id is not None:
        bars.say(f"Going on with the {work.name} {kept.task_id}, which an earlier run has begun.")
        return _seen(api, work, kept.task_id)
    task: Json | None = api.mutate(work.start, input=kept.input, key=kept.key)["task"]
    if task is None:
        raise Over(f"The {work.name} was done before, and is forgotten.")
    begun(path, kept, task["id"])
    return task


def _seen(api: Api, work: Work, task_id: str) -> Json:
    task: Json | None = api.ask(work.look, id=task_id)["task"]
    if task is None:
        raise Over(f"The server knows of no {work.name} {task_id} of yours; it may have forgotten it.")
    return task


def _supplied(api: Api, bars: Bars, work: Work, task: Json, source: Source) -> Json:
    """The task, when it no longer waits for its file."""
    show = bars.of_bytes("upload", source.size)

    def attempt() -> Json:
        # The server may have it although its answer was lost, and the link may have expired.
        waiting = _seen(api, work, task["id"])
        if waiting["uploadUrl"] is not None:
            upload(api.http, waiting["uploadUrl"], source, show)
        return waiting

    api.patience.persist(attempt)
    return _seen(api, work, task["id"])
