"""When a connection to PostgreSQL is of no use any more, and how that is noticed in time."""

import asyncio
import socket

# The connection broke off; or the server behind it shuts down, or is read-only after a failover: then it is of no use
# any more, though it answers.
READ_ONLY = "25006"
GONE = frozenset({"08000", "08001", "08003", "08006", READ_ONLY, "57P01", "57P02", "57P03"})
# Older than this, a connection is replaced when it is next asked for: a pool finds its way to a new primary.
RECYCLE_SECONDS = 600
# Longer than this nobody waits for a connection: such a queue is overload, and said so.
WAIT_SECONDS = 1
CONNECT_SECONDS = 3

# Seconds without a word before it is asked, between two questions, and how many of these remain without an answer;
# and milliseconds that what was sent may remain unacknowledged.
KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}


def has_left(error: BaseException) -> bool:
    """Whether the server had taken its leave when something was to be sent to it.

    The driver notices, sends nothing, and calls it a mistake of its own.
    """
    return "cannot switch to state" in str(error)


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """Notice within a minute that the other side is gone without a word: its machine lost power, or a NAT forgot us."""
    connected = transport.get_extra_info("socket")
    if connected is None or connected.family == socket.AF_UNIX:
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE.items():
        if hasattr(socket, option):  # each system has its own
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
