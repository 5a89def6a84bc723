"""A year of segments and users that never were, told day by day in the order of time: always the same one."""

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from enum import IntEnum
from random import Random
from typing import NamedTuple
from uuid import UUID

from db.demo import Batch, Member, NewSegment
from server.demo_ledger import Ledger
from server.demo_segments import ADMIN, CRM, HOURS, OPT_OUT, PLANS, PRICING, SIGN_UP, SUPPORT, WELCOME, Plan

SEED = 1_000
DAYS = 365
# The plans' numbers are for so many users.
USERS = 100_000
# Within the year instants are microseconds since its begin.
DAY = 86_400_000_000
# How busy the days of a week are, from Monday on.
WEEK = (1.0, 1.05, 1.1, 1.05, 0.95, 0.55, 0.45)
WEEKS = math.ceil(DAYS / len(WEEK))
# There is more to do at the end of the year than at its begin, by so much; and with a segment when it is new.
GROWTH, LAUNCH, LAUNCH_DAYS = 1.2, 4, 6
# Which part of the users was there before the year; their number then grows, ever faster.
THERE, FASTER = 0.6, 1.3
# Whoever was drawn and is in the segment already is drawn again, so many times: most clients know whom they have added.
DRAWS = 8
# How often what: a membership is prolonged, comes back after its end, is asked for twice, comes with another one.
PROLONGED, BACK_AFTER_REMOVAL, BACK_AFTER_EXPIRY, TWICE, ALONG = 0.3, 0.25, 0.15, 0.02, 0.15
# Days until the average removal, and the longest until somebody comes back.
REMOVAL_DAYS, BACK_DAYS = 60, 40


class What(IntEnum):
    """In the order in which things of one instant happen."""

    EXPIRE = 0
    CREATE = 1
    ROLL_OUT = 2
    DELETE = 3
    REMOVE = 4
    ADD = 5
    PROLONG = 6


class Step(NamedTuple):
    """Something that is to happen, if it still makes sense by then."""

    at: int
    what: What
    segment: int
    user: int = 0
    client: str = ""
    # -1: none.
    rollout: int = -1


class Year:
    """The year up to `now`. Segments are numbers here: their places in PLANS and in `segments`."""

    def __init__(self, now: datetime, users: int = USERS) -> None:
        self._users = users
        self._random = Random(SEED)  # noqa: S311  # it makes up data, and keeps no secret
        self._start = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=DAYS - 1)
        self._end = (now - self._start) // timedelta(microseconds=1)
        self._steps: list[list[Step]] = [[] for _ in range(DAYS)]
        # From when on and until when a segment is there; the end of the year: it still is.
        self._created = [self._instant(self._workday(plan.created), ADMIN) for plan in PLANS]
        self._deleted = [
            DAYS * DAY if plan.deleted is None else self._instant(self._workday(plan.deleted), ADMIN) for plan in PLANS
        ]
        self._weights = [self._weigh(number) for number in range(len(PLANS))]
        # Of a day's share that was no whole user the rest.
        self._rest = [0.0] * len(PLANS)
        # Users in the order in which they are drawn, so that everybody's turn comes.
        self._deck: list[int] = []
        self.segments = [self._plan_segment(number, plan) for number, plan in enumerate(PLANS)]
        self._ledger = Ledger(())

    @property
    def users(self) -> int:
        """How many users something has happened to so far."""
        return self._ledger.users

    def weeks(self, ids: Sequence[int]) -> Iterator[Batch]:
        """What happens each week, and in the day that is left; `ids` are the segments'."""
        self._ledger = Ledger(ids)
        for day in range(DAYS):
            self._plan_day(day)
            for step in sorted(self._steps[day]):
                self._take(step)
            self._steps[day] = []
            if (day + 1) % len(WEEK) == 0 or day == DAYS - 1:
                yield self._ledger.batch()

    def members(self) -> list[Member]:
        """What all of that has led to."""
        return self._ledger.members()

    def _plan_segment(self, number: int, plan: Plan) -> NewSegment:
        created, changed, rollout = self._created[number], self._created[number], -1
        self._put(Step(created, What.CREATE, number))
        for ago, percent in plan.rollouts:
            # What a segment is created with needs no further operation.
            changed = created if ago == plan.created else self._instant(self._workday(ago), ADMIN)
            rollout = -1 if percent is None else round(percent * 100)
            self._put(Step(changed, What.ROLL_OUT, number, rollout=rollout))
        deleted = None
        if plan.deleted is not None:
            changed = self._deleted[number]
            deleted = self._datetime(changed)
            self._put(Step(changed, What.DELETE, number))
        return NewSegment(
            plan.slug,
            plan.description,
            None if rollout < 0 else rollout,
            str(UUID(int=self._random.getrandbits(128), version=4)),
            self._datetime(created),
            self._datetime(changed),
            deleted,
        )

    def _weigh(self, number: int) -> list[float]:
        """Which part of a segment's additions each day has."""
        begin, end = self._created[number] // DAY + 1, self._deleted[number] // DAY
        weights = [0.0] * DAYS
        for day in range(begin, end):
            launch = 1 + LAUNCH * math.exp((begin - day) / LAUNCH_DAYS)
            weights[day] = WEEK[self._weekday(day)] * (1 + GROWTH * day / DAYS) * launch
        return [weight / sum(weights) for weight in weights]

    def _plan_day(self, day: int) -> None:
        known = self._known(day - 1)
        for number, plan in enumerate(PLANS):
            self._rest[number] += plan.adds * self._users / USERS * self._weights[number][day]
            whole = int(self._rest[number])
            self._rest[number] -= whole
            for _ in range(whole):
                user = self._draw(known, number)
                self._put(Step(self._instant(day, plan.client), What.ADD, number, user, plan.client))
            if plan.slug == WELCOME and day:
                for user in range(known + 1, self._known(day) + 1):
                    self._put(Step(self._instant(day, SIGN_UP), What.ADD, number, user, SIGN_UP))

    def _known(self, day: int) -> int:
        """How many users there are at the end of a day: all, from yesterday on."""
        return int(self._users * (THERE + (1 - THERE) * min(max(day, 0) / (DAYS - 2), 1) ** FASTER))

    def _draw(self, known: int, number: int) -> int:
        user = 1
        for attempt in range(DRAWS):
            if attempt % 2:
                # Who has been here for long is here more often.
                user = 1 + int(known * self._random.random() ** 2)
            else:
                if not self._deck:
                    self._deck = list(range(1, known + 1))
                    self._random.shuffle(self._deck)
                user = self._deck.pop()
            if number not in self._ledger.memberships(user):
                break
        return user

    def _put(self, step: Step) -> None:
        if step.at < self._end:
            self._steps[step.at // DAY].append(step)

    def _later(self, what: What, step: Step, number: int, days: float, client: str) -> None:
        """What is to become of the step's user, so many days after tomorrow, when that client is at work."""
        at = self._instant(step.at // DAY + 1 + int(days), client)
        self._put(Step(at, what, number, step.user, client))

    def _take(self, step: Step) -> None:
        """Have it happen to a segment."""
        at = self._datetime(step.at)
        match step.what:
            case What.CREATE:
                self._ledger.change_segment(at, "createSegment", step.segment)
            case What.ROLL_OUT:
                if step.at != self._created[step.segment]:
                    self._ledger.change_segment(at, "updateSegment", step.segment)
                self._ledger.roll_out(at, step.segment, None if step.rollout < 0 else step.rollout)
            case What.DELETE:
                self._ledger.delete(at, step.segment)
            case _:
                self._take_user(step, at)

    def _take_user(self, step: Step, at: datetime) -> None:
        """Have it happen to a membership."""
        match step.what:
            case What.EXPIRE:
                if self._ledger.expire(at, step.user, step.segment):
                    self._come_back(step, BACK_AFTER_EXPIRY)
            case What.ADD:
                if step.at < self._deleted[step.segment]:
                    self._change(step, at, [step.segment, *self._along(step)], self._left(step))
            case _ if step.segment not in self._ledger.memberships(step.user):
                pass
            case What.PROLONG:
                self._change(step, at, [step.segment])
            case What.REMOVE:
                self._change(step, at, remove=[step.segment])
                self._come_back(step, BACK_AFTER_REMOVAL)

    def _change(self, step: Step, at: datetime, add: Sequence[int] = (), remove: Sequence[int] = ()) -> None:
        ttl = PLANS[step.segment].ttl
        days = self._random.choice(ttl) if ttl and add else 0
        expires_at = at + timedelta(days) if days else None
        for number in self._ledger.change(at, step.client, step.user, add=add, remove=remove, expires_at=expires_at):
            self._go_on(step, number, days)

    def _along(self, step: Step) -> list[int]:
        """Another campaign that the same client puts the user into with the same words."""
        if not _is_campaign(PLANS[step.segment]) or self._random.random() >= ALONG:
            return []
        others = [
            number
            for number, plan in enumerate(PLANS)
            if _is_campaign(plan)
            and plan.client == step.client
            and number != step.segment
            and self._created[number] < step.at < self._deleted[number]
        ]
        return self._random.choices(others, [PLANS[number].adds for number in others]) if others else []

    def _left(self, step: Step) -> list[int]:
        """What the user wants no more."""
        if PLANS[step.segment].slug != OPT_OUT:
            return []
        return [number for number in self._ledger.memberships(step.user) if _is_campaign(PLANS[number])]

    def _go_on(self, step: Step, number: int, days: int) -> None:
        """What may become of a membership that has begun, or was prolonged."""
        plan = PLANS[number]
        if days:
            self._put(Step(step.at + days * DAY, What.EXPIRE, number, step.user))
            if plan.slug != WELCOME and self._random.random() < PROLONGED:
                self._later(What.PROLONG, step, number, days * self._random.uniform(0.4, 0.9), plan.client)
        elif self._random.random() < TWICE:
            self._later(What.ADD, step, number, 0, plan.client)
        if self._random.random() < plan.leaving and not plan.rollouts:
            last = self._random.random() * days if days else self._random.expovariate(1 / REMOVAL_DAYS)
            self._later(What.REMOVE, step, number, last, self._random.choice((SUPPORT, plan.client)))

    def _come_back(self, step: Step, chance: float) -> None:
        plan = PLANS[step.segment]
        if plan.slug != WELCOME and self._random.random() < chance:
            self._later(What.ADD, step, step.segment, self._random.random() * BACK_DAYS, plan.client)

    def _workday(self, ago: int) -> int:
        """The day so long ago, or the Friday before it."""
        day = DAYS - 1 - ago
        return max(day - max(self._weekday(day) - 4, 0), 0)

    def _weekday(self, day: int) -> int:
        return (self._start + timedelta(days=day)).weekday()

    def _datetime(self, at: int) -> datetime:
        return self._start + timedelta(microseconds=at)

    def _instant(self, day: int, client: str) -> int:
        begin, end = HOURS[client]
        return day * DAY + int(self._random.uniform(begin, end) / 24 * DAY)


def _is_campaign(plan: Plan) -> bool:
    return bool(plan.ttl) and plan.client in (CRM, PRICING)
