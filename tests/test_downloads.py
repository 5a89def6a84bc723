"""Downloads: with a good link the file, without one nothing; from a folder, or from a bucket."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit
from uuid import uuid4

import boto3
import httpx
import pytest
from background import ask_for_report, comes_to, download, execute, finished, let_leases_end, lines, task
from conftest import Client, Serve
from operations import change, create
from sqlalchemy.ext.asyncio import AsyncEngine

from db import tasks as db_tasks
from db.files import Files
from jobs.purge import Retention, by_hand


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[Client]:
    async with serve(serve_tasks=1) as client:
        await create(client, "A")
        await asyncio.gather(*(change(client, user, add=["A"]) for user in range(20)))
        yield client


async def made(client: Client) -> Any:
    """A finished report."""
    return await finished(client, (await ask_for_report(client))["task"]["id"])


async def test_the_file_comes_as_an_attachment_with_its_name(client: Client) -> None:
    found = await made(client)
    answer = await client.http.get(found["file"]["url"])
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="segmentql-report-{found["id"]}.csv"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert len(lines(answer.content)) == found["file"]["rows"] == 20
    head = await client.http.head(found["file"]["url"])
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == found["file"]["bytes"]


async def test_ranges_so_that_a_broken_download_goes_on(client: Client) -> None:
    found = await made(client)
    url, size = found["file"]["url"], found["file"]["bytes"]
    whole = (await client.http.get(url)).content
    first = await client.http.get(url, headers={"Range": "bytes=0-99"})
    rest = await client.http.get(url, headers={"Range": "bytes=100-"})
    assert (first.status_code, first.headers["content-range"]) == (206, f"bytes 0-99/{size}")
    assert first.content + rest.content == whole
    assert (await client.http.get(url, headers={"Range": "bytes=-5"})).content == whole[-5:]
    beyond = await client.http.get(url, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")


async def test_a_link_is_made_anew_and_good_for_its_time(serve: Serve) -> None:
    async with serve(serve_tasks=1, link_minutes=1) as client:
        found = await made(client)
        expires = int(parse_qs(urlsplit(found["file"]["url"]).query)["expires"][0])
        assert expires - time.time() == pytest.approx(60, abs=5)
        assert found["file"]["urlExpiresAt"].startswith(time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(expires)))
    async with serve(link_minutes=10_080) as client:
        again = await task(client, found["id"])
        assert again["file"]["url"] != found["file"]["url"]
        assert (await client.http.get(again["file"]["url"])).status_code == 200


async def test_a_link_begins_with_what_the_caller_used_or_the_operator_said(serve: Serve) -> None:
    async with serve(serve_tasks=1) as client:
        found = await made(client)
        assert found["file"]["url"].startswith(f"{str(client.http.base_url).rstrip('/')}/files/{found['id']}?")
    async with serve(public_url="https://segments.example.com/api") as client:
        url = (await task(client, found["id"]))["file"]["url"]
        assert url.startswith(f"https://segments.example.com/api/files/{found['id']}?")


def changed(url: str, path: str | None = None, **query: str | None) -> str:
    parts = urlsplit(url)
    pairs = {name: values[0] for name, values in parse_qs(parts.query).items()} | query
    kept = {name: value for name, value in pairs.items() if value is not None}
    return urlunsplit(parts._replace(path=path or parts.path, query=urlencode(kept)))


async def test_a_link_that_was_not_given_out_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (await made(client)), (await made(client))
    url = one["file"]["url"]
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    signature, expires = query["signature"], query["expires"]
    theirs = parse_qs(urlsplit(other["file"]["url"]).query)["signature"][0]
    refused = [
        changed(url, signature=None),
        changed(url, expires=None),
        changed(url, attempt=None),
        *(changed(url, attempt=other_one) for other_one in ("2", "0", "-1", "01", "+1", "1.0", "٣", "9" * 30)),
        changed(url, signature=""),
        changed(url, signature=signature[:-1]),
        changed(url, signature=signature + "="),
        changed(url, signature=signature.swapcase()),
        changed(url, signature="ü\x00"),
        changed(url, expires=str(int(expires) + 1)),
        changed(url, expires=f"0{expires}"),
        changed(url, expires=f"+{expires}"),
        changed(url, expires=f"{expires}.0"),
        changed(url, expires="99999999999999999999999"),
        changed(url, expires="٣" * 10),
        # Another task's signature, and this one's on another task.
        changed(url, signature=theirs),
        changed(url, path=f"/files/{other['id']}"),
        changed(url, path=f"/files/{uuid4()}"),
    ]
    looked_up: list[object] = []
    of_files = db_tasks.of_files

    async def noting(*given: Any) -> Any:
        looked_up.append(given)
        return await of_files(*given)

    monkeypatch.setattr(db_tasks, "of_files", noting)
    for each in refused:
        answer = await client.http.get(each)
        assert answer.status_code == 403, each
        assert answer.json() == {"error": "This is not a link that was given out."}
    # No stranger has a statement made.
    assert looked_up == []
    assert (await client.http.post(url)).status_code == 405
    assert (await client.http.get(url)).status_code == 200
    late = int(expires) + 1
    monkeypatch.setattr(time, "time", lambda: late)
    answer = await client.http.get(url)
    assert (answer.status_code, answer.json()) == (
        403,
        {"error": "The link has expired: ask for the task again to get a new one."},
    )


ELSEWHERE = [
    "/files/",
    "/files",
    "/files/..",
    "/files/../../etc/passwd",
    "/files/..%2f..%2fetc%2fpasswd",
    "/files/%2e%2e/%2e%2e/etc/passwd",
    "/files/{id}/1.csv",
    "/files/{id}%2f1.csv",
    "/files/{id}/../{id}",
    "/files/{id}%00",
    "/files/{id}.csv",
    "/files//{id}",
    "/files/reports/{id}/1.csv",
    "/reports/{id}/1.csv",
]


async def test_no_path_leads_anywhere_else(client: Client) -> None:
    found = await made(client)
    url = urlsplit(found["file"]["url"])
    for path in ELSEWHERE:
        # By hand: a client of HTTP would tidy the path.
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        target = f"{path.format(id=found['id'])}?{url.query}"
        writer.write(f"GET {target} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert answer.split(b" ")[1] in (b"403", b"404"), (path, answer)
        assert b"user_id" not in answer, path


async def test_a_file_that_was_cleaned_or_is_not_there_yet_is_not_found(
    client: Client, engine: AsyncEngine, tmp_path: Path
) -> None:
    found = await made(client)
    assert (await client.http.get(found["file"]["url"])).status_code == 200
    await execute(engine, "UPDATE tasks SET finished_at = finished_at - interval '8 days'")
    files = Files(str(tmp_path / "files"))
    files.prepare()
    stats = await by_hand(engine, files, Retention(24, 7, 30, None))
    assert stats["files"] == 1
    assert list((tmp_path / "files" / "reports").iterdir()) == []
    answer = await client.http.get(found["file"]["url"])
    assert (answer.status_code, answer.json()) == (
        404,
        {"error": "The file was removed: it is kept for some days only."},
    )
    again = await task(client, found["id"])
    assert (again["status"], again["file"]) == ("SUCCEEDED", None)


async def test_any_process_follows_a_link_that_another_has_made(serve: Serve, client: Client) -> None:
    found = await made(client)
    async with serve() as other:
        url = urlsplit(found["file"]["url"])._replace(netloc=urlsplit(str(other.http.base_url)).netloc)
        assert (await other.http.get(urlunsplit(url))).status_code == 200


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server that speaks S3, which is a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with httpx.Client(transport=httpx.HTTPTransport(retries=12)) as http:
        http.get(f"http://127.0.0.1:{port}", timeout=10)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, s3: str) -> Any:
    environ = {
        "AWS_ACCESS_KEY_ID": "some-id",
        "AWS_SECRET_ACCESS_KEY": "some-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3,
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return boto3.resource("s3", endpoint_url=s3).create_bucket(Bucket=f"reports-{uuid4()}")


async def test_a_report_in_a_bucket_is_downloaded_from_there(serve: Serve, bucket: Any, engine: AsyncEngine) -> None:
    place = f"s3://{bucket.name}/some/prefix"
    async with serve(serve_tasks=1, files=place) as client:
        await create(client, "A")
        await change(client, 7, add=["A"])
        # More than one part.
        await execute(
            engine,
            """INSERT INTO membership_events
               SELECT 'user-' || n, 1, 'ADDED', now() - interval '1 s', 'infinity', NULL
               FROM generate_series(1, 300000) AS n""",
        )
        found = await made(client)
        assert found["file"]["bytes"] > 8 * 1024 * 1024
        content = await download(client, found)
        assert len(lines(content)) == found["file"]["rows"] == 300_001
        (stored,) = bucket.objects.all()
        assert stored.key == f"some/prefix/reports/{found['id']}/1.csv"
        answer = await client.http.get(found["file"]["url"])
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert answer.headers["content-disposition"] == f'attachment; filename="segmentql-report-{found["id"]}.csv"'
        bad = changed(found["file"]["url"], **{"X-Amz-Signature": "0" * 64})
        assert urlsplit(bad).netloc == urlsplit(found["file"]["url"]).netloc
        # Our own route has nothing to give.
        assert (await client.http.get(f"/files/{found['id']}")).status_code == 403
        await execute(engine, "UPDATE tasks SET finished_at = finished_at - interval '8 days'")
        files = Files(place)
        stats = await by_hand(engine, files, Retention(24, 7, 30, None))
        assert stats["files"] == 1
        assert list(bucket.objects.all()) == []
        assert (await task(client, found["id"]))["file"] is None


async def test_what_a_killed_attempt_left_in_a_bucket_goes(serve: Serve, bucket: Any, engine: AsyncEngine) -> None:
    place = f"s3://{bucket.name}"
    async with serve(files=place) as client:
        task_id = (await ask_for_report(client))["task"]["id"]
        await execute(engine, "UPDATE tasks SET status = 'RUNNING', attempt = 1, heartbeat_at = now()")
        bucket.put_object(Key=f"reports/{task_id}/1.csv", Body=b"half")
        bucket.put_object(Key=f"reports/{uuid4()}/1.csv", Body=b"of somebody else")
        bucket.put_object(Key="reports/notes.txt", Body=b"of somebody else")
        await let_leases_end(engine)
    async with serve(serve_tasks=1, files=place) as client:
        found = await finished(client, task_id)
        assert await download(client, found) == b"user_id,segment,operation,at\r\n"
        await comes_to(
            lambda: [each.key for each in bucket.objects.all() if task_id in each.key], [f"reports/{task_id}/2.csv"]
        )
    files = Files(place)
    stats = await by_hand(engine, files, Retention(24, 7, 30, None))
    assert stats["leftovers"] == 0
    assert len(list(bucket.objects.all())) == 3


async def test_a_bucket_that_is_away_is_tried_again(serve: Serve, bucket: Any, engine: AsyncEngine) -> None:
    async with serve(serve_tasks=1, files="s3://no-such-bucket") as client:
        task_id = (await ask_for_report(client))["task"]["id"]
        while not await execute(engine, "SELECT 1 FROM tasks WHERE failures = 1"):
            await asyncio.sleep(0.05)
        ((status, error),) = await execute(engine, "SELECT CAST(status AS text), error FROM tasks")
        assert status == "QUEUED"
        assert error.startswith("The file could not be stored: ")
        assert (await task(client, task_id))["error"] is None
