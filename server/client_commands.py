"""The commands that ask a server, which may be anywhere: they know its URL and a token, and none of its settings."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from db.clock import parse_instant
from server import client_state, client_tasks
from server.client import Api, Failed, Json, Patience, Refused
from server.client_bars import Bars, counted
from server.client_tasks import EXPORT, IMPORT, REPORT, Work, fetch
from server.transfers import Source

USER = """query ($id: ID!) { user(id: $id) {
  memberships { segment { slug } addedAt expiresAt source }
  history(first: 20) { nodes { at action slug expiresAt actor } pageInfo { hasNextPage } } } }"""


class ImportMode(StrEnum):
    ADD = "add"
    REMOVE = "remove"
    REPLACE = "replace"


Url = Annotated[str, typer.Option(envvar="SEGMENTQL_URL", help="The server's GraphQL endpoint.")]
RetrySeconds = Annotated[float, typer.Option(min=0, help="How long to go on trying while the server is away or busy.")]
Segment = Annotated[str, typer.Option(help="The segment's slug.")]
Output = Annotated[Path | None, typer.Option(help="Where to put the CSV file. Without it, it is printed.")]
HERE = "http://127.0.0.1:8080/graphql"


def register(app: typer.Typer) -> None:
    for name, command in (("import", import_), ("export", export), ("report", report), ("user", user)):
        app.command(name, rich_help_panel="Commands that ask a server, with SEGMENTQL_URL and SEGMENTQL_TOKEN")(command)


def import_(
    file: Annotated[Path, typer.Argument(help="A CSV file, plain or gzip, of user ids.")],
    segment: Segment,
    mode: Annotated[ImportMode, typer.Option(help="`replace` also removes who is not in the file.")] = ImportMode.ADD,
    ttl_days: Annotated[int | None, typer.Option(min=1, max=36_500, help="How long the memberships last.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="When the memberships end, in RFC 3339.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would become of the rows.")] = False,
    rejects: Annotated[
        Path | None, typer.Option(help="Where to put rejected rows.", show_default="FILE.rejects.csv")
    ] = None,
    url: Url = HERE,
    retry_seconds: RetrySeconds = 300,
) -> None:
    """Add, remove or replace a segment's members by a CSV file. After a crash, the same command goes on.

    Exits with 1 if rows were rejected.
    """
    with _ending(resumable=True), _api(url, retry_seconds) as (api, bars):
        wanted = {
            "slug": segment,
            "mode": mode.name,
            "ttlDays": ttl_days,
            "expiresAt": _instant("--expires-at", expires_at),
            "dryRun": dry_run,
        }
        rejected = rejects or file.with_name(f"{file.name}.rejects.csv")
        _check_source(file, rejected)
        source = Source.of(file, bars.of_bytes("read", file.stat().st_size))
        with _keeping("import", url, wanted, source.sha256) as place:
            task = client_tasks.finished(api, bars, IMPORT, place, source)
            result = task["importResult"]
            wrong = result["invalid"] + result["duplicate"]
            if task["file"] is not None and task["file"]["rows"] > 0:
                fetch(api, bars, IMPORT, task, rejected)
                bars.say(f"Stored {counted(wrong, 'rejected row')} in {rejected}.")
            elif wrong > 0:
                bars.say("The file of rejected rows was removed: it is kept for some days only.")
            bars.stop()
            _print_result(task)
    if wrong > 0:
        raise typer.Exit(1)


def export(segment: Segment, output: Output = None, url: Url = HERE, retry_seconds: RetrySeconds = 300) -> None:
    """Write a segment's members, as CSV."""
    with _ending(resumable=True), _api(url, retry_seconds) as (api, bars):
        _fetched(api, bars, EXPORT, {"slug": segment}, output)


def report(
    from_: Annotated[str, typer.Option("--from", help="Events at or after this instant, in RFC 3339.")],
    to: Annotated[str | None, typer.Option(help="Events before this instant. Without it: until now.")] = None,
    user: Annotated[list[str] | None, typer.Option(help="Only of this user; may be given several times.")] = None,
    segment: Annotated[list[str] | None, typer.Option(help="Only of this segment; so may this.")] = None,
    output: Output = None,
    url: Url = HERE,
    retry_seconds: RetrySeconds = 300,
) -> None:
    """Write what happened to memberships in a period, as CSV."""
    with _ending(resumable=True), _api(url, retry_seconds) as (api, bars):
        # Without `to` the server's clock decides, once for the key: a later run of the command asks for the same.
        wanted = {
            "from": _instant("--from", from_),
            "to": _instant("--to", to),
            "userIds": user or None,
            "segments": segment or None,
        }
        _fetched(api, bars, REPORT, wanted, output)


def user(
    id: Annotated[str, typer.Argument(help="The user's id.")], url: Url = HERE, retry_seconds: RetrySeconds = 300
) -> None:
    """Show which segments a user is in, and the latest 20 events of the user's history."""
    with _ending(resumable=False), _api(url, retry_seconds) as (api, _):
        found = api.ask(USER, id=id)["user"]
    memberships = Table("segment", "since", "until", "source", box=box.SIMPLE_HEAD, title_justify="left")
    for membership in found["memberships"]:
        until = membership["expiresAt"] or "-"
        memberships.add_row(membership["segment"]["slug"], membership["addedAt"], until, membership["source"].lower())
    events = Table("at", "what", "segment", "until", "by", box=box.SIMPLE_HEAD, title_justify="left")
    for event in found["history"]["nodes"]:
        what = event["action"].lower().replace("_", " ")
        events.add_row(event["at"], what, event["slug"], event["expiresAt"] or "-", Text(event["actor"] or "-"))
    _print(f"{id} is in {counted(len(found['memberships']), 'segment')}.", memberships)
    more = ", and there is more" if found["history"]["pageInfo"]["hasNextPage"] else ""
    _print(f"History, newest first: {counted(len(found['history']['nodes']), 'event')}{more}.", events)


def _fetched(api: Api, bars: Bars, work: Work, wanted: Json, output: Path | None) -> None:
    if output is not None:
        _check_place("--output", output)
    with _keeping(work.name, api.url, wanted) as place:
        task = client_tasks.finished(api, bars, work, place)
        rows = fetch(api, bars, work, task, output)
        bars.say(f"{counted(rows, 'row')}." if output is None else f"Stored {counted(rows, 'row')} in {output}.")


def _print_result(task: Json) -> None:
    result = task["importResult"]
    table = Table("rows", Column(f"{result['rows']:,}", justify="right"), box=box.SIMPLE_HEAD)
    for name in ("added", "updated", "removed", "unchanged", "duplicate", "invalid"):
        table.add_row(name, f"{result[name]:,}")
    started, ended = (datetime.fromisoformat(task[name]) for name in ("startedAt", "finishedAt"))
    table.add_row("rows/s", f"{result['rows'] / max(0.001, (ended - started).total_seconds()):,.0f}")
    _print("Dry run: nothing was changed. This would have happened:" if result["dryRun"] else "", table)


def _print(said: str, table: Table) -> None:
    # Wide enough for any row: a window may break it, but what is asked for is never cut short.
    console = Console(width=10_000)
    if said:
        console.print(said, markup=False, highlight=False)
    if table.row_count:
        console.print(table)


@contextmanager
def _api(url: str, retry_seconds: float) -> Iterator[tuple[Api, Bars]]:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise Failed(f"--url must be a URL like {HERE}.")
    token = os.environ.get("SEGMENTQL_TOKEN", "")
    if not (token.isascii() and token.isprintable()):
        raise Failed("SEGMENTQL_TOKEN must be printable ASCII characters.")
    with Bars() as bars, httpx.Client() as http:
        yield Api(http, url, token, Patience(retry_seconds, bars.say)), bars


def _keeping(command: str, url: str, wanted: Json, sha256: str = "") -> client_state.Keeping:
    return client_state.keeping(client_state.folder(os.environ), command, url, wanted, sha256)


def _instant(option: str, value: str | None) -> str | None:
    if value is None or _is_instant(value):
        return value
    what = "an instant of RFC 3339 with an offset, like 2026-02-01T09:30:00Z"
    raise Failed(f"{option} is {value!r}: it must be {what}.")


def _is_instant(value: str) -> bool:
    try:
        return parse_instant(value) is not None
    except OverflowError:
        return False


def _check_source(file: Path, rejected: Path) -> None:
    # What is read from a pipe could not be sent again.
    if not file.is_file():
        raise Failed(f"{file} is not a file.")
    _check_place("--rejects", rejected)
    if rejected.exists() and rejected.samefile(file):
        raise Failed("--rejects is the file that is imported: choose another.")


def _check_place(option: str, path: Path) -> None:
    """A file can be put there: better known before anything has happened."""
    if path.exists() and not path.is_file():
        raise Failed(f"{option} is {path}: it is no file, so it cannot be replaced by one.")
    if not os.access(path.resolve().parent, os.W_OK | os.X_OK):
        raise Failed(f"{option} is {path}: there is no folder for it that can be written to.")


@contextmanager
def _ending(*, resumable: bool) -> Iterator[None]:
    """Says in one line why there is no result, and with the exit code whose fault it is."""
    try:
        yield
    except Refused as refused:
        for line in str(refused).splitlines():
            typer.echo(f"segmentql: {line}", err=True)
        raise typer.Exit(1) from refused
    except BrokenPipeError as error:
        # Python would write there once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(2) from error
    except (Failed, OSError) as error:
        typer.echo(f"segmentql: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo("segmentql: Interrupted." + " The same command goes on from here." * resumable, err=True)
        raise typer.Exit(130) from None
