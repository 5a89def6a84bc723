"""Requests that name their documents, as clients send them, and what refuses them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import httpx
from conftest import Client
from subscribing import Events

from db import persisted as shared

JSON, GRAPHQL = "application/json", "application/graphql-response+json"
NAMED = "query ($id: ID!) { user(id: $id) { id segments { slug } } }"
NOT_FOUND = {"errors": [{"message": "PersistedQueryNotFound", "extensions": {"code": "PERSISTED_QUERY_NOT_FOUND"}}]}
NOT_A_HASH = "must be the SHA-256 of the document: 64 hexadecimal digits in lower case."
KEYS = [str(key) for key in shared.KEYS]


def hashed(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def by_hash(text: str, **variables: Any) -> dict[str, Any]:
    """A request as Apollo Client and urql send it."""
    extensions = {"persistedQuery": {"version": 1, "sha256Hash": hashed(text)}}
    return {"variables": variables, "extensions": extensions}


def in_full(text: str, **variables: Any) -> dict[str, Any]:
    """The request with which they answer a miss."""
    return {"query": text, **by_hash(text, **variables)}


async def post(client: Client, request: dict[str, Any], accept: str = JSON) -> httpx.Response:
    return await client.http.post("/graphql", json=request, headers={"Accept": accept})


async def refused(client: Client, request: dict[str, Any], code: str) -> str:
    """The message with which it is refused."""
    response = await post(client, request, GRAPHQL)
    assert response.status_code == 400
    [error] = response.json()["errors"]
    assert error["extensions"] == {"code": code}
    message: str = error["message"]
    return message


@asynccontextmanager
async def asking(client: Client, request: dict[str, Any]) -> AsyncIterator[Events]:
    """A stream of server-sent events."""
    headers = {"Accept": "text/event-stream"}
    async with client.http.stream("POST", "/graphql", json=request, headers=headers) as response:
        yield Events(response)
