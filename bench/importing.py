"""Imports as callers ask for them, send their files, and wait for them."""

import http.client
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.broken import Member, copied
from bench.client import ERRORS, Client, Done, key
from bench.databases import Database

COUNTS = ("added", "updated", "removed", "unchanged", "duplicate", "invalid")
IMPORT = f"""mutation ($input: ImportMembersInput!, $key: String!) {{
  importMembers(input: $input, idempotencyKey: $key) {{ task {{ id uploadUrl }} {ERRORS} }} }}"""
LOOK = f"""query ($id: ID!) {{ task(id: $id) {{
  id status progress rowsDone startedAt finishedAt error file {{ url bytes rows sha256 }}
  importResult {{ rows {" ".join(COUNTS)} }} }} }}"""
MEMBERS = "(user_id, segment_id, added_at, expires_at)"
EVENTS = "(user_id, segment_id, action, at, operation_id, expires_at)"
# Short beside a step of an import: what goes on during one is to be seen.
PAUSE_SECONDS = 0.05
# A minute is what most uploads take at the very most.
PATIENCE = 60


def begin(client: Client, slug: str, path: Path, mode: str = "ADD") -> str:
    """The id of an import whose file was sent."""
    task = client.ask(IMPORT, input={"slug": slug, "mode": mode}, key=key())["importMembers"]["task"]
    parts = urlsplit(task["uploadUrl"])
    connection = http.client.HTTPConnection(client.host, client.port, timeout=PATIENCE)
    try:
        with path.open("rb") as file:
            length = {"Content-Length": str(path.stat().st_size)}
            connection.request("PUT", f"{parts.path}?{parts.query}", file, length)
            response = connection.getresponse()
            assert response.status == http.HTTPStatus.OK, response.read()
    finally:
        connection.close()
    task_id: str = task["id"]
    return task_id


def look(client: Client, task_id: str) -> dict[str, Any]:
    task: dict[str, Any] = client.ask(LOOK, id=task_id)["task"]
    if task["status"] not in ("QUEUED", "RUNNING", "SUCCEEDED"):
        raise RuntimeError(f"the import did not succeed: {task}")
    return task


def end(client: Client, task_id: str) -> Done:
    """The import, when it is done."""
    while (task := look(client, task_id))["status"] != "SUCCEEDED":
        time.sleep(PAUSE_SECONDS)
    return Done(task)


def counts(done: Done) -> dict[str, int]:
    return {name: int(done.task["importResult"][name]) for name in COUNTS}


def put_in(database: Database, segment: int, members: list[Member], at: datetime) -> None:
    """Members who have been there since some instant, with their history."""
    copy_in(database, f"memberships {MEMBERS}", copied(members, f"{segment}\t{at}"))
    copy_in(database, f"membership_events {EVENTS}", copied(members, f"{segment}\tADDED\t{at}\t1"))


def copy_in(database: Database, what: str, lines: Iterable[str]) -> float:
    """Seconds that psql's own copy takes."""
    path = database.folder / "copy.txt"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)
    began = time.perf_counter()
    database.sql(f"\\copy {what} FROM '{path}'")
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds
