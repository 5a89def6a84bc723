"""One connection to Redis for all commands of this process: what is asked at the same instant goes out in one write.

Redis answers in the order in which it was asked, so a command's place in the queue is all that ties its answer to it.
Nobody's answer is ever thrown away out of its turn: who was not answered in time is forgotten, and its place kept.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from hashlib import sha1
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, RedisError

# What Redis has answered, or why there is no answer.
Answered = Callable[[Any], None]
Part = bytes | str | int

# Of the event loop: enough to connect, to be greeted, to send and to be answered, by a Redis that is there.
TURNS = 20
# So much later than it should have been: then nothing comes from this connection any more.
STUCK_SECONDS = 0.25
CONNECT_SECONDS = 1.0


class Script:
    """One that Redis is told by its hash, and by its text where it does not know it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.hash = sha1(text.encode(), usedforsecurity=False).hexdigest()


class _Wire(asyncio.Protocol):
    """A connection that was made and greeted."""

    def __init__(self, connection: AbstractConnection, take: Answered, broken: Callable[[Exception], None]) -> None:
        self._connection = connection
        # Connecting, TLS and names and passwords are redis-py's; from here on it is asked nothing more.
        self.transport: asyncio.WriteTransport = connection._writer.transport  # type: ignore[union-attr] # noqa: SLF001
        parser: Any = connection._parser  # noqa: SLF001  # it alone knows which error is meant
        self._reader = hiredis.Reader(protocolError=ConnectionError, replyError=parser.parse_error, notEnoughData=self)
        self._take = take
        self._broken: Callable[[Exception], None] | None = broken
        self.closed = asyncio.Event()
        self.transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        reader, take = self._reader, self._take
        try:
            reader.feed(data)
            while self._broken is not None and (reply := reader.gets()) is not self:
                if not isinstance(reply, hiredis.PushNotification):  # nobody has asked for those
                    take(reply)
        except ConnectionError as error:  # what it says cannot be understood
            broken = self._broken
            self.close()
            if broken is not None:
                broken(error)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        broken, self._broken = self._broken, None
        if broken is not None:
            broken(exc if isinstance(exc, OSError) else ConnectionError("Redis has closed the connection"))
        self.close()
        self.closed.set()

    def close(self) -> None:
        self._broken = None
        self.transport.abort()
        self._connection._reader = self._connection._writer = None  # noqa: SLF001  # else it warns of being left open


class _Expected:
    """A command's place in the queue; `answered` is None when nobody waits any more."""

    __slots__ = ("answered", "due", "since")

    def __init__(self, answered: Answered | None, since: float, due: float) -> None:
        self.answered = answered
        self.since = since
        self.due = due


class Pipeline:
    """Connects when there is something to send, and again when the connection was lost; sends nothing twice."""

    def __init__(self, connection: Callable[[], AbstractConnection]) -> None:
        self._new_connection = connection
        # Asking for it takes a system call each time.
        self._loop = asyncio.get_running_loop()
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[None] | None = None
        # Commands that were not written yet: the last of those that are expected.
        self._unsent: list[bytes] = []
        self._expected: deque[_Expected] = deque()
        # What wants to send something together with the others, once they have said what they want.
        self._joining: list[Callable[[], None]] = []
        self._scheduled = False
        # When somebody may have waited for too long, and who will look then.
        self._due = float("inf")
        self._timer: asyncio.Handle | None = None
        # Called with each command's name as it is sent; what it returns, with the answer.
        self.following: Callable[[str], Callable[[Any], None]] | None = None

    def soon(self, join: Callable[[], None]) -> None:
        """Call it just before the next write: what it sends is part of that."""
        self._joining.append(join)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def is_behind(self, seconds: float) -> bool:
        """Whether Redis has owed an answer for so long.

        What is sent now would be read together with what has waited there all the time: before what others have sent
        meanwhile, which must come first if they did not wait for its answer any longer than that.
        """
        return bool(self._expected) and self._loop.time() - self._expected[0].since >= seconds

    def send(self, parts: tuple[Part, ...], answered: Answered | None, seconds: float) -> None:
        """Call `answered` once, with Redis's answer or with the error that there was instead; never at once."""
        if self.following is not None:
            follower = self.following(str(parts[0]))
            answered = follower if answered is None else _both(follower, answered)
        self._unsent.append(hiredis.pack_command(parts))  # type: ignore[arg-type]  # it means any number of them
        now = self._loop.time()
        due = now + seconds
        self._expected.append(_Expected(answered, now, due))
        if due < self._due:
            self._look_at(due)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def evaluate(self, script: Script, keys: list[Part], args: list[Part], answered: Answered, seconds: float) -> None:
        """Send a script, as `send` does."""

        def known(reply: Any) -> None:
            # Redis was restarted, or told to forget its scripts.
            if isinstance(reply, NoScriptError):
                self.send(("EVAL", script.text, len(keys), *keys, *args), answered, seconds)
            else:
                answered(reply)

        self.send(("EVALSHA", script.hash, len(keys), *keys, *args), known, seconds)

    async def close(self) -> None:
        """Have no connection; whoever waits for an answer gets an error."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        wire = self._wire
        self._break(ConnectionError("the connection to Redis was closed"))
        if self._timer is not None:
            self._timer.cancel()
        self._due = float("inf")
        if wire is not None:
            await wire.closed.wait()

    def flush(self) -> None:
        """Write what is to be sent, instead of in a moment."""
        try:
            # Also what joins may still say so: it is part of this write.
            while self._joining:
                joining, self._joining = self._joining, []
                for join in joining:
                    join()
        finally:
            self._scheduled = False
        if not self._unsent:
            return
        if self._wire is not None:
            self._wire.transport.write(self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent))
            self._unsent.clear()
        elif self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        connection = self._new_connection()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
            # What is left over of the greeting would be taken for the first answer.
            parser: Any = connection._parser  # noqa: SLF001  # redis-py's own look is for its pool
            if await parser.can_read():
                raise ConnectionError("Redis has said more than it was asked")
            self._wire = _Wire(connection, self._answered, self._break)
        except (RedisError, OSError, TimeoutError) as error:
            self._break(error)
        finally:
            self._connecting = None
            if self._wire is None:
                await connection.disconnect(nowait=True)
        self.flush()

    def _answered(self, reply: Any) -> None:
        if not self._expected:
            raise ConnectionError("Redis has answered what nobody had asked")
        answered = self._expected.popleft().answered
        if answered is not None:
            answered(reply)

    def _break(self, error: Exception) -> None:
        """Leave the connection: whoever waits has no answer, sent or not, and nothing that comes later is theirs."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        expected, self._expected = self._expected, deque()
        self._unsent.clear()
        for each in expected:
            if each.answered is not None:
                each.answered(error)

    def _look_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        """See whether anybody has waited for too long."""
        now = self._loop.time()
        first = min((each.due for each in self._expected if each.answered is not None), default=float("inf"))
        if first == float("inf"):
            self._due = first
        elif first > now:
            self._look_at(first)
        else:
            self._late(now, TURNS)

    def _late(self, now: float, turns: int) -> None:
        # A busy loop looks at its clock before it has read what lies in its sockets: let it read first.
        if turns:
            self._timer = self._loop.call_soon(self._late, now, turns - 1)
            return
        error = TimeoutError("it took too long")
        overdue = [each for each in self._expected if each.answered is not None and each.due <= now]
        if overdue and self._expected[0].due + STUCK_SECONDS < now:
            self._break(error)
            overdue = []
        elif self._wire is None:
            # Nothing was sent yet: then it need not be.
            kept = [(each, sent) for each, sent in zip(self._expected, self._unsent, strict=True) if each.due > now]
            self._expected, self._unsent = deque(each for each, _ in kept), [sent for _, sent in kept]
        for each in overdue:
            answered, each.answered = each.answered, None
            if answered is not None:
                answered(error)
        self._look()


def _both(one: Answered, other: Answered) -> Answered:
    def answered(reply: Any) -> None:
        one(reply)
        other(reply)

    return answered


def once(answer: "asyncio.Future[Any]") -> Answered:
    """What tells it to whoever waits."""

    def take(reply: Any) -> None:
        if not answer.done():  # whoever has asked may have left
            answer.set_result(reply)

    return take
