"""Whatever is asked, code that was compiled for a query answers what graphql-core answers, byte for byte."""

import asyncio
import gc
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from comparing import Answer, Comparable, Connection, both, counted
from conftest import Client, Serve
from generated_values import Values
from generating import Case, case, document
from operations import change
from populating import USERS, populate
from sqlalchemy.ext.asyncio import AsyncEngine

from resolvers.facts import Facts
from schema import api
from server.runs import Run

CASES = 250
SOAKED = 20_000
# With the same document, and other variables.
AT_ONCE = 4
# What is expiring while it is asked for is looked at again; and of several errors each may be the first.
LOOKS = 8
# To the server with plans, and to the one without.
Pair = tuple[Connection, Connection]


@dataclass
class Findings:
    """What came of all cases."""

    cases: int = 0
    # Answers by a plan, and all answers of the server that has plans.
    planned: int = 0
    answers: int = 0
    looked_again: int = 0
    # Of several fields that fail at once another one was always first.
    other_failures: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.cases} queries: {self.planned} of {self.answers} answers were by compiled code, "
            f"{len(self.differences)} were others than graphql-core's ({self.looked_again} looked at again, "
            f"{self.other_failures} with another error); "
            f"{dict(self.outcomes.most_common())}"
        )


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of the answers that were asked of plans, how many were given by one."""
    return counted(monkeypatch)


# graphql-core awaits nothing beside a field that fails at once. When that is noticed while a named tuple is made, whose
# code has no builtins, not even the warning can be given that is ignored everywhere.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <coroutine object:pytest.PytestUnraisableExceptionWarning")
async def test_compiled_queries_answer_what_graphql_core_answers(
    serve: Serve, engine: AsyncEngine, planned: Counter[str], record_property: Callable[[str, object], None]
) -> None:
    await _compare(serve, engine, planned, record_property, CASES, seed=1)


@pytest.mark.soak
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <coroutine object:pytest.PytestUnraisableExceptionWarning"
)  # likewise
async def test_twenty_thousand_compiled_queries_answer_what_graphql_core_answers(
    serve: Serve, engine: AsyncEngine, planned: Counter[str], record_property: Callable[[str, object], None]
) -> None:
    await _compare(serve, engine, planned, record_property, SOAKED, seed=2)


async def _compare(
    serve: Serve,
    engine: AsyncEngine,
    planned: Counter[str],
    record_property: Callable[[str, object], None],
    cases: int,
    seed: int,
) -> None:
    findings, began = Findings(), time.monotonic()
    async with (
        serve(rate_limit=0) as short,
        serve(rate_limit=0, fast_path="off") as long,
        AsyncExitStack() as opened,
    ):
        asked = [await opened.enter_async_context(both(short, long)) for _ in range(AT_ONCE)]
        await _ask_all(asked, long, engine, cases, random.Random(seed), findings)
    # What graphql-core has left is gone before another test could be blamed for it.
    gc.collect()
    findings.planned = planned["plan"]
    told = f"{findings}, {time.monotonic() - began:.0f} s"
    print(f"\n{told}")
    record_property("printed", told)
    assert findings.differences == []
    assert findings.other_failures < 5 + cases // 200
    assert findings.looked_again < 20 + cases // 100
    assert findings.planned > 0.3 * findings.answers


async def _ask_all(
    asked: list[Pair],
    client: Client,
    engine: AsyncEngine,
    cases: int,
    chance: random.Random,
    findings: Findings,
) -> None:
    values = Values(await populate(client, engine), chance)
    schema = api.schema()._schema
    while findings.cases < cases:
        written = document(schema, values, chance)
        await _ask(asked[0], case(written, values, chance), findings)
        # It is known now, and what is asked at once is read together.
        await asyncio.gather(*(_ask(pair, case(written, values, chance), findings) for pair in asked))
        if chance.random() < 0.03:
            await change(client, chance.choice(USERS), add=["A"], remove=["B"])
            await change(client, chance.choice(USERS), add=["B"], remove=["A"])


async def _ask(asked: Pair, sent: Case, findings: Findings) -> None:
    """Twice on the short way, where the second time it may be compiled, and on the long one in between."""
    findings.cases += 1
    short, long = asked
    answered: set[Comparable] = set()
    right: set[Comparable] = set()
    for _ in range(LOOKS):
        answers = [await each.post(sent.body, accept=sent.accept) for each in (short, long, short)]
        findings.answers += 2
        # Not those of earlier looks: what has expired since then nobody will answer again.
        answered = {answers[0].comparable, answers[2].comparable}
        right.add(answers[1].comparable)
        if answered <= right:
            findings.outcomes[_outcome(answers[1])] += 1
            return
        findings.looked_again += 1
    if all(map(_failed_below, answered | right)):
        findings.other_failures += 1
        return
    findings.differences.append(f"{sent}\n" + "\n".join(map(str, (*right, *(answered - right)))))


def _failed_below(answer: Comparable) -> bool:
    """Whether a field failed, and nothing is left: which of several is told is decided by who is first."""
    status, _, body = answer
    return status == 200 and body.endswith(b'"data":null}') and b'"path":[' in body


def _outcome(answer: Answer) -> str:
    if b'"errors":[{' not in answer.body[:12]:
        return "right"
    return answer.body.partition(b'"code":"')[2].partition(b'"')[0].decode()


async def test_a_run_that_is_abandoned_leaves_nothing_at_work(caplog: pytest.LogCaptureFixture) -> None:
    run, made, ended = Run(None, "", Facts()), {}, []  # type: ignore[arg-type, var-annotated]  # nobody looks at its context

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waits")

    async def fails(message: str) -> None:
        await asyncio.sleep(0)  # the others have begun
        raise ValueError(message)

    for number, work in enumerate((fails("one"), waits(), fails("other"), waits())):
        run.resolve(work, made, str(number), lambda value, *_: value, {})
    with pytest.raises(ValueError, match="one"):
        await run.finish()
    run.resolve(waits(), made, "never begun", lambda value, *_: value, {})
    await run.abandon()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert (ended, made) == (["waits"] * 2, {})
    gc.collect()
    assert caplog.records == []
