"""From a mutation's arguments to its outcome or its refusal: the way that all of them take."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from resolvers import facts, idempotency, metrics
from resolvers.context import Info
from resolvers.errors import Refused, UserError
from resolvers.idempotency import Committed, Done, Outcome, Turn, Work
from resolvers.values import wrong_key


async def _nothing(_: Outcome) -> None:
    pass


async def mutate(
    info: Info,
    key: str,
    arguments: dict[str, Any],
    wrong: Sequence[UserError],
    work: Work,
    committed: Committed = _nothing,
    turn: Turn = nullcontext,
) -> tuple[Done | None, list[UserError]]:
    """What came of the mutation, or what is wrong with it; then nothing was changed and the key is unused.

    `wrong` is what can be seen from the arguments alone. What may have to wait for others waits for its `turn`.
    """
    errors = [*wrong_key(key), *wrong]
    if errors:
        return None, _refused(errors)
    request = idempotency.request(info.context.client, key, info.field_name, **arguments)
    try:
        done = await info.context.operations.once(request, work, committed, turn, caller=info.context.payer)
    except Refused as refused:
        return None, _refused(refused.errors)
    if done.replayed:
        facts.current().replayed = True
        metrics.replays.labels(info.field_name).inc()
    return done, []


def _refused(errors: list[UserError]) -> list[UserError]:
    noted = facts.current()
    noted.code = noted.code or errors[0].code.value
    metrics.refusals.labels(errors[0].code.value).inc()
    return errors
