"""The bare limit of Python: reads gathered into one MGET, the same JSON, and nothing of GraphQL."""

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import orjson

from bench.peers.store import Lists

HEADERS = [(b"content-type", b"application/json")]
Message = dict[str, Any]

# Made where the loop runs already.
lists = cache(Lists)


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    asked = (await receive())["body"]
    user_id = orjson.loads(asked)["variables"]["id"]
    entries = await lists().of(user_id)
    user: dict[str, Any]
    if b"memberships" in asked:
        listed = [
            {"segment": {"slug": slug}, "addedAt": added, "expiresAt": expires} for slug, added, expires, _ in entries
        ]
        user = {"id": user_id, "memberships": listed}
    else:
        user = {"segments": [{"slug": entry[0]} for entry in entries]}
    body = orjson.dumps({"data": {"user": user}})
    headers = [*HEADERS, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
