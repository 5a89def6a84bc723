"""What a WebSocket may cost: how much it may say at once, how little it may read, and how it is ended for good."""

import asyncio
import logging
import socket
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode
from websockets.protocol import State

from server.middleware import SHARE_BYTES

# For uvicorn's settings: of one message, as much as finds room always; and nothing is compressed, which would take each
# connection hundreds of kilobytes.
SETTINGS: dict[str, Any] = {
    "ws_max_size": SHARE_BYTES,
    "ws_per_message_deflate": False,
    "ws_ping_interval": 15.0,
    "ws_ping_timeout": 15.0,
}
# What is written and was not sent yet: beyond that writers wait. As much again the kernel may hold.
BUFFER_BYTES = 32_768
# How long a client has to take its leave.
LAST_SECONDS = 1.0
PINGED_BYTES = 4 * BUFFER_BYTES


class WebSocketProtocol(WebSocketsSansIOProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn's own lines have the address and the query string.
        self.logger = logging.getLogger("server.websocket_protocol.wire")
        self.logger.setLevel(logging.WARNING)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        limit_unsent(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # What refers to itself stays until all of the memory is looked through: hardly ever (server/answering.py).
        self.conn.parser.close()
        if (scope := getattr(self, "scope", None)) is not None:  # the handshake was one
            scope["state"]["end"] = _nothing

    async def run_asgi(self) -> None:
        self.scope["state"]["end"] = self.end
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.accept":
            # The scope has the handshake's: these stay as long as the connection, and are a tenth of what it takes.
            self.request.headers.clear()
            self.response.headers.clear()
        elif message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            # It was refused with an answer. uvicorn would take it for one that nobody has answered.
            self.handshake_complete = True

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not _is_utf8(self.frames):
            # uvicorn's own would tell the log, with a traceback, whatever anybody sends.
            self.frames = []
            if self.conn.state is State.OPEN:  # or the client is taking its leave already
                self.end(CloseCode.INVALID_DATA, "")
            return
        super().send_receive_event_to_app()

    def end(self, code: int, reason: str) -> None:
        """Close it, without waiting for a client that does not read."""
        if self.close_sent or not self.handshake_complete or self.transport.is_closing():
            self.transport.abort()
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        # Whoever waits to send something waits no more.
        self.writable.set()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(LAST_SECONDS, self.transport.abort)

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(LAST_SECONDS, self.transport.abort)

    def handle_ping(self) -> None:
        super().handle_ping()
        # Answers to pings wait for nobody: who sends them and reads none would fill the memory.
        if self.transport.get_write_buffer_size() > PINGED_BYTES:
            self.transport.abort()


def limit_unsent(transport: asyncio.WriteTransport) -> None:
    """Let little wait to be sent, here and in the kernel."""
    transport.set_write_buffer_limits(high=BUFFER_BYTES)
    connected = transport.get_extra_info("socket")
    if connected is not None:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)


def _is_utf8(frames: list[bytes]) -> bool:
    try:
        b"".join(frames).decode()
    except UnicodeDecodeError:
        return False
    return True


def _nothing(_code: int, _reason: str) -> None:
    pass
