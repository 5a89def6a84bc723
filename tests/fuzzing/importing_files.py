"""Sending files to be imported, and what may become of them."""

import asyncio
import csv
import io
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from conftest import Client
from importing import NAMES, ask_to_import, ended
from operations import create

from fuzzing import files
from fuzzing.files import File

AT_ONCE = 4
# Why a whole file is not imported.
REASONS = re.compile(
    "The file is not whole: its gzip breaks off.|The file is not whole, or no gzip: .*|The header has a column .*|"
    "The file unpacks to more than 100 times its size.",
    re.DOTALL,
)
CODES = {
    *(
        "EMPTY",
        "TOO_LONG",
        "NOT_UTF8",
        "CONTROL_CHARACTER",
        "QUOTING",
        "COLUMN_COUNT",
        "BAD_EXPIRES_AT",
        "BAD_TTL_DAYS",
    ),
    *("IN_THE_PAST", "DUPLICATE"),
}


@dataclass
class Tally:
    kinds: Counter[str] = field(default_factory=Counter)
    # How each ended, and what became of the rows of all.
    ends: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    # Whose counts were compared with those of Python's parser.
    compared: int = 0
    findings: list[tuple[int, File, str]] = field(default_factory=list)


@dataclass
class Segment:
    """What is in a segment after all that was imported in good order; what was broken goes into another."""

    slug: str
    members: dict[str, str | None] = field(default_factory=dict)

    def expected(self, text: bytes, *, dry_run: bool) -> tuple[int, ...]:
        """Added, updated, removed, unchanged, duplicate and invalid."""
        found: Counter[str] = Counter()
        given: dict[str, str | None] = {}
        for row in files.rows(text):
            if row.user_id is None:
                found["invalid"] += 1
            elif row.user_id in given:
                found["duplicate"] += 1
            else:
                given[row.user_id] = row.until
        for user_id, until in given.items():
            if user_id not in self.members:
                found["added"] += 1
            else:
                found["unchanged" if until == self.members[user_id] != "days" else "updated"] += 1
        if not dry_run:
            self.members |= given
        return tuple(found[name] for name in NAMES)


async def run(
    client: Client, seed: int, count: int, passed: Callable[[int], Any] = lambda _n: None, *, bombs: bool = False
) -> Tally:
    tally = Tally()
    # Who sends which is not left to how long each takes: what is in a segment decides what becomes of the next file.
    shares = [range(sender, count, AT_ONCE) for sender in range(AT_ONCE)]
    await asyncio.gather(*(_send(client, seed, share, tally, passed, bombs=bombs) for share in shares))
    return tally


async def _send(
    client: Client, seed: int, share: range, tally: Tally, passed: Callable[[int], Any], *, bombs: bool
) -> None:
    segment, broken = Segment(f"InOrder{share.start}"), f"Broken{share.start}"
    await create(client, segment.slug, broken)
    for number in share:
        chance = random.Random(f"{seed}/{number}")
        file = files.file(chance, bombs=bombs)
        dry_run = chance.random() < 0.3
        slug = broken if file.text is None else segment.slug
        wrong = await _import(client, slug, file, tally, dry_run=dry_run, segment=segment)
        tally.kinds[file.kind] += 1
        if wrong is not None:
            tally.findings.append((number, file, wrong))
        passed(tally.kinds.total())


async def _import(
    client: Client, slug: str, file: File, tally: Tally, *, dry_run: bool, segment: Segment
) -> str | None:
    payload = await ask_to_import(client, slug, dryRun=dry_run)
    answer = await client.http.put(payload["task"]["uploadUrl"], content=file.content)
    if answer.status_code != 200 or answer.json()["bytes"] != len(file.content):
        return f"the upload: {answer.status_code} {answer.text}"
    task = await ended(client, payload["task"]["id"])
    tally.ends[task["status"]] += 1
    if task["status"] == "FAILED":
        if file.text is not None or not REASONS.fullmatch(task["error"]):
            return f"it failed: {task['error']}"
        return None
    if task["status"] != "SUCCEEDED":
        return f"it ended as {task['status']}"
    found = tuple(task["importResult"][name] for name in NAMES)
    tally.rows.update(dict(zip(NAMES, found, strict=True)))
    if sum(found) != task["importResult"]["rows"]:
        return f"{found} are not {task['importResult']['rows']}"
    if file.text is not None:
        tally.compared += 1
        expected = segment.expected(file.text, dry_run=dry_run)
        if found != expected:
            return f"{found}, and not {expected}"
    return await _wrong_rejects(client, task)


async def _wrong_rejects(client: Client, task: Any) -> str | None:
    """Every row that does not count has its line, and is told of once."""
    answer = await client.http.get(task["file"]["url"])
    header, *rejects = csv.reader(io.StringIO(answer.content.decode(), newline=""))
    result = task["importResult"]
    if header != ["line", "code", "reason", "row"] or len(rejects) != result["invalid"] + result["duplicate"]:
        return f"{len(rejects)} rejects of {result}"
    lines = [int(row[0]) for row in rejects]
    if len(set(lines)) != len(lines) or any(not 1 <= line <= result["rows"] + 1 for line in lines):
        return f"rejects of lines {lines[:50]}"
    codes = {row[1] for row in rejects}
    if codes - CODES or not all(row[2] for row in rejects):
        return f"rejects with {codes}"
    return None
