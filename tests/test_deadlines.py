"""Deadlines that share a timer do what a timer of each would do."""

import asyncio

import pytest

from db.deadlines import Deadlines


async def test_what_takes_too_long_is_ended_and_what_does_not_is_not() -> None:
    deadlines = Deadlines(0.1)

    async def takes(seconds: float) -> str:
        with deadlines.one():
            await asyncio.sleep(seconds)
        return "in time"

    first = [asyncio.create_task(takes(seconds)) for seconds in (0, 30, 0.01, 30)]
    await asyncio.sleep(0.05)
    later = [asyncio.create_task(takes(seconds)) for seconds in (0, 30)]
    began = asyncio.get_running_loop().time()
    ended = await asyncio.gather(*first, *later, return_exceptions=True)
    late = [isinstance(each, TimeoutError) for each in ended]
    assert late == [False, True, False, True, False, True]
    # The later ones have as long as the others.
    assert asyncio.get_running_loop().time() - began >= 0.09
    # And nothing is left, so that others may come.
    with pytest.raises(TimeoutError):
        await takes(30)
    assert await takes(0) == "in time"


async def test_who_is_cancelled_by_somebody_else_is_cancelled() -> None:
    deadlines = Deadlines(0.05)

    async def ends_both_ways() -> None:
        with deadlines.one():
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                # Meanwhile somebody wants it to end, whose word goes before ours.
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                raise

    async def waits() -> None:
        with deadlines.one():
            await asyncio.sleep(30)

    both, other = asyncio.create_task(ends_both_ways()), asyncio.create_task(waits())
    await asyncio.sleep(0)
    other.cancel()
    await asyncio.wait([both, other])
    assert both.cancelled()
    assert other.cancelled()


async def test_an_error_of_its_own_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), Deadlines(30).one():
        raise ZeroDivisionError


async def test_one_within_another_ends_with_the_one_that_is_over_first() -> None:
    short, long = Deadlines(0.05), Deadlines(30)
    with pytest.raises(TimeoutError), long.one(), short.one():
        await asyncio.sleep(30)
    with pytest.raises(TimeoutError), short.one(), long.one():
        await asyncio.sleep(30)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_all_of_them_take_one_timer() -> None:
    deadlines = Deadlines(30)
    loop = asyncio.get_running_loop()
    made = 0
    call_at = loop.call_at

    def counting(*args: object, **kwargs: object) -> asyncio.TimerHandle:
        nonlocal made
        made += 1
        return call_at(*args, **kwargs)  # type: ignore[arg-type]

    loop.call_at = counting  # type: ignore[method-assign]
    try:
        for _ in range(100):
            with deadlines.one(), deadlines.one():
                pass
    finally:
        loop.call_at = call_at  # type: ignore[method-assign]
    assert made == 1
