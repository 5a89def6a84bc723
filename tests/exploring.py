"""Running machines of Hypothesis, which know no coroutines, against what lives in an event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.stateful import run_state_machine_as_test as run_machine

T = TypeVar("T")
# To find that there is a failure, and not the shortest way to it.
FINDING = (Phase.generate,)


def within(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """What comes of it in that loop, which another thread runs."""
    return asyncio.run_coroutine_threadsafe(work, loop).result(100)


async def explored(
    machine: Callable[[], RuleBasedStateMachine],
    examples: int,
    steps: int,
    phases: tuple[Phase, ...] = tuple(Phase),
) -> None:
    """Run so many examples of a machine, the same ones every time, in a thread beside this loop."""
    chosen = hypothesis_settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    made: Any = machine  # it says that it wants a class, and calls it
    await asyncio.to_thread(run_machine, made, settings=chosen)
