"""`segmentql verify` on what changes many at once: lists, imports and rollouts."""

import asyncio
import random
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from background import finished
from conftest import Client, Serve
from databases import fresh, query
from importing import counts, imported
from operations import ERRORS, UPDATE, change, create, new_key
from sqlalchemy.ext.asyncio import AsyncEngine
from test_bulk import add, changes, remove
from test_bulk import counts as counts_of_bulk
from test_verify import Busy, Corruption, Place, finds, found, lived, looking, sentences

from db import files, verified_operations
from db.files import Files
from jobs import verification
from server.embedded import Servers
from server.settings import Settings

EXPORT = f"""mutation ($slug: String!, $key: String!) {{
  exportMembers(input: {{slug: $slug}}, idempotencyKey: $key) {{ task {{ id }} {ERRORS} }} }}"""
SECONDS = 6


async def roll_out(client: Client, slug: str, percent: float | None) -> None:
    answer = await client.ask(UPDATE, slug=slug, input={"rolloutPercent": percent}, key=new_key())
    assert answer["updateSegment"]["userErrors"] == []


async def export(client: Client, slug: str) -> None:
    payload = (await client.ask(EXPORT, slug=slug, key=new_key()))["exportMembers"]
    assert (await finished(client, payload["task"]["id"]))["status"] == "SUCCEEDED"


async def use_lists(client: Client, engine: AsyncEngine, store: Files) -> None:
    """Each line is one operation."""
    await create(client, "A")
    await create(client, "B")
    assert counts_of_bulk(await add(client, "A", [1, 2, 3, 4, 5])) == (5, 0, 0, 0)
    assert counts_of_bulk(await add(client, "A", [1, 2], ttlDays=9)) == (0, 2, 0, 0)
    assert counts_of_bulk(await remove(client, "A", [5, 99])) == (0, 0, 1, 1)
    both: list[dict[str, Any]] = [
        {"userId": 1, "add": ["B"], "remove": ["A"]},
        {"userId": 6, "add": ["A", "B"]},
        {"userId": 3, "add": ["A"], "ttlDays": 5},
    ]
    assert counts_of_bulk(await changes(client, *both)) == (3, 1, 1, 0)
    await roll_out(client, "B", 100)
    assert counts_of_bulk(await remove(client, "B", [1, 20, 21])) == (0, 0, 3, 0)
    assert (await change(client, 22, remove=["B"]))["removed"] == ["B"]
    assert counts_of_bulk(await add(client, "B", [20])) == (1, 0, 0, 0)
    assert counts(await imported(client, "A", "1\n2\n30\n31\n32\n30\n")) == (4, 1, 0, 0, 1, 0)
    assert counts(await imported(client, "A", "30\n98\n", mode="REMOVE")) == (0, 0, 1, 1, 0, 0)
    assert counts(await imported(client, "A", "31\n32\n40\n", mode="REPLACE", ttlDays=9)) == (1, 2, 5, 0, 0, 0)
    assert counts(await imported(client, "A", "50\n", mode="REPLACE", dryRun=True)) == (1, 0, 3, 0, 0, 0)
    assert counts(await imported(client, "B", "20\n22\n60\n61\n", mode="REMOVE")) == (0, 0, 3, 1, 0, 0)
    assert counts(await imported(client, "B", "60\n70\n", mode="REPLACE")) == (2, 0, 1, 0, 0, 0)
    await export(client, "B")
    assert (await imported(client, "A", "user_id,colour\nu1,red\n"))["status"] == "FAILED"
    await roll_out(client, "B", 0.5)
    await roll_out(client, "B", None)
    await roll_out(client, "A", 7)
    assert (await change(client, 60, remove=["B"]))["removed"] == ["B"]


@pytest.fixture(scope="module")
def past(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    with lived(servers, tmp_path_factory.mktemp("lists"), use_lists) as past:
        yield past


@pytest.fixture
def database_url(servers: Servers, past: Busy) -> Iterator[str]:
    """A copy of the database with lists."""
    with fresh(servers, past.name) as url:
        yield url


@pytest.fixture
async def busy(past: Busy, database_url: str, tmp_path: Path) -> AsyncIterator[Place]:
    folder = shutil.copytree(past.folder, tmp_path / "files", dirs_exist_ok=True)
    async with looking(database_url, folder) as place:
        yield place


async def test_after_lists_imports_and_rollouts_everything_fits(busy: Place) -> None:
    report = await busy.report(checksums=True)
    assert sentences(report) == []
    assert [(check.name, check.looked) for check in report.checks] == [
        ("history", 34),
        ("memberships", 4),
        ("operations of events", 34),
        ("segments", 2),
        ("rollouts", 4 + 9),
        ("operations", 22),
        ("imports", 6),
        ("files of tasks", 7),
    ]


IMPORT, REMOVAL, DRY_RUN, EXCLUDING = ("kind = 'IMPORT' AND operation_id = " + n for n in ("11", "12", "14", "15"))
OF_20 = "user_id = '20' AND segment_id = 2"
CORRUPTIONS = {
    "a change of many without one event": Corruption(
        "DELETE FROM membership_events WHERE user_id = '4' AND operation_id = 3",
        {"operations": 1, "history": 1},
        ") tells of 5 changes, history of 4",
    ),
    "a change of many with another action": Corruption(
        "UPDATE membership_events SET action = 'EXPIRY_CHANGED' WHERE user_id = '4' AND operation_id = 3",
        {"operations": 1, "history": 1},
        ") tells of 5 changes, history of others",
    ),
    "a removal of many that says less": Corruption(
        """UPDATE operations SET result = result || '{"removed": {}}' WHERE id = 5""",
        {"operations": 1},
        "operation 5 (at ",
    ),
    "a change of many by other slugs": Corruption(
        """UPDATE operations SET result = result || '{"added": {"A": 2, "B": 1}}' WHERE id = 6""",
        {"operations": 1},
        ") tells of 5 changes, history of others",
    ),
    "a count that is no number": Corruption(
        """UPDATE operations SET result = result || '{"added": {"A": "5"}}' WHERE id = 3""",
        {"operations": 1},
        ") tells of 0 changes, history of 5",
    ),
    "a list where a count should be": Corruption(
        """UPDATE operations SET result = result || '{"added": ["A"]}' WHERE id = 3""",
        {"operations": 1},
        ") tells of 0 changes, history of 5",
    ),
    "an import without one event": Corruption(
        "DELETE FROM membership_events WHERE user_id = '30' AND operation_id = 11",
        {"history": 1, "imports": 1},
        " (operation 11) tells of 4 added, 1 updated, 0 removed, history of 3 added, 1 updated, 0 removed",
    ),
    "an import that counts too much": Corruption(
        f"""UPDATE tasks SET state = state || '{{"updated": 2}}' WHERE {IMPORT}""",
        {"imports": 1},
        " tells of 4 added, 2 updated, 0 removed, history of 4 added, 1 updated, 0 removed",
    ),
    "an import that counts nothing": Corruption(
        f"UPDATE tasks SET state = NULL WHERE {REMOVAL}",
        {"imports": 1},
        " tells of no number added, no number updated, no number removed, history of 0 added, 0 updated, 1 removed",
    ),
    "an import that was only to be tried out": Corruption(
        """UPDATE tasks SET args = args || '{"dry_run": true}' WHERE kind = 'IMPORT' AND operation_id = 12""",
        {"imports": 1},
        " tells of 0 added, 0 updated, 0 removed, history of 0 added, 0 updated, 1 removed",
    ),
    "a trial that is said to have been none": Corruption(
        f"""UPDATE tasks SET args = args || '{{"dry_run": false}}' WHERE {DRY_RUN}""",
        {"imports": 1},
        " tells of 1 added, 0 updated, 3 removed, history of 0 added, 0 updated, 0 removed",
    ),
    "an import into another segment": Corruption(
        f"UPDATE tasks SET segment_id = 2 WHERE {REMOVAL}",
        {"imports": 1},
        ", history of 0 added, 0 updated, 0 removed and 1 in other segments",
    ),
    "an import without one exclusion": Corruption(
        "DELETE FROM exclusions WHERE user_id = '61'",
        {"imports": 1},
        " tells of 0 added, 0 updated, 3 removed, history of 0 added, 0 updated, 2 removed",
    ),
    "an import whose segment takes nobody in": Corruption(
        "UPDATE rollout_changes SET rollout = 0 WHERE operation_id = 7",
        {"imports": 1},
        " tells of 0 added, 0 updated, 3 removed, history of 0 added, 0 updated, 1 removed",
    ),
    "a lost import": Corruption(
        f"DELETE FROM tasks WHERE {IMPORT}", {"operations": 1}, "operation 11 (importMembers at "
    ),
    "an import that somebody else made": Corruption(
        f"UPDATE tasks SET operation_id = 1 WHERE {DRY_RUN}", {"operations": 1}, ") did not make task "
    ),
    "a lost export": Corruption(
        "DELETE FROM tasks WHERE kind = 'EXPORT'", {"operations": 1}, "operation 17 (exportMembers at "
    ),
    "an export that makes a report": Corruption(
        "UPDATE tasks SET kind = 'REPORT' WHERE kind = 'EXPORT'", {"operations": 1}, ") did not make task "
    ),
    "an export that does not name its file": Corruption(
        "UPDATE tasks SET result = NULL WHERE kind = 'EXPORT'", {"files of tasks": 1}, " is not named by the task's"
    ),
    "an import that does not name its file": Corruption(
        f"UPDATE tasks SET result = NULL WHERE {IMPORT}", {"files of tasks": 1}, " is not named by the task's result"
    ),
    "another rollout than was set": Corruption(
        "UPDATE segments SET rollout = 8 WHERE id = 1",
        {"rollouts": 1},
        " to 700 is the last, though the rollout is 8",
    ),
    "a rollout that was ended": Corruption(
        "UPDATE segments SET rollout = 50 WHERE id = 2",
        {"rollouts": 1},
        " to none is the last, though the rollout is 50",
    ),
    "a rollout of which nothing tells": Corruption(
        "DELETE FROM rollout_changes WHERE segment_id = 1",
        {"rollouts": 1},
        "segment 1: the change of the rollout is not there, though the rollout is 700",
    ),
    "a rollout of no segment": Corruption(
        "INSERT INTO rollout_changes VALUES (99, now(), 1, 1)",
        {"rollouts": 1},
        "segment 99: the change of the rollout at ",
    ),
    "a rollout before the segment": Corruption(
        "UPDATE rollout_changes SET at = '2001-01-01Z' WHERE segment_id = 1",
        {"rollouts": 1},
        " comes before the segment,",
    ),
    "a rollout of no operation": Corruption(
        "UPDATE rollout_changes SET operation_id = 99 WHERE segment_id = 1",
        {"rollouts": 1},
        " names operation 99, which there is not",
    ),
    "an exclusion that ends before it begins": Corruption(
        f"UPDATE exclusions SET ended_at = excluded_at WHERE {OF_20} AND ended_at < 'infinity' AND operation_id = 8",
        {"rollouts": 1},
        "user 20, segment 2: the exclusion at ",
    ),
    "an exclusion before the end of another one": Corruption(
        f"UPDATE exclusions SET ended_at = '2999-01-01Z' WHERE {OF_20} AND ended_at < 'infinity'",
        {"rollouts": 1},
        " comes before the end of another one at 2999-01-01 00:00:00+00",
    ),
    "an exclusion before all rollouts": Corruption(
        "UPDATE exclusions SET excluded_at = '2001-01-01Z' WHERE user_id = '22'",
        {"rollouts": 1},
        " is from before all rollouts of the segment",
    ),
    "an exclusion from no segment": Corruption(
        "UPDATE exclusions SET segment_id = 99 WHERE user_id = '22'",
        {"rollouts": 1},
        "user 22, segment 99: the exclusion at ",
    ),
    "an exclusion by no operation": Corruption(
        "UPDATE exclusions SET operation_id = 99 WHERE user_id = '22'",
        {"rollouts": 1},
        " names operation 99, which there is not",
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
async def test_what_does_not_fit_is_found(busy: Place, database_url: str, name: str) -> None:
    await finds(busy, database_url, CORRUPTIONS[name])


@pytest.mark.parametrize("kind", ["IMPORT", "EXPORT"])
async def test_a_file_that_is_not_there_is_found(busy: Place, database_url: str, kind: str) -> None:
    statement = f"SELECT id, (result ->> 'attempt')::int FROM tasks WHERE kind = '{kind}' AND result IS NOT NULL"
    task_id, attempt = (await query(database_url, statement))[0]
    file = busy.store.local(files.path(task_id, attempt))
    assert file is not None
    file.unlink()
    assert sentences(await busy.report()) == [f"the file of task {task_id} is not there"]


async def test_an_import_that_failed_may_have_done_anything(busy: Place, database_url: str) -> None:
    await query(database_url, "DELETE FROM memberships WHERE user_id = '31'")
    await query(database_url, "DELETE FROM membership_events WHERE user_id = '31'")
    assert found(await busy.report()) == {"imports": 2}
    for status in ("FAILED", "CANCELED"):
        await query(database_url, f"UPDATE tasks SET status = '{status}' WHERE operation_id IN (11, 13)")
        assert found(await busy.report()) == {}


@pytest.mark.parametrize("rows", [1, 2, 3])
async def test_the_slices_together_are_everything(
    busy: Place, database_url: str, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    for name in ("a change of many without one event", "an exclusion by no operation", "a rollout of no segment"):
        await query(database_url, CORRUPTIONS[name].statement)
    whole = await busy.report()
    for name in ("ROWS", "SEGMENTS", "FILES", "IMPORTS"):
        monkeypatch.setattr(verification, name, rows)
    assert await busy.report() == whole
    monkeypatch.setattr(verification, "ROWS", 1_000)
    monkeypatch.setattr(verified_operations, "EVENTS", rows)
    assert await busy.report() == whole


async def test_a_slice_ends_where_it_has_events_enough(busy: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified_operations, "EVENTS", 6)
    async with busy.exporter.connect() as conn:
        ends, after = [], 0
        while (some := await verified_operations.next_slice(conn, after, 5)) is not None:
            after = some.last
            ends.append(after)
    # The third has five events and the fourth two, the sixth five again; then the number of operations decides.
    assert ends == [4, 6, 11, 16, 21, 22]


async def test_events_that_a_lagging_clock_dated_later_are_found_where_they_are(busy: Place, database_url: str) -> None:
    for operation_id in (3, 11):
        await query(database_url, f"UPDATE operations SET at = at - interval '2 days' WHERE id = {operation_id}")
    moved = "started_at = started_at - interval '3 days', finished_at = finished_at - interval '3 days'"
    await query(database_url, "UPDATE segments SET created_at = created_at - interval '4 days'")
    await query(database_url, f"UPDATE tasks SET {moved} WHERE operation_id IN (11, 15)")
    ((oldest,),) = await query(database_url, "SELECT date_trunc('month', now() - interval '4 days', 'UTC')")
    await query(
        database_url,
        f"""DO $$ BEGIN
            IF to_regclass('membership_events_{oldest:%Y_%m}') IS NULL THEN
                CREATE TABLE membership_events_{oldest:%Y_%m} PARTITION OF membership_events
                FOR VALUES FROM ('{oldest:%Y-%m}-01Z') TO (date_trunc('month', now(), 'UTC'));
            END IF;
        END $$""",
    )
    assert sentences(await busy.report()) == []


async def test_what_began_in_months_that_were_dropped_is_not_missed(busy: Place, database_url: str) -> None:
    await query(database_url, "DELETE FROM membership_events WHERE operation_id = 12")
    assert found(await busy.report()) == {"imports": 1, "memberships": 1}
    for table, column in (("tasks", "started_at"), ("operations", "at")):
        await query(database_url, f"UPDATE {table} SET {column} = '2001-01-01Z'")
    assert "imports" not in found(await busy.report())


@pytest.mark.soak
async def test_nothing_is_found_while_everybody_is_at_work(
    serve: Serve, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verification, "ROWS", 20)
    monkeypatch.setattr(verified_operations, "EVENTS", 50)
    assert settings.database_url is not None
    ending, reports = time.monotonic() + SECONDS, 0
    async with looking(settings.database_url, Path(settings.store)) as place, serve(serve_tasks=2) as client:
        await create(client, "A", "B")
        works = (change_many, change_many, import_members, roll_out_and_remove)
        others = [asyncio.create_task(work(client, ending)) for work in works]
        while time.monotonic() < ending:
            assert sentences(await place.report(checksums=True)) == []
            reports += 1
        await asyncio.gather(*others)
        report = await place.report(checksums=True)
    assert sentences(report) == []
    looked = {check.name: check.looked for check in report.checks}
    assert min(reports, looked["rollouts"], looked["imports"]) > 1
    assert looked["history"] > verification.ROWS


def some_users() -> list[int]:
    return random.sample(range(100), 20)


async def change_many(client: Client, ending: float) -> None:
    while time.monotonic() < ending:
        slug = random.choice("AB")
        await add(client, slug, some_users(), ttlDays=random.choice([None, 1, 2]))
        await remove(client, slug, some_users())
        await changes(client, *({"userId": user, "add": ["A"], "remove": ["B"]} for user in some_users()))
        await change(client, random.randrange(100), remove=["A", "B"])


async def import_members(client: Client, ending: float) -> None:
    while time.monotonic() < ending:
        content = "".join(f"{user}\n" for user in some_users())
        mode = random.choice(["ADD", "REMOVE", "REPLACE"])
        counts(await imported(client, random.choice("AB"), content, mode=mode, dryRun=random.random() < 0.2))


async def roll_out_and_remove(client: Client, ending: float) -> None:
    while time.monotonic() < ending:
        await roll_out(client, "B", random.choice([None, 10, 50, 100]))
        await remove(client, "B", some_users())
