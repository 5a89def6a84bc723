"""What is told of one request in the log and in the metrics, noted by whoever comes to know it."""

from contextvars import ContextVar


# No dataclass: of most requests most of it stays as it is, which then takes no time.
class Facts:
    """Nothing in it says which users were asked for, and nothing in it opens a door."""

    # In every line that is logged for the request, and in its answer.
    request_id: str | None = None
    # The operation's name, as the caller chose it.
    operation: str | None = None
    # query, mutation or subscription.
    kind: str | None = None
    # The beginning of the hash of the document's text.
    document: str | None = None
    # ok, refused, failed or left: the caller did not wait for the answer.
    outcome: str = "ok"
    # What the first error was, or the first refusal in `userErrors`.
    code: str | None = None
    # Who asked, if that was asked.
    client: str | None = None
    # Users whose memberships the cache had, and had not.
    cache_hits: int = 0
    cache_misses: int = 0
    # Sent to PostgreSQL. One that answers several requests at once is counted for one of them.
    statements: int = 0
    # Points, by the rate limit's prices.
    cost: int | None = None
    # Whether it was counted and logged, while it still goes on: a subscription was when it had begun.
    concluded: bool = False
    # Whether a mutation's answer was that of an earlier call with its key.
    replayed: bool = False


_current: ContextVar[Facts | None] = ContextVar("facts", default=None)


def current() -> Facts:
    """Those of the request that is being answered; outside of requests some that nobody reads."""
    return _current.get() or Facts()


def begin() -> Facts:
    """New ones, for the request that the running task answers, and for every task that it starts."""
    facts = Facts()
    _current.set(facts)
    return facts


def resume(facts: Facts) -> None:
    """Have the running task note what it does for a request there, whoever has started it."""
    _current.set(facts)
