"""Requests whose price and standing are looked at."""

from typing import Any

import httpx
from conftest import Client

READ = '{ user(id: "1") { segments { slug } } }'


async def asked(
    client: Client,
    query: str = READ,
    variables: dict[str, Any] | None = None,
    *,
    address: str | None = None,
    media: str = "application/json",
) -> httpx.Response:
    """An answer, with what the request cost."""
    request = {"query": query, "variables": variables, "extensions": {"cost": True}}
    headers = {"Accept": media} | ({"X-Forwarded-For": address} if address else {})
    return await client.http.post("/graphql", json=request, headers=headers)


def cost(response: httpx.Response) -> Any:
    return response.json()["extensions"]["cost"]


def code(response: httpx.Response) -> str:
    found: str = response.json()["errors"][0]["extensions"]["code"]
    return found
