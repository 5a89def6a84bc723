"""What holds for every request, whatever it asks."""

import asyncio
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resolvers.links import PATH
from server.graphql import refusal

# A client that sends more slowly than this is not there to ask anything.
BODY_SECONDS = 30
# How long a client may go on sending what nobody keeps: cut off at once, many never read why.
LINGER_SECONDS = 2
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
    """Reads the body before the application does, and no further than allowed."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # An upload is of any size: it is never held in memory, and has a limit of its own.
        upload = scope["type"] == "http" and scope["method"] == "PUT" and scope["path"].startswith(PATH)
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD") or upload:
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._body(request, receive)
        except TimeoutError:
            await refusal(request, 408, "The body did not arrive in time.", CLOSE)(scope, receive, send)
            return
        except ClientDisconnect:
            return
        if body is None:
            too_large = refusal(request, 413, f"The body has more than {self.max_bytes} bytes.", CLOSE)
            await too_large(scope, receive, lingering(receive, send))
            return
        await self.app(scope, _replaying(body, receive), send)

    async def _body(self, request: Request, receive: Receive) -> bytes | None:
        """The body, or None when it is too large."""
        # That it is a number the HTTP server has made sure of.
        if int(request.headers.get("content-length", "0")) > self.max_bytes:
            return None
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                return None
            if not message.get("more_body", False):
                return bytes(body)


class StandardHeaders:
    """Headers of every answer that does not set them itself; by `https` whether callers are to keep to that."""

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self.app = app
        self._headers = HEADERS | ({"Strict-Transport-Security": f"max-age={YEAR_SECONDS}"} if https else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers)


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
