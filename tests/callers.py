"""Callers with tokens."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx
from background import execute
from conftest import Client
from sqlalchemy.ext.asyncio import AsyncEngine

from db import tokens, transactions
from db.tables import Scope
from server.tokens import Token, make


async def a_token(
    engine: AsyncEngine, scope: str = "admin", name: str = "some job", seconds: float | None = None
) -> Token:
    """One that is good, for so long."""
    token = make()
    async with engine.begin() as tx:
        until = None if seconds is None else await transactions.now(tx) + timedelta(seconds=seconds)
        await tokens.insert(tx, token.id, name, Scope(scope), token.hash, until)
    return token


async def revoke(engine: AsyncEngine, token: Token) -> None:
    async with engine.begin() as tx:
        assert await tokens.revoke(tx, token.id)


async def last_use(engine: AsyncEngine, token: Token) -> object:
    ((instant,),) = await execute(engine, "SELECT last_used_at FROM tokens WHERE id = :id", id=token.id)
    return instant


def bearing(token: Token | str | None) -> dict[str, str]:
    """The header that shows it, if there is one."""
    return {} if token is None else {"Authorization": f"Bearer {token.text if isinstance(token, Token) else token}"}


@asynccontextmanager
async def caller(client: Client, token: Token | str | None) -> AsyncIterator[Client]:
    """Somebody who asks the same server, perhaps with a token."""
    async with httpx.AsyncClient(base_url=client.http.base_url, headers=bearing(token), timeout=30) as http:
        yield Client(http)
