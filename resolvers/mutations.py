"""From a mutation's arguments to its outcome or its refusal: the way that all of them take."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import Any

from resolvers import facts, idempotency, metrics
from resolvers.context import Context, Info
from resolvers.errors import Refused, UserError
from resolvers.idempotency import Committed, Done, Outcome, Request, Statement, Turn, Work
from resolvers.values import wrong_key

Result = tuple[Done | None, list[UserError]]


async def _nothing(_: Outcome) -> None:
    pass


def mutate(
    info: Info,
    key: str,
    arguments: dict[str, Any],
    wrong: Sequence[UserError],
    work: Work,
    committed: Committed = _nothing,
    turn: Turn = nullcontext,
) -> Awaitable[Result]:
    """What came of the mutation, or what is wrong with it; then nothing was changed and the key is unused.

    `wrong` is what can be seen from the arguments alone. What may have to wait for others waits for its `turn`.
    """
    once, payer = info.context.services.operations.once, info.context.payer
    return _answered(info, key, arguments, wrong, lambda request: once(request, work, committed, turn, caller=payer))


def mutate_by(
    info: Info,
    key: str,
    arguments: dict[str, Any],
    wrong: Sequence[UserError],
    statement: Statement,
    committed: Committed = _nothing,
    turn: Turn = nullcontext,
) -> Awaitable[Result]:
    """The same of a mutation that is one statement, its key included."""
    once_by, payer = info.context.services.operations.once_by, info.context.payer
    return _answered(
        info, key, arguments, wrong, lambda request: once_by(request, statement, committed, turn, caller=payer)
    )


async def _answered(
    info: Info,
    key: str,
    arguments: dict[str, Any],
    wrong: Sequence[UserError],
    once: Callable[[Request], Awaitable[Done]],
) -> Result:
    errors = [*wrong_key(key), *wrong]
    if errors:
        return None, _refused(errors)
    request = idempotency.request(info.context.client, key, info.field_name, **arguments)
    try:
        done = await _first(info.context, request, once)
    except Refused as refused:
        return None, _refused(refused.errors)
    if done.replayed:
        facts.current().replayed = True
        metrics.replays.labels(info.field_name).inc()
    return done, []


async def _first(context: Context, request: Request, once: Callable[[Request], Awaitable[Done]]) -> Done:
    """What came of the request, be it before this answer was begun anew: to its caller it is the same one."""
    outcome = context.before.pop(request, None)
    if outcome is None:
        try:
            outcome = await once(request)
        except Refused:
            raise  # that changed nothing
        except Exception as error:
            context.outcomes[request] = error
            raise
        context.outcomes[request] = outcome
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _refused(errors: list[UserError]) -> list[UserError]:
    noted = facts.current()
    noted.code = noted.code or errors[0].code.value
    metrics.refusals.labels(errors[0].code.value).inc()
    return errors
