"""What holds for every request, whatever it asks."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resolvers.errors import Overloaded
from server.graphql import PATH, refusal

# A client that sends more slowly than this is not there to ask anything.
BODY_SECONDS = 30
# How long a client may go on sending what nobody keeps: cut off at once, many never read why.
LINGER_SECONDS = 2
# All bodies together may hold as much as so many of the largest. What has no more than a share of its own finds room
# always: hundreds of these are few megabytes.
MOST_LARGE = 16
SHARE_BYTES = 65_536
CLOSE = {"Connection": "close"}
YEAR_SECONDS = 31_536_000
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # An answer is data: it is no page, is shown in none, and loads nothing.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    # What was true when it was asked is no answer to the next who asks.
    "Cache-Control": "no-store",
}


class BodyLimit:
    """Reads what is asked of GraphQL before the application does, and no further than allowed.

    No other body is read at all, but an upload: that is of any size, is never held in memory, and has its own limit.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        # Of all bodies, beyond the share of each.
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        body, size = bytearray(), 0
        try:
            refused = await self._refused(Request(scope), receive, body)
            if refused is None:
                size, whole = len(body), bytes(body)
                # It is in memory once.
                body.clear()
                await self.app(scope, _replaying(whole, receive), send)
                return
        except ClientDisconnect:
            return
        finally:
            self._held -= _beyond_share(size or len(body))
        body.clear()
        await refused(scope, receive, lingering(receive, send))

    async def _refused(self, request: Request, receive: Receive, body: bytearray) -> Response | None:
        """Why the body is not read to its end. It is added to `body`, as far as it was."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._read(request, receive, body)
        except TimeoutError:
            return refusal(request, 408, "The body did not arrive in time.", CLOSE)

    async def _read(self, request: Request, receive: Receive, body: bytearray) -> Response | None:
        # That it is a number the HTTP server has made sure of.
        too_large = int(request.headers.get("content-length", "0")) > self.max_bytes
        while not too_large:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            before = _beyond_share(len(body))
            body += message.get("body", b"")
            beyond = _beyond_share(len(body))
            self._held += beyond - before
            if beyond and self._held > MOST_LARGE * self.max_bytes:
                return refusal(request, 503, str(Overloaded()), {"Retry-After": "1", **CLOSE}, retryAfterMs=1_000)
            too_large = len(body) > self.max_bytes
            if not too_large and not message.get("more_body", False):
                return None
        return refusal(request, 413, f"The body has more than {self.max_bytes} bytes.", CLOSE)


def standard_headers(*, https: bool) -> dict[str, str]:
    """Headers of every answer; by `https` whether callers are to keep to that."""
    return HEADERS | ({"Strict-Transport-Security": f"max-age={YEAR_SECONDS}"} if https else {})


class StandardHeaders:
    """Sets those headers that an answer does not set itself."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self.app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers)


def _beyond_share(size: int) -> int:
    return max(0, size - SHARE_BYTES)


def _replaying(body: bytes, receive: Receive) -> Receive:
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay


def lingering(receive: Receive, send: Send) -> Send:
    """Sends an answer whole, and ends it only when the client has stopped sending, or for too long has not."""

    async def linger(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body"})

    return linger
