"""What holds for every request, whatever it asks."""

import asyncio

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.graphql import refusal

# A client that sends more slowly than this is not there to ask anything.
BODY_SECONDS = 30
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # What was true when it was asked is no answer to the next who asks.
    "Cache-Control": "no-store",
}


class BodyLimit:
    """Reads the body before the application does, and no further than allowed."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        if int(request.headers.get("content-length", "0")) > self.max_bytes:
            await self._refuse(request, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._body(receive)
        except TimeoutError:
            await refusal(request, 408, "The body did not arrive in time.")(scope, receive, send)
            return
        if body is None:
            await self._refuse(request, receive, send)
            return
        await self.app(scope, _replaying(body, receive), send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The body, or None when it is too large."""
        chunks, size = [], 0
        while True:
            message = await receive()
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self.max_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def _refuse(self, request: Request, receive: Receive, send: Send) -> None:
        response = refusal(request, 413, f"The body has more than {self.max_bytes} bytes.")
        await response(request.scope, receive, send)


class StandardHeaders:
    """Headers of every answer that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers)


def _replaying(body: bytes, receive: Receive) -> Receive:
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay
