"""How much somebody may do in a while: points in a bucket that fills up steadily, shared by all processes.

The algorithm is GCRA: of a bucket only the instant is kept at which it will be full again. Whoever spends moves it
further away, and who would move it further than an empty bucket takes to fill is refused, and pays a fee at the most.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from db.cache import Cache
from db.limiter_script import LIMIT, SPEND
from db.recent import Recent

MICROSECONDS = 1_000_000
# Of one command: Redis does nothing else meanwhile.
BATCH = 100
# Of buckets that this process keeps by itself while Redis is away: a hundred bytes each. Forgotten ones are full.
BUCKETS = 50_000


@dataclass(frozen=True, slots=True)
class Policy:
    """A bucket that holds `burst` points, and gets `points` back in `seconds`."""

    points: int
    burst: int
    seconds: int = 1

    def microseconds(self, points: int) -> int:
        """What so many points take to come back."""
        return ceil(points * self.seconds * MICROSECONDS / self.points)

    @property
    def window(self) -> int:
        """Seconds from an empty bucket to a full one, rounded up."""
        return ceil(self.burst * self.seconds / self.points)


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    # Whole points that are left.
    remaining: int
    # When so many points will be there; 0 when they were spent.
    retry_ms: int
    # When the bucket will be full.
    reset_ms: int
    # Until then there is not a single point; 0 when there is one.
    empty_us: int
    # When as many could be spent as this time.
    again_us: int


# A bucket, and in microseconds what is to be taken from it, what it holds, and the fee; and whether it was taken, and
# what the bucket lacks then.
Wanted = tuple[str, int, int, int]
Spent = tuple[bool, int]


class Limiter:
    """Never fails: while Redis is away each process counts for itself, so that n of them allow up to n times as much.

    What was spent then is not told to Redis: nobody is refused later for what was allowed before.
    """

    def __init__(self, cache: Cache, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._cache = cache
        self._clock = clock
        # When each bucket will be full, in microseconds.
        self._own: Recent[str, int] = Recent(BUCKETS)
        # What was asked for while the last command was under way: it is sent together.
        self._waiting: list[tuple[Wanted, asyncio.Future[Spent]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def spend(self, bucket: str, points: int, policy: Policy, fee: int = 0) -> Verdict:
        """Take the points, all of them or none; instead of none a fee, or what there is of it.

        Of no points it tells how the bucket stands.
        """
        wanted = bucket, policy.microseconds(points), policy.microseconds(policy.burst), policy.microseconds(fee)
        answer: asyncio.Future[Spent] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, answer))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        allowed, ahead = await answer
        return verdict(policy, allowed=allowed, ahead=ahead, cost=wanted[1])

    async def _send(self) -> None:
        try:
            while self._waiting:
                batch = self._waiting[:BATCH]
                del self._waiting[:BATCH]
                found: list[int] | None = None
                try:
                    found = await self._ask([wanted for wanted, _ in batch])
                finally:  # whatever has gone wrong, nobody waits for ever
                    for n, (wanted, answer) in enumerate(batch):
                        spent = self._spend(*wanted) if found is None else (found[2 * n] == 1, found[2 * n + 1])
                        if not answer.done():  # whoever asked may have left
                            answer.set_result(spent)
        finally:
            self._sender = None

    async def _ask(self, wanted: Sequence[Wanted]) -> list[int] | None:
        keys = [LIMIT + bucket.encode() for bucket, *_ in wanted]
        args = [number for _, *numbers in wanted for number in numbers]
        found: list[int] | None = await self._cache.run(SPEND, keys, args)
        return found

    def _spend(self, bucket: str, cost: int, most: int, fee: int) -> Spent:
        """The same as the script does in Redis (db/limiter_script.py)."""
        now = self._clock() // 1_000
        full = self._own.find(bucket)
        ahead = 0 if full is None or not now < full <= now + most else full - now
        allowed = ahead + cost <= most
        ahead += cost if allowed else min(fee, most - ahead)
        self._own.keep(bucket, now + ahead)
        return allowed, ahead


def verdict(policy: Policy, *, allowed: bool, ahead: int, cost: int) -> Verdict:
    """What it means that a bucket is full in `ahead` microseconds."""
    most = policy.microseconds(policy.burst)
    again = max(0, ahead + cost - most)
    return Verdict(
        allowed,
        remaining=(most - ahead) * policy.points // (policy.seconds * MICROSECONDS),
        retry_ms=0 if allowed else ceil(again / 1_000),
        reset_ms=ceil(ahead / 1_000),
        empty_us=max(0, ahead + policy.microseconds(1) - most),
        again_us=again,
    )
