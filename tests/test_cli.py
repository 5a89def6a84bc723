"""The command line, as real processes: what it says, what it serves, and that it leaves nothing behind."""

import asyncio
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import forking
import httpx
import pytest
import secrets_in_logs
from databases import query, sql
from operations import CREATE, MEMBERSHIPS, SEGMENTS, new_key
from processes import processes

from db import connections, migrate
from server import database, embedded
from server.embedded import Servers
from server.serve import _listen, _listener, serve
from server.settings import Settings, StartError
from server.stop import Stop

ROOT = Path(__file__).parents[1]
Started = subprocess.Popen[bytes] | forking.Command
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@dataclass(frozen=True)
class Service:
    """A process that serves."""

    process: Started
    url: str
    log: Path

    def ask(self, query: str, **variables: object) -> Any:
        # A new connection each time: any of the server processes may answer.
        answer = httpx.post(self.url, json={"query": query, "variables": variables}, timeout=30).json()
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


@pytest.fixture
def place(empty_place: Path, cluster: Path) -> Path:
    """A place where `segmentql serve` has run before."""
    shutil.copytree(cluster, empty_place / ".segmentql" / "postgres", symlinks=True)
    (empty_place / ".segmentql").chmod(0o700)
    return empty_place


@pytest.fixture
def empty_place() -> Iterator[Path]:
    """A short path with a space in it, below which no process runs in the end."""
    path = Path(tempfile.mkdtemp(prefix="segment ql-"))
    yield path
    left = [] if until(lambda: not processes(path)) else processes(path)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(path)
    assert left == []


@pytest.fixture
def urls(servers: Servers, prepared_url: str) -> dict[str, str]:
    """The settings for a database of the test's own."""
    return {"SEGMENTQL_DATABASE_URL": prepared_url, "SEGMENTQL_REDIS_URL": servers.redis_url}


def test_serve_says_where_and_what_to_try_and_keeps_what_was_written(empty_place: Path) -> None:
    with serving(empty_place, "--data-dir", "my data") as service:
        first, second, third = service.log.with_name("stdout").read_text().splitlines()
        assert first == f"SegmentQL serves on {service.url}"
        assert second == "Open that in a browser and press the run button of each tab, or try:"
        typed = subprocess.run(third, shell=True, capture_output=True, text=True, check=True)
        assert typed.stdout == '{"data":{"user":{"segments":[]}}}'
        assert create(service, "KEPT") == []
        assert len(processes(empty_place)) > 2
        assert service.end(signal.SIGTERM) == 0
        assert processes(empty_place) == []
    with serving(empty_place, "--data-dir", empty_place / "my data") as service:
        assert create(service, "KEPT") == ["SEGMENT_EXISTS"]
        assert service.end(signal.SIGINT) == 0
        assert processes(empty_place) == []
    assert "Traceback" not in service.log.read_text()


@linux
@pytest.mark.processes
def test_kill_9_leaves_no_process_and_loses_nothing(place: Path) -> None:
    with serving(place, "--workers", "2") as service:
        assert create(service, "KEPT") == []
        service.end(signal.SIGKILL)
    assert until(lambda: not processes(place))
    with serving(place) as service:
        assert create(service, "KEPT") == ["SEGMENT_EXISTS"]
        assert service.end(signal.SIGTERM) == 0


def test_a_second_serve_on_the_same_data_says_where_the_first_is(place: Path) -> None:
    with serving(place) as first:
        second = segmentql(place, "serve", "--port", "0")
        assert second.stderr == (
            f"segmentql: Another process already uses {place / '.segmentql'} and serves at {first.url} "
            f"(process {first.process.pid}): use that one, or choose another --data-dir.\n"
        )
        assert (second.returncode, second.stdout) == (1, "")
        assert first.ask(SEGMENTS, id=7) == {"user": {"segments": []}}


def test_commands_share_the_servers_of_a_running_service(place: Path) -> None:
    with serving(place) as service:
        assert create(service, "KEPT") == []
        purged = segmentql(place, "purge")
        assert (purged.returncode, purged.stdout[:24]) == (0, "Removed: 0 memberships, "), purged.stderr
        verified = segmentql(place, "verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
        with started(place, "worker") as (worker, log):
            assert until(lambda: "working off up to 4 tasks at a time" in log.read_text())
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(20) == 0
        assert create(service, "KEPT") == ["SEGMENT_EXISTS"]


def test_reports_that_cannot_be_kept_are_refused_at_the_start(empty_place: Path, urls: dict[str, str]) -> None:
    (empty_place / "a file").touch()
    for command in ("serve", "worker"):
        refused = segmentql(
            empty_place, command, **urls, SEGMENTQL_FILES=str(empty_place / "a file" / "below"), SEGMENTQL_PORT="0"
        )
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.splitlines()[-1] == (
            f"segmentql: Reports cannot be kept in {empty_place}/a file/below (Not a directory): choose another place "
            "with SEGMENTQL_FILES, or leave background tasks to `segmentql worker` with SEGMENTQL_SERVE_TASKS=0."
        )


def test_each_server_process_shows_metrics_on_a_port_of_its_own(empty_place: Path, urls: dict[str, str]) -> None:
    port = free_pair()
    with serving(empty_place, "--workers", "2", **urls, SEGMENTQL_METRICS_PORT=str(port)):
        for each in (port, port + 1):
            assert until(lambda each=each: shows_metrics(each))  # type: ignore[misc]  # mypy takes no defaults in lambdas
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = segmentql(empty_place, "serve", "--port", "0", **urls, SEGMENTQL_METRICS_PORT=str(port))
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1] == (
            f"segmentql: Metrics cannot be shown on 127.0.0.1 port {port} (Address already in use): "
            "choose another with SEGMENTQL_METRICS_PORT."
        )


def shows_metrics(port: int) -> bool:
    try:
        return "segmentql_tasks_finished_total" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    except httpx.TransportError:
        return False


def test_a_taken_port_is_one_line_and_nothing_keeps_running(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = segmentql(place, "serve", "--port", str(port))
    assert refused.stderr == (
        f"segmentql: Cannot listen on 127.0.0.1 port {port} (Address already in use): "
        "choose another with --port or --host.\n"
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert processes(place) == []


@linux
@pytest.mark.processes
def test_each_of_two_server_processes_answers_and_one_that_dies_is_replaced(
    empty_place: Path, urls: dict[str, str]
) -> None:
    # A request is slow on a busy machine, and is logged as that; it is not what is looked for here.
    with serving(empty_place, "--workers", "2", **urls, SEGMENTQL_SLOW_MS="300000") as service:
        for frozen in workers_of(service):
            os.kill(frozen, signal.SIGSTOP)
            assert service.ask(SEGMENTS, id=7) == {"user": {"segments": []}}
            os.kill(frozen, signal.SIGCONT)
        died, survivor = workers_of(service)
        os.kill(died, signal.SIGKILL)
        assert until(lambda: len(workers_of(service)) == 2 and died not in workers_of(service))
        assert survivor in workers_of(service)
        assert service.ask(SEGMENTS, id=7) == {"user": {"segments": []}}
        assert service.end(signal.SIGINT) == 0
    (line,) = [line for line in service.log.read_text().splitlines() if " INFO " not in line]
    assert line.endswith(f"ERROR server.serve: server process {died} died (exit code -9) and is replaced")


def test_what_is_under_way_is_finished_before_the_end(empty_place: Path, urls: dict[str, str]) -> None:
    database_url = urls["SEGMENTQL_DATABASE_URL"]
    for statement in GATED:
        sql(database_url, statement)
    refused: list[str] = []
    with serving(empty_place, "--workers", "2", **urls) as service:
        asking = threading.Thread(target=lambda: refused.extend([*create(service, "LATE"), "nothing"]))
        asking.start()
        assert until(lambda: len(sql(database_url, WAITING)) == 1)
        service.process.send_signal(signal.SIGTERM)
        assert until(lambda: not accepts(service))
        assert service.process.poll() is None
        sql(database_url, "INSERT INTO gate DEFAULT VALUES")
        asking.join(30)
        assert service.process.wait(30) == 0
    assert refused == ["nothing"]
    assert sql(database_url, "SELECT slug FROM segments") == [("LATE",)]
    assert "Traceback" not in service.log.read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_that_cannot_start_says_so_and_fails(empty_place: Path, urls: dict[str, str], workers: int) -> None:
    # As newer code might leave it, except that this is more than ours can do without.
    sql(urls["SEGMENTQL_DATABASE_URL"], "UPDATE alembic_version SET version_num = '9999'")
    sql(urls["SEGMENTQL_DATABASE_URL"], "DROP TABLE catalogue")
    failed = segmentql(empty_place, "serve", "--port", "0", "--workers", str(workers), **urls)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == "segmentql: The service could not start; the lines above say why."
    assert 'relation "catalogue" does not exist' in failed.stderr
    assert processes(empty_place) == []


def test_a_database_that_is_behind_is_refused_with_the_remedy(place: Path, database_url: str, servers: Servers) -> None:
    urls = {"SEGMENTQL_DATABASE_URL": database_url, "SEGMENTQL_REDIS_URL": servers.redis_url}
    refused = segmentql(place, "serve", "--port", "0", **urls)
    assert refused.stderr == (
        f"segmentql: The database is empty, this version needs {migrate.newest()}. Run: segmentql migrate\n"
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    for _ in range(2):
        done = segmentql(place, "migrate", **urls)
        assert (done.returncode, done.stdout) == (0, "The database is up to date.\n"), done.stderr
    with serving(place, **urls) as service:
        assert service.ask(SEGMENTS, id=7) == {"user": {"segments": []}}
        assert service.end(signal.SIGTERM) == 0


def test_a_database_that_newer_code_has_migrated_is_served_with_a_warning(
    empty_place: Path, urls: dict[str, str]
) -> None:
    sql(urls["SEGMENTQL_DATABASE_URL"], "UPDATE alembic_version SET version_num = '9999'")
    warning = f"the database is at revision 9999, which is newer than this version's {migrate.newest()}\n"
    with serving(empty_place, **urls) as service:
        assert service.ask(SEGMENTS, id=7) == {"user": {"segments": []}}
        assert service.end(signal.SIGTERM) == 0
    assert service.log.read_text().count(f"WARNING server.database: {warning}") == 1


async def test_a_database_that_newer_code_has_migrated_is_not_migrated(
    urls: dict[str, str], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    url = urls["SEGMENTQL_DATABASE_URL"]
    await query(url, "UPDATE alembic_version SET version_num = '9999'")
    await database.prepare(replace(settings, database_url=url))
    assert f"the database is at revision 9999, which is newer than this version's {migrate.newest()}" in caplog.text
    assert await query(url, "SELECT version_num FROM alembic_version") == [("9999",)]


async def test_a_migration_that_fails_says_why(database_url: str, settings: Settings) -> None:
    await query(database_url, "CREATE TABLE operations (is_in_the_way int)")
    with pytest.raises(StartError) as failed:
        await database.prepare(replace(settings, database_url=database_url))
    assert str(failed.value) == ('The database could not be brought up to date: relation "operations" already exists')


def test_a_database_that_is_not_there_yet_is_waited_for(place: Path) -> None:
    late = place / "late"
    socket_directory = str(late / "run").replace(" ", "%20")
    settings = {
        "SEGMENTQL_DATABASE_URL": f"postgresql://segmentql@/segmentql?host={socket_directory}&port=5432",
        "SEGMENTQL_REDIS_URL": "redis://127.0.0.1:1",
    }
    with started(place, "migrate", **settings) as (process, log):
        assert until(lambda: "waiting up to 30 s for the database" in log.read_text())
        with embedded.running(late, durable=False):
            assert process.wait(60) == 0
    assert "Traceback" not in log.read_text()


def test_a_database_that_does_not_come_is_one_line(place: Path) -> None:
    failed = segmentql(
        place,
        "serve",
        SEGMENTQL_DATABASE_URL="postgresql://someone:s3cret@127.0.0.1:1/segmentql",
        SEGMENTQL_REDIS_URL="redis://127.0.0.1:1",
        SEGMENTQL_DATABASE_WAIT="0",
        SEGMENTQL_LOG_LEVEL="WARNING",
    )
    assert failed.stderr == (
        "segmentql: The database at postgresql+asyncpg://someone:***@127.0.0.1:1/segmentql did not answer in 0 s: "
        "[Errno 111] Connect call failed ('127.0.0.1', 1)\n"
    )
    assert (failed.returncode, failed.stdout) == (1, "")


async def test_a_database_that_lets_nobody_in_is_not_waited_for(servers: Servers, settings: Settings) -> None:
    stranger = servers.database_url.replace("//segmentql@", "//stranger:s3cret@")
    async with asyncio.timeout(20):
        with pytest.raises(StartError) as refused:
            await database.check(replace(settings, database_url=stranger))
    shown = stranger.replace("s3cret", "***")
    assert str(refused.value) == f'The database at {shown} does not let us in: role "stranger" does not exist'


async def test_an_older_postgresql_is_refused(urls: dict[str, str], settings: Settings) -> None:
    url = urls["SEGMENTQL_DATABASE_URL"]
    said = "CREATE OR REPLACE FUNCTION pg_catalog.version() RETURNS text LANGUAGE sql AS"
    await query(url, f"{said} $$ SELECT 'PostgreSQL 17.6' $$")
    with pytest.raises(StartError) as refused:
        await database.check(replace(settings, database_url=url))
    assert str(refused.value) == f"The database at {url} is PostgreSQL 17, this version needs 18 or newer."


@pytest.mark.parametrize(
    ("command", "how", "code"),
    [("serve", signal.SIGTERM, 0), ("migrate", signal.SIGINT, 130)],
)
def test_who_waits_for_a_database_can_be_told_to_stop(
    place: Path, command: str, how: signal.Signals, code: int
) -> None:
    settings = {
        "SEGMENTQL_DATABASE_URL": "postgresql://someone@127.0.0.1:1/segmentql",
        "SEGMENTQL_REDIS_URL": "redis://127.0.0.1:1",
    }
    with started(place, command, **settings) as (process, log):
        assert until(lambda: "waiting up to 30 s" in log.read_text())
        process.send_signal(how)
        assert process.wait(10) == code
    assert len(log.read_text().splitlines()) == 1


def test_being_told_to_stop_is_remembered_when_what_it_raises_is_lost() -> None:
    """As when Python forks at that moment."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    reached: list[str] = []

    def told_twice() -> None:
        with stop.by(sys.exit):
            with suppress(BaseException):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            reached.append("the end of the block")

    def later() -> None:
        with stop.by(sys.exit):
            reached.append("another block")

    try:
        stop = Stop()
        for block in (told_twice, later):
            with pytest.raises(SystemExit) as left:
                block()
            assert not left.value.code
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert reached == ["the end of the block"]


def test_of_two_who_want_one_port_one_is_refused() -> None:
    """Both may bind it before either listens."""
    with _listener(Settings(port=0)) as first:
        port = first.getsockname()[1]
        with _listener(Settings(port=port)) as second:
            _listen(first, Settings(port=port))
            with pytest.raises(StartError, match=f"Cannot listen on 127.0.0.1 port {port} "):
                _listen(second, Settings(port=port))


def test_migrate_brings_its_own_servers_when_none_is_configured(empty_place: Path) -> None:
    done = segmentql(empty_place, "migrate", "--data-dir", "data")
    assert (done.returncode, done.stdout) == (0, "The database is up to date.\n"), done.stderr
    assert processes(empty_place) == []
    assert (empty_place / "data" / "postgres" / "PG_VERSION").read_text() == "18\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_others_are_not_let_in(host: str) -> None:
    with pytest.raises(StartError) as refused:
        serve(Settings(host=host))
    assert str(refused.value) == (
        f"Refusing to serve without authentication on {host}, which others can reach: set "
        "SEGMENTQL_AUTHENTICATION=required and make tokens with `segmentql token create`, use --host 127.0.0.1, "
        "or set SEGMENTQL_UNAUTHENTICATED=anywhere where the network itself keeps strangers out."
    )


def test_others_are_let_in_when_that_is_wanted(empty_place: Path, urls: dict[str, str]) -> None:
    with serving(empty_place, "--host", "0.0.0.0", SEGMENTQL_UNAUTHENTICATED="anywhere", **urls) as service:
        assert service.url.startswith("http://0.0.0.0:")
        assert service.ask(SEGMENTS, id=7) == {"user": {"segments": []}}
        assert service.end(signal.SIGTERM) == 0


def test_a_name_that_is_no_address_is_refused() -> None:
    with pytest.raises(StartError) as refused:
        serve(Settings(host="nowhere.invalid"))
    assert str(refused.value) == "There is no address 'nowhere.invalid' to listen on: choose another with --host."


def test_a_bad_setting_is_one_line_that_names_it_and_what_it_may_be(empty_place: Path) -> None:
    refused = segmentql(empty_place, "serve", SEGMENTQL_PORT="eighty")
    assert refused.stderr == "segmentql: SEGMENTQL_PORT is 'eighty': it must be a whole number from 0 to 65535.\n"
    assert (refused.returncode, refused.stdout) == (1, "")
    assert list(empty_place.glob(".segmentql")) == []


def test_it_runs_from_a_folder_with_any_name(empty_place: Path, urls: dict[str, str]) -> None:
    folder = empty_place / "100% ours, ü"
    for package in ("schema", "resolvers", "db", "jobs", "server"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    with serving(empty_place, PYTHONPATH=str(folder), **urls) as service:
        assert service.ask(MEMBERSHIPS, id=7) == {"user": {"memberships": []}}
        assert service.end(signal.SIGTERM) == 0


def test_schema_prints_the_schema(empty_place: Path) -> None:
    assert segmentql(empty_place, "schema").stdout == (ROOT / "schema.graphql").read_text()


def test_it_knows_its_version(empty_place: Path) -> None:
    assert segmentql(empty_place, "--version").stdout == f"segmentql {version('segmentql')}\n"


@contextmanager
def started(place: Path, *arguments: str | Path, **settings: str) -> Iterator[tuple[Started, Path]]:
    """A process, and where its log is; ended with the block, if it has not by then."""
    environ = environment(settings)
    process: Started
    with (place / "stdout").open("w") as stdout, (place / "stderr").open("w") as stderr:
        if "--workers" in arguments:
            # Which starts others of its kind, by the program that it is itself.
            command = [sys.executable, "-m", "server", *map(str, arguments)]
            process = subprocess.Popen(command, cwd=place, env=environ, stdout=stdout, stderr=stderr)
        else:
            process = forking.Command(arguments, cwd=place, env=environ, stdout=stdout, stderr=stderr)
    with process:
        try:
            yield process, place / "stderr"
        finally:
            process.kill()
            secrets_in_logs.search_file(place / "stderr")


@contextmanager
def serving(place: Path, *arguments: str | Path, **settings: str) -> Iterator[Service]:
    with started(place, "serve", "--port", "0", *arguments, **settings) as (process, log):
        greeting = place / "stdout"
        assert until(lambda: greeting.read_text().count("\n") == 3 or process.poll() is not None), log.read_text()
        found = re.match(r"SegmentQL serves on (http\S+)\n", greeting.read_text())
        assert found is not None, log.read_text()
        service = Service(process, found[1], log)
        # Whoever connects is answered when the application has started.
        service.ask("{ __typename }")
        yield service


def segmentql(place: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run to its end."""
    environ = environment(settings)
    if "--workers" not in arguments:
        return forking.run(arguments, cwd=place, env=environ)
    command = [sys.executable, "-m", "server", *arguments]
    return subprocess.run(command, cwd=place, env=environ, capture_output=True, text=True, timeout=100, check=False)


def environment(settings: dict[str, str]) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SEGMENTQL_")}
    return ours | {"PYTHONPATH": str(ROOT)} | settings


def create(service: Service, slug: str) -> list[str]:
    """The codes of what was refused."""
    payload = service.ask(CREATE, slug=slug, key=new_key())["createSegment"]
    return [error["code"] for error in payload["userErrors"]]


def accepts(service: Service) -> bool:
    url = httpx.URL(service.url)
    try:
        socket.create_connection((url.host, url.port)).close()
    except OSError:
        return False
    return True


# A mutation that creates a segment waits, and is told to go on by a row in `gate`.
GATED = (
    "CREATE TABLE gate ()",
    """CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        WHILE NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.02); END LOOP;
        RETURN NEW;
    END $$""",
    "CREATE TRIGGER wait BEFORE INSERT ON segments FOR EACH ROW EXECUTE FUNCTION wait()",
)
WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"


async def migrated(database_url: str) -> None:
    engine = connections.writer(database_url, pool_size=1)
    await migrate.migrate(engine)
    await engine.dispose()


def workers_of(service: Service) -> list[int]:
    """Its server processes; Python's own helper for shared resources is not one."""
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def free_pair() -> int:
    """A port which is free, as the next one is, and which no connection of anybody's gets: those are from 32 768 on."""
    for port in random.sample(range(20_000, 32_000, 2), 1_000):
        with socket.socket() as one, socket.socket() as other, suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("there are no two free ports")


def until(true: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not (so := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return so
