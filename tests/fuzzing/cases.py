"""What is sent over one connection, and what may be expected of it."""

from dataclasses import dataclass
from enum import Enum, auto


class Due(Enum):
    """What has to come back."""

    # As many answers as there are methods, while the connection is left open.
    ANSWERS = auto()
    # Answers, if the server finds requests in it; it may wait for more, which will not come.
    PERHAPS = auto()
    # The beginning of a stream, or an answer.
    STREAM = auto()
    # A WebSocket, or an answer.
    WEBSOCKET = auto()


@dataclass(frozen=True)
class Case:
    kind: str
    # Written one after the other.
    sent: tuple[bytes, ...]
    due: Due = Due.ANSWERS
    methods: tuple[bytes, ...] = (b"POST",)
    # Whether GraphQL is asked, which answers with JSON and nothing else.
    graphql: bool = True
    # What is said once there is a WebSocket.
    frames: bytes = b""
