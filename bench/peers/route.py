"""An ordinary Starlette route: one GET of redis-py for each request, and nothing of GraphQL."""

from functools import cache

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.peers.store import KEY, Lists, active

lists = cache(Lists)


async def answer(request: Request) -> Response:
    user_id = orjson.loads(await request.body())["variables"]["id"]
    text = await lists().redis.get(KEY + user_id)
    entries = active(text) if text is not None else await lists().of(user_id)
    listed = [
        {"segment": {"slug": slug}, "addedAt": added, "expiresAt": expires} for slug, added, expires, _ in entries
    ]
    body = orjson.dumps({"data": {"user": {"id": user_id, "memberships": listed}}})
    return Response(body, media_type="application/json")


app = Starlette(routes=[Route("/graphql", answer, methods=["POST"])])
