"""The connection to Redis that all commands share."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from breaking import Valkey
from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ResponseError

from db.pipeline import Part, Pipeline, Script
from server.embedded import Servers

SECONDS = 5.0


def pipeline_to(url: str) -> Pipeline:
    return Pipeline(ConnectionPool.from_url(url, protocol=3).make_connection)


@pytest.fixture
async def pipeline(servers: Servers) -> AsyncIterator[Pipeline]:
    pipeline = pipeline_to(servers.redis_url)
    yield pipeline
    await pipeline.close()


def asked(pipeline: Pipeline, *parts: Part, seconds: float = SECONDS) -> "asyncio.Future[Any]":
    """The command's answer, or the error that there was instead."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    pipeline.send(parts, answer.set_result, seconds)
    return answer


async def echoes(pipeline: Pipeline, numbers: range) -> list[Any]:
    return await asyncio.gather(*(asked(pipeline, "ECHO", str(number)) for number in numbers))


async def test_everyone_gets_the_answer_to_the_own_command(pipeline: Pipeline) -> None:
    for start in range(0, 5_000, 500):
        assert await echoes(pipeline, range(start, start + 500)) == [b"%d" % n for n in range(start, start + 500)]


async def test_what_is_asked_at_one_instant_is_one_write_also_by_who_joins(servers: Servers, tmp_path: Path) -> None:
    async with Between.running(servers.redis_url, tmp_path) as between:
        pipeline = pipeline_to(between.url)
        await echoes(pipeline, range(1))
        between.sent.clear()
        joined: list[asyncio.Future[Any]] = []
        pipeline.soon(lambda: joined.append(asked(pipeline, "ECHO", "joined")))
        assert await echoes(pipeline, range(3)) == [b"0", b"1", b"2"]
        assert await joined[0] == b"joined"
        assert [written.count(b"ECHO") for written in between.sent] == [4]
        await pipeline.close()


async def test_what_redis_refuses_is_an_error_of_that_command_alone(pipeline: Pipeline) -> None:
    before, wrong, after = asked(pipeline, "ECHO", "a"), asked(pipeline, "ECHO"), asked(pipeline, "ECHO", "b")
    assert (await before, await after) == (b"a", b"b")
    assert isinstance(await wrong, ResponseError)


async def test_a_connection_that_breaks_in_the_middle_of_answers_gives_nobody_another_ones(
    servers: Servers, tmp_path: Path
) -> None:
    async with Between.running(servers.redis_url, tmp_path) as between:
        pipeline = pipeline_to(between.url)
        lost = 0
        for bytes_more in range(0, 60, 7):
            assert await echoes(pipeline, range(3)) == [b"0", b"1", b"2"]
            between.break_after = bytes_more
            answers = await echoes(pipeline, range(10, 20))
            for n, answer in enumerate(answers, start=10):
                assert answer == b"%d" % n or isinstance(answer, ConnectionError)
            lost += sum(isinstance(answer, ConnectionError) for answer in answers)
        assert lost > 20
        await pipeline.close()


async def test_an_answer_that_comes_too_late_is_nobody_elses(valkey: Valkey) -> None:
    pipeline = pipeline_to(valkey.url)
    assert await asked(pipeline, "ECHO", "first") == b"first"
    valkey.freeze()
    patient, late = asked(pipeline, "ECHO", "patient"), asked(pipeline, "ECHO", "late", seconds=0.02)
    assert isinstance(await late, TimeoutError)
    again = asked(pipeline, "ECHO", "again")
    valkey.thaw()
    assert (await patient, await again) == (b"patient", b"again")
    await pipeline.close()


async def test_it_is_behind_as_long_as_it_owes_an_answer_for_too_long(valkey: Valkey) -> None:
    pipeline = pipeline_to(valkey.url)
    assert await asked(pipeline, "ECHO", "first") == b"first"
    valkey.freeze()
    patient = asked(pipeline, "ECHO", "patient")
    assert not pipeline.is_behind(0.02)
    assert isinstance(await asked(pipeline, "ECHO", "late", seconds=0.03), TimeoutError)
    assert pipeline.is_behind(0.02)
    valkey.thaw()
    assert await patient == b"patient"
    assert await asked(pipeline, "ECHO", "last") == b"last"
    assert not pipeline.is_behind(0)
    await pipeline.close()


async def test_a_connection_that_says_nothing_any_more_is_left_for_another(valkey: Valkey) -> None:
    pipeline = pipeline_to(valkey.url)
    before = await asked(pipeline, "CLIENT", "ID")
    valkey.freeze()
    while pipeline._wire is not None:
        assert isinstance(await asked(pipeline, "ECHO", "x", seconds=0.02), TimeoutError)
    valkey.thaw()
    assert await asked(pipeline, "CLIENT", "ID") > before
    await pipeline.close()


async def test_whoever_waits_when_it_is_closed_is_told_so(pipeline: Pipeline) -> None:
    waiting = asked(pipeline, "ECHO", "x")
    await pipeline.close()
    assert isinstance(await waiting, ConnectionError)


async def test_where_nobody_listens_every_command_is_an_error_at_once(tmp_path: Path) -> None:
    pipeline = pipeline_to(f"unix://{tmp_path}/nobody.sock")
    for _ in range(3):
        assert all(isinstance(answer, Exception) for answer in await echoes(pipeline, range(3)))
    await pipeline.close()


async def test_a_script_that_redis_has_forgotten_is_sent_again(pipeline: Pipeline, redis: Redis) -> None:
    script = Script("return {KEYS[1], ARGV[1]} -- " + os.urandom(8).hex())
    for _ in range(3):
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        pipeline.evaluate(script, ["key"], [7], answer.set_result, SECONDS)
        assert await answer == [b"key", b"7"]
        await redis.script_flush()


class Between:
    """Carries what is said to Redis and back, until so many more bytes of answers have come."""

    def __init__(self, target: str) -> None:
        self._target = target.removeprefix("unix://")
        self.url = ""
        self.sent: list[bytes] = []
        self.break_after: int | None = None

    @classmethod
    @asynccontextmanager
    async def running(cls, target: str, folder: Path) -> AsyncIterator["Between"]:
        between = cls(target)
        between.url = f"unix://{folder}/between.sock"
        server = await asyncio.start_unix_server(between._serve, folder / "between.sock")
        yield between
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_unix_connection(self._target)
        answers = asyncio.create_task(self._answer(from_redis, writer))
        with suppress(ConnectionError):
            while said := await reader.read(65_536):
                self.sent.append(said)
                to_redis.write(said)
        answers.cancel()
        to_redis.close()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answer := await reader.read(65_536):
            if self.break_after is None:
                writer.write(answer)
                continue
            writer.write(answer[: self.break_after])
            self.break_after = None
            writer.close()
            return
