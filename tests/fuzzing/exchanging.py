"""Sending a case over a connection of one's own, and what is wrong about what comes back."""

import asyncio
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field

from fuzzing import answers
from fuzzing.answers import Answer, MalformedError
from fuzzing.cases import Case, Due

# No request may take longer, however it was made.
SECONDS = 2.0
# Of a server that may wait for more of what is no whole request, before it is told that there is none.
PATIENCE_SECONDS = 0.15
LARGEST_HEAD = 65_536
CLOSED = (ConnectionResetError, BrokenPipeError)


@dataclass
class Outcome:
    """What came of a case."""

    statuses: list[str] = field(default_factory=list)
    seconds: float = 0.0
    wrong: str | None = None
    # That is all that is wrong: nothing more came in time.
    late: bool = False
    # Beginning of the answer that is wrong.
    answered: bytes = b""


class Connection:
    """Used again for as long as the server leaves it open, and as it is known where answers end."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, case: Case) -> Outcome:
        outcome = Outcome()
        if case.due is not Due.ANSWERS:
            self.close()
        began = time.monotonic()
        try:
            reader, writer = await self._opened()
            # Reading what comes is slower on a busy machine than answering; the bound is the server's.
            async with asyncio.timeout(SECONDS):
                await self._exchange(case, reader, writer, outcome)
        except TimeoutError:
            outcome.wrong, outcome.late = f"nothing more for {SECONDS:.0f} s", True
            self.close()
        except MalformedError as error:
            outcome.wrong = str(error)
            self.close()
        except CLOSED:
            self.close()
            if case.due is Due.ANSWERS:
                outcome.wrong = "cut off"
            else:
                outcome.statuses.append("cut off")
        outcome.seconds = time.monotonic() - began
        if case.due is not Due.ANSWERS:
            self.close()
        return outcome

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            self._streams = await asyncio.open_connection(*self._address, limit=LARGEST_HEAD)
        return self._streams

    async def _exchange(
        self, case: Case, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, outcome: Outcome
    ) -> None:
        for number, piece in enumerate(case.sent):
            if number:
                await asyncio.sleep(0)
            writer.write(piece)
        if case.due is Due.PERHAPS:
            await self._perhaps(case, reader, writer, outcome)
            return
        for method in case.methods:
            answer = await answers.read(reader, method)
            if answer is None:
                raise MalformedError("closed without an answer")
            self._judge(case, answer, method, outcome)
            if answer.streams:
                await _read_stream(reader, outcome)
            elif answer.status == 101:
                await _talk(case, reader, writer, outcome)
            elif answer.closes:
                self.close()

    async def _perhaps(
        self, case: Case, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, outcome: Outcome
    ) -> None:
        """There may be less in it than a request, or more than one."""
        told = False
        for method in (*case.methods, *[b"POST"] * 100):
            if not told and not await _comes(reader):
                # After an answer there need not be more.
                told = True
                if not outcome.statuses:
                    outcome.statuses.append("waited for more")
                with suppress(OSError):
                    writer.write_eof()
            answer = await answers.read(reader, method)
            if answer is None:
                if not outcome.statuses:
                    outcome.statuses.append("closed")
                return
            self._judge(case, answer, method, outcome)
            if answer.streams or answer.status == 101:
                return
        raise MalformedError("more answers than requests")

    def _judge(self, case: Case, answer: Answer, method: bytes, outcome: Outcome) -> None:
        outcome.statuses.append(str(answer.status))
        graphql = case.graphql and answer.status != 101
        wrong = answers.wrong(answer, graphql=graphql, head=method == b"HEAD")
        if wrong is not None and outcome.wrong is None:
            outcome.wrong, outcome.answered = wrong, answer.body[:2_000]


async def _comes(reader: asyncio.StreamReader) -> bool:
    """Whether there is something to read soon, or the connection has ended."""
    buffered: bytearray = reader._buffer  # type: ignore[attr-defined]  # there is no other way to look first
    if buffered or reader.at_eof():
        return True
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await reader._wait_for_data("looking")  # type: ignore[attr-defined]  # likewise
            return True
    return False


async def _read_stream(reader: asyncio.StreamReader, outcome: Outcome) -> None:
    """The first event, which comes at once."""
    event = await reader.readuntil(b"\n\n")
    for line in event.splitlines():
        if line.startswith(b"data: "):
            found = answers.strict(line.removeprefix(b"data: "))
            outcome.wrong = outcome.wrong or answers.wrong_errors(found.get("errors"))
    outcome.statuses[-1] = "200 stream"


async def _talk(case: Case, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, outcome: Outcome) -> None:
    """Say all that there is to say, and that it is all; read until the server has ended it."""
    writer.write(case.frames + b"\x88\x82\0\0\0\0\x03\xe8")
    while True:
        if not await _comes(reader) and writer.can_write_eof():
            # What was to be the end it may have taken for a part of what came before.
            writer.write_eof()
        try:
            first, size = await reader.readexactly(2)
            if size & 0x80 or first & 0x70:
                raise MalformedError(f"no frame: {first:02x}{size:02x}")
            if size >= 126:
                size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
            payload = await reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise MalformedError("a frame breaks off") from error
            return
        if (first & 0x0F) == 1:
            _judge_message(payload, outcome)
        elif (first & 0x0F) == 8:
            code = struct.unpack(">H", payload[:2])[0] if payload else 1005
            outcome.statuses[-1] = f"WebSocket {code}"
            if code in (1011, 1013, 4500):
                outcome.wrong, outcome.answered = f"closed with {code}", payload


def _judge_message(payload: bytes, outcome: Outcome) -> None:
    try:
        message = answers.strict(payload)
    except ValueError as error:
        raise MalformedError(f"a message is no JSON: {error}") from error
    told = message.get("payload")
    errors = told if message["type"] == "error" else told.get("errors") if isinstance(told, dict) else None
    found = answers.wrong_errors(errors)
    if found is not None:
        outcome.wrong, outcome.answered = found, payload[:2_000]
