"""The commands that ask a server: what they print, how they end, and that nothing happens twice whatever breaks."""

import asyncio
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from background import CANCEL, execute
from conftest import ROOT, Client, Serve
from operations import change, count, create, memberships, new_key, slugs
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.testing import CliRunner, Result

from server.cli import app
from server.client import Again, Failed, Patience, retry_after
from server.client_state import Over, begun, keeping
from server.settings import Settings, from_environ
from server.transfers import Source

REPORT = ("report", "--from", "2020-01-01T00:00:00Z")
HEADER = "user_id,segment,operation,at"
WAITS = "query ($id: ID!) { task(id: $id) { uploadUrl } }"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where files come from and go to."""
    place = tmp_path / "place"
    place.mkdir()
    return place


Run = Callable[..., Any]


@pytest.fixture
def run(state: Path) -> Run:
    """Run a command against a server, without patience unless it is told so."""

    async def running(url: str, *arguments: str | Path, seconds: float = 0, token: str | None = None) -> Result:
        environ = {"SEGMENTQL_STATE_DIR": str(state), "SEGMENTQL_URL": url, "SEGMENTQL_TOKEN": token}
        command = [*map(str, arguments), "--retry-seconds", str(seconds)]
        return await asyncio.to_thread(lambda: CliRunner(env=environ).invoke(app, command))

    return running


def endpoint(client: Client) -> str:
    return f"{str(client.http.base_url).rstrip('/')}/graphql"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def kept(state: Path) -> list[Any]:
    return [json.loads(path.read_text()) for path in state.iterdir()]


async def test_a_report_is_printed_whatever_the_line_loses(
    serve: Serve, run: Run, state: Path, engine: AsyncEngine
) -> None:
    async with serve(serve_tasks=2) as client, line_to(client) as line:
        await create(client, "A", "B")
        await change(client, "ann", add=["A", "B"])
        await change(client, "bob", add=["A"])
        line.lose(b"generateReport", times=2)
        line.lose(b"GET /files/")
        done = await run(line.url, *REPORT, "--user", "ann", "--segment", "B", seconds=20)
        header, row = done.stdout.splitlines()
        assert (done.exit_code, header, row.rpartition(",")[0]) == (0, HEADER, "ann,B,ADDED")
        waits, waits_again, rows = done.stderr.splitlines()
        assert waits.startswith(f"segmentql: {line.url} did not answer: ")
        assert waits_again.startswith(f"segmentql: {line.url.removesuffix('graphql')}files/")
        assert rows == "segmentql: 1 row."
        assert line.lost == [b"generateReport", b"generateReport", b"GET /files/"]
        assert kept(state) == []
    assert await count(engine, "tasks") == 1


async def test_a_report_takes_the_place_of_a_file(serve: Serve, run: Run, place: Path) -> None:
    target = place / "report.csv"
    target.write_text("older")
    link = place / "link.csv"
    link.symlink_to(target)
    async with serve(serve_tasks=2) as client:
        done = await run(endpoint(client), *REPORT, "--output", link)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", f"segmentql: Stored 0 rows in {link}.\n")
    assert target.read_text() == HEADER + "\n"
    assert names(place) == ["link.csv", "report.csv"]


async def test_a_lost_answer_makes_no_second_task_when_the_command_is_run_again(
    client: Client, run: Run, state: Path, engine: AsyncEngine
) -> None:
    async with line_to(client) as line:
        keys = []
        for _ in range(3):
            line.lose(b"generateReport")
            lost = await run(line.url, *REPORT)
            assert (lost.exit_code, lost.stderr.count("\n")) == (2, 1)
            keys += [(each["key"], each["task_id"]) for each in kept(state)]
        assert keys == [(keys[0][0], None)] * 3
    assert await count(engine, "tasks") == 1


async def test_a_refusal_is_told_with_its_path_and_leaves_no_key(client: Client, run: Run, state: Path) -> None:
    done = await run(endpoint(client), *REPORT, "--segment", "A", "--segment", "B")
    assert (done.exit_code, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("segmentql: SEGMENT_NOT_FOUND: ")
    assert first.endswith(" (input.segments.0)")
    assert second.endswith(" (input.segments.1)")
    assert kept(state) == []


async def test_a_task_that_gives_nothing_any_more_is_begun_anew(
    serve: Serve, run: Run, state: Path, engine: AsyncEngine
) -> None:
    async with serve(serve_tasks=1) as client, line_to(client) as line:
        for spoil, said in (
            ("UPDATE tasks SET file_removed_at = now()", "The file of the report {} was removed: it is kept for some"),
            ("TRUNCATE tasks", "The server knows of no report {} of yours; it may have forgotten it."),
        ):
            line.cut = b"GET /files/"
            broken = await run(line.url, *REPORT)
            assert broken.exit_code == 2
            assert broken.stderr.startswith(f"segmentql: {str(client.http.base_url).rpartition(':')[0]}")
            task_id = kept_task(state)
            await execute(engine, spoil)
            line.cut = None
            over = await run(line.url, *REPORT)
            assert over.exit_code == 2
            _going_on, told = over.stderr.splitlines()
            assert told.startswith("segmentql: " + said.format(task_id))
            assert told.endswith(" The same command begins anew.")
            assert kept(state) == []


async def test_a_task_that_was_called_off_is_begun_anew(serve: Serve, run: Run, state: Path) -> None:
    async with serve() as client:
        running = asyncio.create_task(run(endpoint(client), *REPORT))
        await until(lambda: kept_task(state) is not None)
        task_id = kept_task(state)
        await client.ask(CANCEL, id=task_id, key=new_key())
        done = await running
        assert done.exit_code == 2
        assert done.stderr == f"segmentql: The report {task_id} was CANCELED. The same command begins anew.\n"
        assert kept(state) == []


async def test_a_user_is_shown(client: Client, run: Run) -> None:
    await create(client, "A", "B")
    await change(client, "ann", add=["A"], expiresAt="2100-01-01T00:00:00Z")
    await change(client, "ann", add=["B"])
    await change(client, "ann", remove=["B"])
    done = await run(endpoint(client), "user", "ann")
    assert (done.exit_code, done.stderr) == (0, "")
    found = await memberships(client, "ann")
    shown = [line.split() for line in done.stdout.splitlines() if line.strip() and "─" not in line]
    assert shown[:3] == [
        ["ann", "is", "in", "1", "segment."],
        ["segment", "since", "until", "source"],
        ["A", found[0]["addedAt"], found[0]["expiresAt"], "explicit"],
    ]
    assert shown[3] == ["History,", "newest", "first:", "3", "events."]
    assert [line[1:] for line in shown[5:]] == [
        ["removed", "B", "-", "anonymous"],
        ["added", "B", "-", "anonymous"],
        ["added", "A", "2100-01-01T00:00:00.000000Z", "anonymous"],
    ]


async def test_a_user_without_segments_is_shown(client: Client, run: Run) -> None:
    done = await run(endpoint(client), "user", "nobody")
    assert done.exit_code == 0
    assert done.stdout.split("\n") == ["nobody is in 0 segments.", "History, newest first: 0 events.", ""]


@pytest.mark.parametrize("command", [("user", "ann"), REPORT, ("export", "--segment", "A")])
async def test_a_server_that_is_away_is_one_line(run: Run, unused_port: int, command: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{unused_port}/graphql"
    done = await run(url, *command)
    said = f"segmentql: {url} did not answer: [Errno 111] Connection refused. Given up after 0 s.\n"
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", said)
    waiting = await run(url, *command, seconds=0.3)
    told, given_up = waiting.stderr.splitlines()
    assert told == f"segmentql: {url} did not answer: [Errno 111] Connection refused. Trying again for up to 0 s."
    assert (waiting.exit_code, given_up + "\n") == (2, said)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("report", "--from", "2020-01-01"), "--from is '2020-01-01': it must be an instant of RFC 3339"),
        (("report", "--from", "2020-01-01T00:00:00"), "--from is '2020-01-01T00:00:00': it must be an instant"),
        (("report", "--from", "2020-02-30T00:00:00Z"), "--from is '2020-02-30T00:00:00Z': it must be an instant"),
        ((*REPORT, "--to", "now"), "--to is 'now': it must be an instant of RFC 3339 with an offset, like 2026-"),
        ((*REPORT, "--output", "/nowhere/at/all.csv"), "--output is /nowhere/at/all.csv: there is no folder for it"),
        ((*REPORT, "--output", "/dev/null"), "--output is /dev/null: it is no file"),
        (("user", "ann", "--url", "localhost:8080"), "--url must be a URL like http://127.0.0.1:8080/graphql."),
        (("import", "/nowhere.csv", "--segment", "A"), "/nowhere.csv is not a file."),
        (("import", __file__, "--segment", "A", "--rejects", __file__), "--rejects is the file that is imported"),
        (("import", __file__, "--segment", "A", "--expires-at", "2030"), "--expires-at is '2030': it must be an"),
    ],
)
async def test_a_bad_option_is_one_line_that_names_it(
    run: Run, unused_port: int, state: Path, command: tuple[str, ...], said: str
) -> None:
    done = await run(f"http://127.0.0.1:{unused_port}/graphql", *command)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"segmentql: {said}")
    assert done.stderr.count("\n") == 1
    assert names(state) == []


def table(shown: str) -> dict[str, int]:
    """What the table says, but for how fast it was."""
    rows = [line.split() for line in shown.splitlines() if len(line.split()) == 2]
    found = {name: int(number.replace(",", "")) for name, number in rows}
    assert found.pop("rows/s") > 0
    return found


def counts(rows: int, **others: int) -> dict[str, int]:
    names = ("added", "updated", "removed", "unchanged", "duplicate", "invalid")
    return {"rows": rows} | dict.fromkeys(names, 0) | others


def users(place: Path, number: int) -> Path:
    file = place / "users.csv"
    file.write_text("".join(f"user-{n:06}\n" for n in range(number)))
    return file


async def test_an_import_ends_with_a_table(serve: Serve, run: Run, place: Path, state: Path) -> None:
    async with serve(serve_tasks=2) as client:
        await create(client, "A")
        file = users(place, 100)
        one = ("import", file, "--segment", "A")
        for arguments, expected in (
            ((*one, "--dry-run", "--ttl-days", "3"), counts(100, added=100)),
            ((*one, "--expires-at", "2100-01-01T00:00:00+01:00"), counts(100, added=100)),
            ((*one, "--ttl-days", "3", "--mode", "remove"), counts(100, removed=100)),
        ):
            done = await run(endpoint(client), *arguments)
            assert (done.exit_code, done.stderr) == (0, "")
            assert table(done.stdout) == expected
            dry = "--dry-run" in arguments
            assert done.stdout.startswith("Dry run: nothing was changed.") == dry
            assert await slugs(client, "user-000007") == ([] if dry or "remove" in arguments else ["A"])
        assert kept(state) == []
        assert names(place) == ["users.csv"]


async def test_what_is_exported_can_be_imported(serve: Serve, run: Run, place: Path) -> None:
    members = place / "members.csv"
    async with serve(serve_tasks=2) as client:
        await create(client, "A", "B")
        await change(client, "=ann", add=["A"], expiresAt="2100-01-01T00:00:00Z")
        await change(client, "bob", add=["A"])
        await change(client, "eve", add=["B"])
        stored = await run(endpoint(client), "export", "--segment", "A", "--output", members)
        assert (stored.exit_code, stored.stdout) == (0, "")
        assert stored.stderr == f"segmentql: Stored 2 rows in {members}.\n"
        done = await run(endpoint(client), "import", members, "--segment", "B", "--mode", "replace")
        assert (done.exit_code, table(done.stdout)) == (0, counts(2, added=2, removed=1))
        assert [(await slugs(client, user)) for user in ("=ann", "bob", "eve")] == [["A", "B"], ["A", "B"], []]


async def test_rejected_rows_are_stored_and_the_others_take_effect(serve: Serve, run: Run, place: Path) -> None:
    file = place / "users.csv"
    file.write_text("user_id,ttl_days\nann,3\nbob,0\nann,4\neve,\n")
    async with serve(serve_tasks=2) as client:
        await create(client, "A")
        done = await run(endpoint(client), "import", file, "--segment", "A")
        assert (done.exit_code, table(done.stdout)) == (1, counts(4, added=2, duplicate=1, invalid=1))
        rejects = place / "users.csv.rejects.csv"
        assert done.stderr == f"segmentql: Stored 2 rejected rows in {rejects}.\n"
        header, *lines = rejects.read_text().splitlines()
        assert header == "line,code,reason,row"
        assert [line.split(",")[:2] for line in lines] == [["3", "BAD_TTL_DAYS"], ["4", "DUPLICATE"]]
        assert [await slugs(client, user) for user in ("ann", "bob", "eve")] == [["A"], [], ["A"]]


@pytest.mark.processes
async def test_an_import_that_is_killed_after_the_upload_goes_on(
    serve: Serve, run: Run, place: Path, state: Path, engine: AsyncEngine
) -> None:
    file = users(place, 1_000)
    command = ("import", str(file), "--segment", "A")
    async with serve() as client, line_to(client) as line:
        await create(client, "A")
        with begun_command(state, line.url, *command) as process:
            await until(lambda: kept_task(state) is not None)
            assert await uploaded(client, kept_task(state))
            process.kill()
        going_on = f"segmentql: Going on with the import {kept_task(state)}, which an earlier run has begun.\n"
        with begun_command(state, line.url, *command) as process:
            assert process.stderr is not None
            assert await asyncio.to_thread(process.stderr.readline) == going_on
            process.send_signal(signal.SIGINT)
            said = await asyncio.to_thread(process.stderr.read)
            assert said == "segmentql: Interrupted. The same command goes on from here.\n"
            assert process.wait(10) == 130
        async with serve(serve_tasks=1):
            done = await run(line.url, *command)
        assert (done.exit_code, done.stderr) == (0, going_on)
        assert table(done.stdout) == counts(1_000, added=1_000)
        assert line.uploads == 1
    assert await count(engine, "tasks") == 1
    assert kept(state) == []


async def test_an_import_survives_a_bad_line(serve: Serve, run: Run, place: Path, engine: AsyncEngine) -> None:
    file = users(place, 60_000)
    with file.open("a") as more:
        more.write("user-000007\n")
    async with serve(serve_tasks=1) as client, line_to(client) as line:
        await create(client, "A")
        # Before the upload, in the middle of it, and after it: what the server has is not sent again.
        line.lose(b"importMembers")
        line.break_uploads(2, after_bytes=300_000)
        line.lose(b"PUT ")
        rejects = place / "elsewhere.csv"
        done = await run(line.url, "import", file, "--segment", "A", "--rejects", rejects, seconds=20)
        assert (done.exit_code, table(done.stdout)) == (1, counts(60_001, added=60_000, duplicate=1)), done.stderr
        assert (line.lost, line.uploads) == ([b"importMembers", b"PUT "], 3)
        assert rejects.read_text().splitlines()[1].startswith("60001,DUPLICATE,")
    assert await count(engine, "tasks") == 1
    assert await count(engine, "memberships") == 60_000


async def test_a_failed_import_is_begun_anew(serve: Serve, run: Run, place: Path, state: Path) -> None:
    file = place / "users.csv"
    file.write_text("user_id,colour\nann,red\n")
    async with serve(serve_tasks=1) as client:
        await create(client, "A")
        done = await run(endpoint(client), "import", file, "--segment", "A")
        assert (done.exit_code, done.stdout) == (2, "")
        assert re.fullmatch(r"segmentql: The import \S+ has FAILED: .+ The same command begins anew\.\n", done.stderr)
        assert kept(state) == []


def import_task(**fields: Any) -> dict[str, Any]:
    result = {"dryRun": False, **counts(1, unchanged=1)}
    return a_task(**{"uploadUrl": None, "importResult": result} | fields)


async def test_an_upload_that_is_not_taken_is_tried_with_another_link(run: Run, place: Path) -> None:
    file = users(place, 1)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    ended = import_task(status="SUCCEEDED", startedAt="2026-01-01T00:00:00Z", finishedAt="2026-01-01T00:00:01Z")
    with scripted() as links, scripted() as server:
        waiting = [graphql(task=import_task(uploadUrl=f"{links.url}/{n}?signature=secret")) for n in range(3)]
        asked_for = import_task(uploadUrl=f"{links.url}/unused")
        server.answers = [
            graphql(importMembers={"task": asked_for, "userErrors": []}),
            *waiting,
            graphql(task=import_task()),
            graphql(task=ended),
        ]
        links.answers = [
            (403, {}, b'{"error": "It has expired."}'),
            (507, {}, b'{"error": "No room."}'),
            (200, {}, json.dumps({"taskId": "7", "bytes": 12, "sha256": digest}).encode()),
        ]
        done = await run(f"{server.url}/graphql", "import", file, "--segment", "A", seconds=4, token="s3cret")
        assert (done.exit_code, table(done.stdout)) == (0, counts(1, unchanged=1)), done.stderr
        assert "signature" not in done.stderr
        assert server.answers == links.answers == []
        for headers, body in links.seen:
            assert (headers.get("Authorization"), headers["Content-Length"], body) == (None, "12", file.read_bytes())


@pytest.mark.parametrize("status", [409, 413])
async def test_an_upload_that_is_refused_is_over(run: Run, place: Path, state: Path, status: int) -> None:
    file = users(place, 1)
    with scripted() as links, scripted() as server:
        waiting = import_task(uploadUrl=f"{links.url}/7")
        server.answers = [graphql(importMembers={"task": waiting, "userErrors": []}), graphql(task=waiting)]
        links.answers = [(status, {}, b'{"error": "It is refused."}')]
        done = await run(f"{server.url}/graphql", "import", file, "--segment", "A", seconds=30)
        assert (done.exit_code, done.stdout, kept(state)) == (2, "", [])
        assert f"{links.url}/7 does not take the file (status {status}): It is refused. The same" in done.stderr


def test_a_file_that_changes_is_not_sent_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "users.csv"
    for before, after in ((b"ann\n", b"bob\n"), (b"ann\n", b"ann\nbob\n"), (b"ann\nbob\n", b"ann\n")):
        file.write_bytes(before)
        source = Source.of(file, lambda done: None)
        assert (b"".join(source.chunks(lambda done: None)), source.size) == (before, len(before))
        file.write_bytes(after)
        sent: list[bytes] = []
        with pytest.raises(Over, match="was changed while it was sent"):
            sent += source.chunks(lambda done: None)
        assert len(b"".join(sent)) < len(before)


def graphql(**data: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps({"data": data}).encode()


def errors(code: str) -> tuple[int, dict[str, str], bytes]:
    body = {"errors": [{"message": "Not now.", "extensions": {"code": code}}], "data": None}
    return 200, {"Retry-After": "0"}, json.dumps(body).encode()


def a_task(**fields: Any) -> dict[str, Any]:
    return {
        "id": "7",
        "status": "QUEUED",
        "progress": None,
        "rowsDone": 0,
        "startedAt": None,
        "finishedAt": None,
        "pollAfterMs": 1,
        "error": None,
        "file": None,
        **fields,
    }


async def test_whoever_is_busy_is_asked_again_with_the_same_key_and_links_get_no_token(run: Run) -> None:
    content = b"user_id,added_at,expires_at\nann,now,\n"
    in_progress = {"code": "IDEMPOTENCY_IN_PROGRESS", "message": "Wait.", "path": ["idempotencyKey"]}
    with scripted() as links, scripted() as server:
        file = {"url": f"{links.url}/file?signature=secret", "bytes": len(content), "rows": 1}
        file["sha256"] = hashlib.sha256(content).hexdigest()
        done_task = a_task(status="SUCCEEDED", finishedAt="2026-01-01T00:00:00Z", file=file)
        server.answers = [
            (503, {"Retry-After": "0"}, b"busy"),
            (429, {}, b""),
            errors("OVERLOADED"),
            errors("RATE_LIMITED"),
            errors("TIMEOUT"),
            graphql(exportMembers={"task": None, "userErrors": [in_progress]}),
            graphql(exportMembers={"task": a_task(), "userErrors": []}),
            graphql(task=done_task),
            graphql(task=done_task),
            graphql(task=done_task),
            graphql(task=done_task),
        ]
        links.answers = [(200, {}, content[:-2]), (403, {}, b"expired"), (200, {}, content)]
        done = await run(f"{server.url}/graphql", "export", "--segment", "A", seconds=4, token="s3cret")
        assert (done.exit_code, done.stdout) == (0, content.decode()), done.stderr
    assert server.answers == links.answers == []
    assert [headers.get("Authorization") for headers, _ in server.seen] == ["Bearer s3cret"] * 11
    assert [headers.get("Authorization") for headers, _ in links.seen] == [None] * 3
    keys = {json.loads(body)["variables"].get("key") for _, body in server.seen}
    assert len(keys - {None}) == 1
    assert f"{links.url}/file sent other bytes than it promised." in done.stderr
    assert "signature" not in done.stderr


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (errors("BAD_USER_INPUT"), "says: Not now. (BAD_USER_INPUT)"),
        ((401, {}, b'{"errors": [{"message": "Who are you?"}]}'), "says: Who are you?"),
        ((404, {}, b"<html>"), "answered with status 404, and not as a GraphQL server does."),
        ((301, {"Location": "/"}, b""), "answered with status 301, and not as a GraphQL server does."),
        ((200, {}, b"[]"), "answered with status 200, and not as a GraphQL server does."),
    ],
)
async def test_what_no_other_try_would_change_is_told_at_once(run: Run, answer: Any, said: str) -> None:
    with scripted() as server:
        server.answers = [answer]
        done = await run(f"{server.url}/graphql", "user", "ann", seconds=30)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"segmentql: {server.url}/graphql {said}")
        assert done.stderr.count("\n") == 1
        assert len(server.seen) == 1


def test_the_server_says_when_to_come_back() -> None:
    def asked(value: str) -> float:
        return retry_after(httpx.Response(503, headers={"Retry-After": value}))

    assert (asked("120"), asked(""), asked("soon"), asked("-5")) == (120, 0, 0, 0)
    assert asked("Fri, 31 Dec 1999 23:59:59 GMT") == 0
    assert asked("Fri, 31 Dec 9999 23:59:59 GMT") > 1e9


def test_nobody_waits_for_longer_than_patience_lasts() -> None:
    def attempt() -> None:
        raise Again("Later.", after=100)

    said: list[str] = []
    with pytest.raises(Failed, match=r"Later\. Given up after 0 s\."):
        Patience(50, said.append).persist(attempt)
    assert said == []


def test_two_who_begin_at_once_have_one_key(tmp_path: Path) -> None:
    keys: set[str] = set()
    together, all_began = threading.Barrier(8), threading.Barrier(8)

    def begin() -> None:
        together.wait()
        with keeping(tmp_path, "report", "http://here", {"from": "now"}) as (path, found):
            keys.add(found.key)
            begun(path, found, "7")
            all_began.wait()

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_key_lasts_until_the_end_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    def key(input: str, *, ends: bool) -> str:
        found = ""
        keys = keeping(tmp_path / "new" / "folder", "report", "http://here", {"from": input})
        with suppress(KeyboardInterrupt), keys as (path, kept_one):
            found = kept_one.key
            assert path.stat().st_mode & 0o777 == 0o600
            if not ends:
                raise KeyboardInterrupt
        return found

    first = key("a", ends=False)
    assert 8 <= len(first) <= 128
    assert first.isascii()
    assert key("b", ends=False) != first
    assert key("a", ends=True) == first
    assert key("a", ends=True) != first


def test_what_is_for_the_commands_is_no_unknown_setting(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        names = ("SEGMENTQL_URL", "SEGMENTQL_TOKEN", "SEGMENTQL_STATE_DIR")
        assert from_environ(dict.fromkeys(names, "x")) == Settings()
    assert caplog.messages == []


def kept_task(state: Path) -> str | None:
    """The task of the only key that is kept, once it has one."""
    if not state.exists():
        return None
    found = [json.loads(path.read_text())["task_id"] for path in state.glob("*.json")]
    return found[0] if found else None


async def uploaded(client: Client, task_id: str | None) -> bool:
    for _ in range(500):
        if (await client.ask(WAITS, id=task_id))["task"]["uploadUrl"] is None:
            return True
        await asyncio.sleep(0.02)
    return False


async def until(true: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if true():
            break
        await asyncio.sleep(0.02)
    assert true()


@contextmanager
def begun_command(state: Path, url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    environ = os.environ | {"SEGMENTQL_STATE_DIR": str(state), "SEGMENTQL_URL": url}
    command = [sys.executable, "-m", "server", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


class Scripted:
    """A server that gives the answers it was told, one after the other."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.seen: list[tuple[dict[str, str], bytes]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                script.seen.append((dict(self.headers), body))
                status, headers, content = script.answers.pop(0)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_PUT = do_GET  # noqa: N815  # http.server looks for these names

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def scripted() -> Iterator[Scripted]:
    script = Scripted()
    thread = threading.Thread(target=script.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield script
    finally:
        script.server.shutdown()
        thread.join()
        script.server.server_close()


class Line:
    """The way to a server, which breaks when it is told to."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._losing: list[bytes] = []
        self._breaks, self._after_bytes = 0, 0
        self.url = ""
        # The requests whose answers were.
        self.lost: list[bytes] = []
        # What is not let through.
        self.cut: bytes | None = None
        # How many were begun.
        self.uploads = 0

    def lose(self, request: bytes, times: int = 1) -> None:
        """Let such requests through, and not their answers; uploads only when they are broken no more."""
        self._losing += [request] * times

    def break_uploads(self, times: int, *, after_bytes: int) -> None:
        self._breaks, self._after_bytes = times, after_bytes

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        losing = asyncio.Event()
        back = asyncio.create_task(self._answers(server_reader, writer, losing))
        uploaded: int | None = None
        try:
            while sent := await reader.read(65_536):
                if self.cut is not None and self.cut in sent:
                    writer.transport.abort()
                    break
                if sent.startswith(b"PUT "):
                    self.uploads += 1
                    uploaded = 0
                breaks = uploaded is not None and self._breaks > 0
                if not breaks and (found := next((each for each in self._losing if each in sent), None)) is not None:
                    self._losing.remove(found)
                    self.lost.append(found)
                    losing.set()
                server_writer.write(sent)
                await server_writer.drain()
                if uploaded is not None:
                    uploaded += len(sent)
                    if breaks and uploaded > self._after_bytes:
                        self._breaks -= 1
                        writer.transport.abort()
                        break
            else:
                if losing.is_set():
                    await back
        finally:
            back.cancel()
            server_writer.transport.abort()
            writer.transport.abort()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        while answer := await reader.read(65_536):
            if losing.is_set():
                writer.transport.abort()
                return
            writer.write(answer)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def line_to(client: Client) -> AsyncIterator[Line]:
    url = client.http.base_url
    assert url.port is not None
    line = Line(url.host, url.port)
    serving: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await line.serve(reader, writer)
        except OSError:
            writer.transport.abort()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    line.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/graphql"
    try:
        yield line
    finally:
        listener.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
