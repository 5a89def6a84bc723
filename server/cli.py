"""The command line."""

import asyncio
import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from schema.api import schema as api_schema
from server import client_commands, database, demo, embedded, logs, token_commands, upkeep
from server import serve as serving
from server import worker as working
from server.settings import Settings, StartError, from_environ

app = typer.Typer(
    help="SegmentQL answers which segments a user is in, right now. Settings are SEGMENTQL_… in the environment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Host = Annotated[str | None, typer.Option(help="The address to listen on (SEGMENTQL_HOST).")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="The port to listen on (SEGMENTQL_PORT).")]
DataDir = Annotated[Path | None, typer.Option(help="Where the own servers keep their data (SEGMENTQL_DATA_DIR).")]
Workers = Annotated[int | None, typer.Option(min=1, max=64, help="Server processes (SEGMENTQL_WORKERS).")]


def main() -> None:
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"segmentql {version('segmentql')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(host: Host = None, port: Port = None, data_dir: DataDir = None, workers: Workers = None) -> None:
    """Serve GraphQL; with servers of our own when no database is configured."""
    with _failing_in_one_line():
        serving.serve(_settings(host=host, port=port, data_dir=data_dir, workers=workers))


@app.command()
def worker(data_dir: DataDir = None) -> None:
    """Work off background tasks, and run the nightly purge. Any number may run, on any number of hosts."""
    with _failing_in_one_line(), _database(data_dir) as settings:
        working.work(settings)


@app.command()
def purge(data_dir: DataDir = None) -> None:
    """Tidy now what the nightly purge would tidy at 00:00 UTC. Safe at any time, and in several places at once."""
    with _failing_in_one_line(), _database(data_dir) as settings:
        upkeep.purge(settings)


@app.command()
def verify(
    data_dir: DataDir = None,
    checksums: Annotated[bool, typer.Option("--checksums", help="Read every report's file from end to end.")] = False,
) -> None:
    """Check that history, memberships, operations and files fit together; exits with 1 if not. Only reads; safe at
    any time.
    """
    with _failing_in_one_line(), _database(data_dir) as settings:
        if not upkeep.verify(settings, checksums=checksums):
            raise typer.Exit(1)


@app.command()
def migrate(data_dir: DataDir = None) -> None:
    """Bring the database up to this version. Safe to run again, and in several places at once."""
    with _failing_in_one_line(), _database(data_dir, current=False) as settings:
        asyncio.run(database.prepare(settings))
        typer.echo("The database is up to date.")


@app.command()
def load_demo(data_dir: DataDir = None) -> None:
    """Fill an empty database with a year of 50 segments and 100 000 users, to try things on."""
    with _failing_in_one_line(), _database(data_dir) as settings:
        demo.load_demo(settings)


@app.command()
def schema() -> None:
    """Print the GraphQL schema."""
    typer.echo(api_schema().as_str())


# Those that ask a server over HTTP.
client_commands.register(app)


@contextmanager
def _database(data_dir: Path | None, *, current: bool = True) -> Iterator[Settings]:
    """The settings, with a database: the one that is configured, or our own, which a `serve` may have started."""
    settings = _settings(data_dir=data_dir)
    with ExitStack() as ending:
        if settings.embedded:
            servers = ending.enter_context(embedded.shared(settings.data_dir))
            settings = dataclasses.replace(settings, database_url=servers.database_url, redis_url=servers.redis_url)
        if current:
            asyncio.run(database.check(settings))
        yield settings


def _settings(**overrides: object) -> Settings:
    settings = from_environ(os.environ)
    logs.configure(settings.log_level, settings.log_format)
    return dataclasses.replace(settings, **{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]  # typer has checked them


@contextmanager
def _failing_in_one_line() -> Iterator[None]:
    try:
        yield
    except (StartError, embedded.EmbeddedError) as error:
        typer.echo(f"segmentql: {error}", err=True)
        raise typer.Exit(1) from error
    except (SQLAlchemyError, OSError) as error:
        # Not 1, by which `verify` says that there are differences.
        typer.echo(f"segmentql: {database.cause(error)}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


token_commands.register(app, _failing_in_one_line, _database)
