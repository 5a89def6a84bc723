"""Backups: the commands of the guide bring everything back, and keys from before it still count."""

import asyncio
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forking
import pytest
from background import ask_for_report, finished
from clusters import PROGRAMS, Cluster
from conftest import ROOT, Client, Serve
from databases import query, sql
from operations import change, create, history, memberships, slugs, state
from redis.asyncio import Redis
from sqlalchemy import make_url

from db.beside import beside
from server import embedded
from server.embedded import Servers

GUIDE = (ROOT / "docs" / "backups.md").read_text()
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Where the guide has things.
BACKUPS, RESTORED, FILES = "/var/backups/segmentql", "/var/lib/postgresql/18/restored", "/var/lib/segmentql/files"
USERS = [f"user-{number}" for number in range(9)]


def blocks(heading: str) -> list[str]:
    """What is fenced below a heading of the guide."""
    section = GUIDE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [block for _, block in FENCED.findall(section)]


def placed(block: str, places: dict[str, Path]) -> str:
    """The same, for other places."""
    for guides, ours in places.items():
        assert guides in GUIDE
        block = block.replace(guides, str(ours))
    return block


async def typed(block: str, cwd: Path, **environ: str) -> str:
    """What a shell says that executes the commands; none may fail."""
    where = os.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"} | environ
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-euc", block), cwd=cwd, env=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await shell.communicate()
    assert shell.returncode == 0, said.decode()
    return said.decode()


@dataclass(frozen=True)
class Seen:
    """What readers are told."""

    memberships: dict[str, Any]
    history: dict[str, Any]

    @staticmethod
    async def by(client: Client, freshness: str = "LATEST") -> "Seen":
        return Seen(
            {user: await memberships(client, user, freshness) for user in USERS},
            {user: await history(client, user) for user in USERS},
        )


async def fill(client: Client) -> str:
    """Segments, users with a past, and a report that is done: its task's id."""
    await create(client, "A", "B", "C")
    for number, user in enumerate(USERS):
        added = await change(client, user, add=["A", "B"] if number % 2 else ["A", "C"], key=f"before-{user}")
        assert added["userErrors"] == []
        if number % 3 == 0:
            assert (await change(client, user, remove=["A"]))["removed"] == ["A"]
    payload = await ask_for_report(client, key="report-before")
    assert (await finished(client, payload["task"]["id"]))["status"] == "SUCCEEDED"
    return str(payload["task"]["id"])


@asynccontextmanager
async def busy(client: Client, slug: str) -> AsyncIterator[None]:
    """Somebody goes on writing, about users whom nobody asks for; the first change is made."""
    first = asyncio.Event()

    async def write() -> None:
        for number in itertools.count(1):
            assert (await change(client, f"busy-{number}", add=[slug]))["added"] == [slug]
            first.set()

    async with beside(write()):
        await first.wait()
        yield


async def forget(redis: Redis) -> None:
    """What the guide has operators type to Redis."""
    *program, key = blocks("Afterwards")[0].split()
    assert program == ["redis-cli", "-u", '"$SEGMENTQL_REDIS_URL"', "UNLINK"]
    assert await redis.unlink(key) == 1


def checked(database_url: str, redis_url: str, files: Path) -> None:
    """What the guide has operators check, on the command line, before anything runs."""
    urls = {"SEGMENTQL_DATABASE_URL": database_url, "SEGMENTQL_REDIS_URL": redis_url, "SEGMENTQL_FILES": str(files)}
    for command in blocks("Afterwards")[1].splitlines():
        program, *arguments = command.split()
        assert program == "segmentql"
        ran = forking.run(arguments, cwd=ROOT, env=os.environ | urls)
        assert ran.returncode == 0, ran.stdout + ran.stderr


async def see_that_all_is_back(client: Client, before: Seen, report: str, queued: str) -> None:
    """Reads are those from before, keys count, and work goes on."""
    assert (await client.http.get("/readyz")).status_code == 200
    assert await Seen.by(client, "CACHED") == before
    assert await Seen.by(client) == before

    replayed = await change(client, USERS[1], add=["A", "B"], key=f"before-{USERS[1]}")
    assert (replayed["replayed"], replayed["added"]) == (True, ["A", "B"])
    reused = await change(client, USERS[1], add=["C"], key=f"before-{USERS[1]}")
    assert [error["code"] for error in reused["userErrors"]] == ["IDEMPOTENCY_KEY_REUSED"]
    payload = await ask_for_report(client, key="report-before")
    assert (payload["replayed"], payload["task"]["id"]) == (True, report)
    assert (await client.http.get(payload["task"]["file"]["url"])).status_code == 200
    assert (await finished(client, queued))["status"] == "SUCCEEDED"

    # What came after the backup did not happen, and its key is new.
    again = await change(client, USERS[0], add=["B"], key="after-the-backup")
    assert (again["replayed"], again["added"]) == (False, ["B"])
    assert "B" in await slugs(client, USERS[0])


async def test_a_dump_brings_everything_back(
    serve: Serve, servers: Servers, redis: Redis, prepared_url: str, tmp_path: Path
) -> None:
    dump, restore = blocks("Small: a dump")
    url = make_url(prepared_url)
    assert url.database is not None
    restored = f"{url.database}_restored"
    restored_url = url.set(database=restored).render_as_string(hide_password=False)
    where = {"PGHOST": str(url.query["host"]), "PGUSER": url.username or ""}
    places = {BACKUPS: tmp_path / "backups", FILES: tmp_path / "files"}
    places[BACKUPS].mkdir()
    async with serve(database_url=prepared_url, files=str(tmp_path / "files"), serve_tasks=1) as client:
        report = await fill(client)
    async with serve(database_url=prepared_url, files=str(tmp_path / "files")) as client:
        queued = (await ask_for_report(client))["task"]["id"]
        before = await Seen.by(client)
        async with busy(client, "B"):
            await typed(placed(dump, places).replace(" segmentql\n", f" {url.database}\n"), tmp_path, **where)
        assert (await change(client, USERS[0], add=["B"], key="after-the-backup"))["added"] == ["B"]
        # Redis has it, and goes on having it.
        assert "B" in await slugs(client, USERS[0])
    assert await redis.get(f"segmentql:user:{USERS[0]}") is not None
    await state(redis)

    try:
        await typed(placed(restore, places).replace("segmentql_restored", restored), tmp_path, **where)
        await forget(redis)
        checked(restored_url, servers.redis_url, places[BACKUPS] / "files")
        async with serve(database_url=restored_url, files=str(places[BACKUPS] / "files"), serve_tasks=1) as client:
            await see_that_all_is_back(client, before, report, queued)
    finally:
        await query(servers.database_url, f"DROP DATABASE IF EXISTS {restored} WITH (FORCE)")


@pytest.mark.soak  # a server is made, lost and recovered
async def test_a_base_backup_and_the_log_bring_back_any_instant(
    serve: Serve, servers: Servers, redis: Redis, cluster: Path, tmp_path: Path
) -> None:
    archiving, backup, restore, recovered = blocks("Large: a base backup and the log")
    places = {BACKUPS: tmp_path / "backups", RESTORED: tmp_path / "restored" / "data"}
    lost = Cluster(tmp_path / "lost", prepared=cluster)
    for folder in (tmp_path / "backups" / "wal", tmp_path / "files", tmp_path / "restored"):
        folder.mkdir(parents=True)
    for name, value in re.findall(r"^(\w+) = (.*)$", placed(archiving, places), re.MULTILINE):
        lost.options[name] = value.strip("'")
    found = Cluster(tmp_path / "restored")
    await lost.start()
    try:
        async with serve(database_url=lost.url, files=str(tmp_path / "files"), serve_tasks=1) as client:
            await create(client, "D")
            async with busy(client, "D"):
                made = await asyncio.to_thread(lost.run, placed(backup, places))
            assert made.returncode == 0, made.stderr
            # What follows is in the log alone.
            report = await fill(client)
        async with serve(database_url=lost.url, files=str(tmp_path / "files")) as client:
            queued = (await ask_for_report(client))["task"]["id"]
            before = await Seen.by(client)
            ((instant,),) = await lost.ask("SELECT CAST(clock_timestamp() AS text)")
            assert (await change(client, USERS[0], add=["B"], key="after-the-backup"))["added"] == ["B"]
            assert "B" in await slugs(client, USERS[0])
        # The piece that is being written is archived by the clock, or at an orderly end: then the machine is gone.
        await lost.stop("fast")
        shutil.rmtree(lost.data)

        made = found.run(placed(restore, places).replace("2026-11-24 10:15:00+00", instant))
        assert made.returncode == 0, made.stderr
        await found.start()
        for _ in range(500):
            if found.run(recovered).stdout == "f\n":
                break
            await asyncio.sleep(0.02)
        await forget(redis)
        checked(found.url, servers.redis_url, tmp_path / "files")
        async with serve(database_url=found.url, files=str(tmp_path / "files"), serve_tasks=1) as client:
            await see_that_all_is_back(client, before, report, queued)
            assert await slugs(client, "busy-1") == ["D"]
    finally:
        await lost.end()
        await found.end()


@pytest.mark.soak  # two starts of both servers
def test_the_folder_of_the_embedded_servers_can_be_copied_while_nothing_runs(cluster: Path, tmp_path: Path) -> None:
    keep, restore, dump = blocks("What `make run` keeps")
    folder = tmp_path / ".segmentql"
    folder.mkdir(mode=0o700)
    shutil.copytree(cluster, folder / "postgres", symlinks=True)
    with embedded.running(folder, durable=False) as there:
        sql(there.database_url, "INSERT INTO segments (slug, version) VALUES ('KEPT', 1)")
        # The programs are in the environment of the checkout.
        asyncio.run(typed(f"{ROOT}/{dump}", tmp_path))
    asyncio.run(typed(keep, tmp_path))
    (folder / "postgres" / "PG_VERSION").unlink()
    asyncio.run(typed(restore, tmp_path))
    with embedded.running(folder, durable=False) as there:
        assert sql(there.database_url, "SELECT slug FROM segments") == [("KEPT",)]
    dumped = "pg_restore --data-only --table=segments --file=- segmentql.dump"
    assert "KEPT" in asyncio.run(typed(dumped, tmp_path))
