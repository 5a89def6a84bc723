"""The commands that make, show and revoke tokens, in the database itself: whoever reaches that may do anything."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections, tokens, transactions
from db.clock import TTL_DAYS, parse_instant
from db.tables import Scope
from resolvers.callers import ANONYMOUS
from server.settings import Settings, StartError
from server.tokens import Token, make

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@/-]{0,99}")
# Whom history names when no caller was it (db/history.py, db/tasks.py), or one that said nothing.
TAKEN = frozenset({ANONYMOUS.client, "purge", "cleanup", "rollout"})
DAYS = re.compile(r"([1-9][0-9]{0,4})d")
AN_EXPIRY = "a number of days like 90d, or an instant of RFC 3339 with an offset like 2027-01-01T00:00:00Z"

DataDir = Annotated[Path | None, typer.Option(help="Where the own servers keep their data (SEGMENTQL_DATA_DIR).")]
Failing = Callable[[], AbstractContextManager[None]]
Database = Callable[[Path | None], AbstractContextManager[Settings]]


def register(app: typer.Typer, failing: Failing, database: Database) -> None:
    """Add the commands; they say why they fail, and find the database, as the others do."""
    commands = typer.Typer(help="Make, list and revoke the tokens that callers show.", no_args_is_help=True)

    @commands.command()
    def create(
        name: Annotated[str, typer.Option(help="Whose it is. Several tokens of one name are one caller's.")],
        scope: Annotated[Scope, typer.Option(help="What its caller may do; each may also do what those before may.")],
        expires: Annotated[
            str | None, typer.Option(help="For how long, like 90d, or until when, in RFC 3339. Without it: for ever.")
        ] = None,
        data_dir: DataDir = None,
    ) -> None:
        """Make a token and print it, alone: TOKEN=$(segmentql token create …). It is shown this once and kept nowhere.

        A running server knows it at once.
        """
        with failing():
            _check_name(name)
            _expiry(expires)
            with database(data_dir) as settings:
                token, until = asyncio.run(_create(settings, name, scope, expires))
        end = "for ever" if until is None else f"until {_shown(until)}"
        typer.echo(f"Token {token.id} of {name}, scope {scope}, is good {end}. It will not be shown again:", err=True)
        typer.echo(token.text)

    @commands.command("list")
    def list_(data_dir: DataDir = None) -> None:
        """Show all tokens that there ever were, without their secrets."""
        with failing(), database(data_dir) as settings:
            found = asyncio.run(_list(settings))
        table = Table("id", "name", "scope", "created", "expires", "last used", "state", box=box.SIMPLE_HEAD)
        for token in found:
            instants = (_shown(each) for each in (token.created_at, token.expires_at, token.last_used_at))
            table.add_row(token.id, Text(token.name), token.scope.value, *instants, state(token))
        # Wide enough for any row: a window may break it, but what is asked for is never cut short.
        Console(width=10_000).print(table if found else "There are no tokens.")

    @commands.command()
    def revoke(
        id: Annotated[str, typer.Argument(help="The token's id, which is also its part between the two _.")],
        data_dir: DataDir = None,
    ) -> None:
        """Let a token, and the links made for it, be good no longer: within ten seconds, in every running server."""
        with failing(), database(data_dir) as settings:
            revoked = asyncio.run(_revoke(settings, id))
        typer.echo(f"Token {id} is revoked." if revoked else f"Token {id} was revoked before.", err=True)

    app.add_typer(commands, name="token")


def state(token: tokens.Token) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.seconds_left is not None and token.seconds_left <= 0 else "good"


async def _create(settings: Settings, name: str, scope: Scope, expires: str | None) -> tuple[Token, datetime | None]:
    token = make()
    async with _writer(settings) as writer, writer.begin() as tx:
        now = await transactions.now(tx)
        until = _expiry(expires)
        if isinstance(until, timedelta):
            until = now + until
        if until is not None and until <= now:
            raise StartError(f"--expires is {_shown(until)}, which is over.")
        await tokens.insert(tx, token.id, name, scope, token.hash, until)
    return token, until


async def _list(settings: Settings) -> list[tokens.Token]:
    async with _writer(settings) as writer, writer.connect() as conn:
        return await tokens.everyone(conn)


async def _revoke(settings: Settings, id: str) -> bool:
    async with _writer(settings) as writer, writer.begin() as tx:
        if await tokens.revoke(tx, id):
            return True
        if not await tokens.by_ids(tx, [id]):
            raise StartError("There is no such token: `segmentql token list` shows them by their ids.")
        return False


@asynccontextmanager
async def _writer(settings: Settings) -> AsyncIterator[AsyncEngine]:
    assert settings.database_url is not None
    writer = connections.writer(settings.database_url, 1)
    try:
        yield writer
    finally:
        await writer.dispose()


def _check_name(name: str) -> None:
    if name in TAKEN:
        raise StartError(f"--name cannot be {name}: history calls itself so where no caller of that name was it.")
    if not NAME.fullmatch(name):
        what = "1 to 100 letters, digits, spaces and . _ @ / -, of which the first is a letter or a digit"
        raise StartError(f"--name must be {what}.")


def _expiry(text: str | None) -> timedelta | datetime | None:
    """For how long, or until when."""
    if text is None:
        return None
    if (found := DAYS.fullmatch(text)) and int(found[1]) <= TTL_DAYS:
        return timedelta(days=int(found[1]))
    try:
        instant = parse_instant(text)
    except OverflowError:
        instant = None
    if instant is None:
        raise StartError(f"--expires is {text!r}: it must be {AN_EXPIRY}.")
    return instant


def _shown(instant: datetime | None) -> str:
    return "-" if instant is None else f"{instant:%Y-%m-%dT%H:%M:%SZ}"
