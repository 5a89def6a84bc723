"""Imports as callers make them."""

import csv
import gzip
import io
from typing import Any

from background import TASK_FIELDS, finished
from conftest import Client
from operations import ERRORS, new_key

FIELDS = f"{TASK_FIELDS} uploadUrl importResult {{ dryRun rows added updated removed unchanged duplicate invalid }}"
IMPORT = f"""mutation ($input: ImportMembersInput!, $key: String!) {{
  importMembers(input: $input, idempotencyKey: $key) {{ task {{ {FIELDS} }} {ERRORS} }} }}"""
TASK = f"query ($id: ID!) {{ task(id: $id) {{ {FIELDS} }} }}"
NAMES = ("added", "updated", "removed", "unchanged", "duplicate", "invalid")


async def ask_to_import(client: Client, slug: str, *, key: str = "", **input: Any) -> Any:
    """The whole payload, refusals included."""
    return (await client.ask(IMPORT, input={"slug": slug, **input}, key=key or new_key()))["importMembers"]


async def started(client: Client, slug: str, content: bytes | str, *, packed: bool = False, **input: Any) -> str:
    """The id of an import whose file is there."""
    payload = await ask_to_import(client, slug, **input)
    assert payload["userErrors"] == []
    content = content.encode() if isinstance(content, str) else content
    answer = await client.http.put(payload["task"]["uploadUrl"], content=gzip.compress(content) if packed else content)
    assert answer.status_code == 200, answer.text
    task_id: str = payload["task"]["id"]
    return task_id


async def imported(client: Client, slug: str, content: bytes | str, **input: Any) -> Any:
    """The task, once it has ended."""
    return await ended(client, await started(client, slug, content, **input))


async def ended(client: Client, task_id: str) -> Any:
    await finished(client, task_id)
    return (await client.ask(TASK, id=task_id))["task"]


def counts(task: Any) -> tuple[int, ...]:
    """Added, updated, removed, unchanged, duplicate and invalid."""
    assert task["status"] == "SUCCEEDED", task
    return tuple(task["importResult"][name] for name in NAMES)


async def rejects(client: Client, task: Any) -> list[tuple[int, str]]:
    """Lines and codes."""
    answer = await client.http.get(task["file"]["url"])
    header, *rows = csv.reader(io.StringIO(answer.content.decode(), newline=""))
    assert header == ["line", "code", "reason", "row"]
    assert len(rows) == task["file"]["rows"]
    assert all(row[2] for row in rows)
    return [(int(row[0]), row[1]) for row in rows]
