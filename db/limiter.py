"""How much somebody may do in a while: points in a bucket that fills up steadily, shared by all processes.

The algorithm is GCRA: of a bucket only the instant is kept at which it will be full again. Whoever spends moves it
further away, and who would move it further than an empty bucket takes to fill is refused, and pays a fee at the most.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

from db.cache import Cache
from db.limiter_script import LIMIT, SPEND
from db.pipeline import Part, Script
from db.recent import Recent

MICROSECONDS = 1_000_000
SCRIPT = Script(SPEND)
# What one command spends: Redis does nothing else meanwhile.
BATCH = 1_000
# Of buckets that this process keeps by itself while Redis is away: a hundred bytes each. Forgotten ones are full.
BUCKETS = 50_000


@dataclass(frozen=True, slots=True)
class Policy:
    """A bucket that holds `burst` points, and gets `points` back in `seconds`."""

    points: int
    burst: int
    seconds: int = 1
    # What a full bucket is worth.
    most: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "most", self.microseconds(self.burst))

    def microseconds(self, points: int) -> int:
        """What so many points take to come back."""
        return -(-points * self.seconds * MICROSECONDS // self.points)

    @property
    def window(self) -> int:
        """Seconds from an empty bucket to a full one, rounded up."""
        return ceil(self.burst * self.seconds / self.points)


class Verdict(NamedTuple):
    """What came of a wish, by how far away the bucket was from being full then."""

    allowed: bool
    # In microseconds, and what the points are worth that were wanted.
    ahead: int
    cost: int
    policy: Policy

    @property
    def remaining(self) -> int:
        """Whole points that are left."""
        return (self.policy.most - self.ahead) * self.policy.points // (self.policy.seconds * MICROSECONDS)

    @property
    def retry_ms(self) -> int:
        """When so many points will be there; 0 when they were spent."""
        return 0 if self.allowed else ceil(self.again_us / 1_000)

    @property
    def reset_ms(self) -> int:
        """When the bucket will be full."""
        return ceil(self.ahead / 1_000)

    @property
    def empty_us(self) -> int:
        """Until then there is not a single point; 0 when there is one."""
        return max(0, self.ahead + self.policy.microseconds(1) - self.policy.most)

    @property
    def again_us(self) -> int:
        """When as many could be spent as this time."""
        return max(0, self.ahead + self.cost - self.policy.most)


# What the points are worth in microseconds, and what is taken where there is less than that.
Wanted = tuple[int, int, Policy, "asyncio.Future[Verdict]"]


class _Batch:
    """Wishes that are sent together, those of one bucket in their order."""

    def __init__(self) -> None:
        self.size = 0
        self.buckets: dict[tuple[str, int], list[Wanted]] = {}

    def add(self, bucket: str, wanted: Wanted) -> None:
        self.size += 1
        place = bucket, wanted[2].most
        wishes = self.buckets.get(place)
        if wishes is None:
            self.buckets[place] = [wanted]
        else:
            wishes.append(wanted)

    def command(self) -> tuple[list[Part], list[Part]]:
        """The script's keys and arguments: equal wishes that follow each other are one step."""
        keys: list[Part] = []
        args: list[Part] = []
        for (bucket, most), wishes in self.buckets.items():
            steps: list[Part] = []
            cost = fee = times = -1
            for wanted in wishes:
                if wanted[0] == cost and wanted[1] == fee:
                    times += 1
                else:
                    if times > 0:
                        steps += (cost, fee, times)
                    cost, fee, times = wanted[0], wanted[1], 1
            steps += (cost, fee, times)
            keys.append((LIMIT + bucket).encode(errors="surrogatepass"))
            args += (most, len(steps) // 3, *steps)
        return keys, args


class Limiter:
    """Never fails: while Redis is away each process counts for itself, so that n of them allow up to n times as much.

    What was spent then is not told to Redis: nobody is refused later for what was allowed before.
    """

    def __init__(self, cache: Cache, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._cache = cache
        self._clock = clock
        # When each bucket will be full, in microseconds.
        self._own: Recent[str, int] = Recent(BUCKETS)
        # What goes out with the next write.
        self._waiting = _Batch()

    def spend(self, bucket: str, points: int, policy: Policy, fee: int = 0) -> "asyncio.Future[Verdict]":
        """Take the points, all of them or none; instead of none a fee, or what there is of it.

        Of no points it tells how the bucket stands. It is asked for at once, whether the answer is awaited or not.
        """
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        cost = policy.microseconds(points)
        waiting = self._waiting
        if not waiting.size:
            self._cache.soon(self._send)
        waiting.add(bucket, (cost, policy.microseconds(fee), policy, answer))
        if waiting.size >= BATCH:
            self._send()
        return answer

    def _send(self) -> None:
        if not self._waiting.size:
            return
        batch, self._waiting = self._waiting, _Batch()

        def found(ahead: list[int] | None) -> None:
            if ahead is None:
                for (bucket, most), wishes in batch.buckets.items():
                    self._spend(bucket, most, wishes)
            else:
                for wishes, before in zip(batch.buckets.values(), ahead, strict=True):
                    decided(wishes, before)

        keys, args = batch.command()
        self._cache.run(SCRIPT, keys, args, found)

    def _spend(self, bucket: str, most: int, wishes: list[Wanted]) -> None:
        """The same as the script does in Redis (db/limiter_script.py)."""
        now = self._clock() // 1_000
        full = self._own.find(bucket)
        ahead = 0 if full is None or not now < full <= now + most else full - now
        self._own.keep(bucket, now + decided(wishes, ahead))


def decided(wishes: list[Wanted], ahead: int) -> int:
    """Tell each what came of it, one after the other, and return how far away the bucket is from being full then."""
    for cost, fee, policy, answer in wishes:
        most = policy.most
        allowed = ahead + cost <= most
        ahead += cost if allowed else min(fee, most - ahead)
        if not answer.done():  # whoever asked may have left
            answer.set_result(tuple.__new__(Verdict, (allowed, ahead, cost, policy)))  # its own takes thrice as long
    return ahead
