"""Whether memberships of the past are what a second, plain implementation makes of what callers have asked for."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import typer
from sqlalchemy import insert, text

from bench import databases, figures, processes, seeds
from bench.client import Client
from bench.databases import Database
from bench.figures import Json, Results, said
from bench.wire import Wire
from db import buckets, connections, tables
from db.tables import MembershipAction

CONNECTIONS = 4
# Of all that is done.
ADDITIONS, REMOVALS, ROLLOUTS, DELETIONS = 0.62, 0.33, 0.047, 0.003
PERCENTAGES = (None, 0, 500, 2_500, 5_000, 7_500, 10_000)
MICROSECOND = timedelta(microseconds=1)
# What the driver means by `infinity`.
NEVER = datetime.max.replace(tzinfo=UTC)
ASKED = """query ($id: ID!, $at: DateTime!, $to: DateTime!, $after: String) { user(id: $id) {
  memberships(at: $at) { segment { id } addedAt expiresAt source }
  history(to: $to, first: 100, after: $after) {
    nodes { slug action source } pageInfo { hasNextPage endCursor } } } }"""
# Segment, since when, until when, why.
Membership = tuple[int, datetime, datetime, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """One thing that somebody asked the service to do."""

    at: datetime
    kind: str
    segment: int
    user: str = ""
    expires_at: datetime = NEVER
    rollout: int | None = None


@dataclass(slots=True)
class Segment:
    id: int
    seed: str
    asked: list[Asked] = field(default_factory=list)

    def was(self, user: str, at: datetime) -> Membership | None:
        """The membership at that instant, from nothing but what was asked until then."""
        added_at = expires_at = included_since = None
        excluded = rolled_out = False
        for asked in self.asked:
            if asked.at > at:
                break
            member = expires_at is not None and expires_at > asked.at
            if asked.kind == "delete":
                return None
            if asked.kind == "rollout":
                rolled_out = True
                included = asked.rollout is not None and buckets.bucket(self.seed, user) < asked.rollout
                included_since = (included_since or asked.at) if included else None
            elif asked.user != user:
                continue
            elif asked.kind == "add":
                excluded = False
                added_at = added_at if member else asked.at
                expires_at = asked.expires_at
            else:
                # Who is removed from a segment that has, or has had, a rollout is taken in by none.
                excluded = excluded or rolled_out
                expires_at = None
        if added_at is not None and expires_at is not None and expires_at > at:
            return self.id, added_at, expires_at, "EXPLICIT"
        if included_since is not None and not excluded:
            return self.id, included_since, NEVER, "ROLLOUT"
        return None


@dataclass(slots=True)
class Written:
    """The rows that the service would have written by then, had it been there."""

    memberships: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    exclusions: list[dict[str, Any]] = field(default_factory=list)
    excluded: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    rollouts: dict[int, int | None] = field(default_factory=dict)
    deleted: dict[int, datetime] = field(default_factory=dict)

    def do(self, asked: Asked) -> None:
        pair = asked.user, asked.segment
        match asked.kind:
            case "rollout":
                self.rollouts[asked.segment] = asked.rollout
                self.changes.append(
                    {"segment_id": asked.segment, "at": asked.at, "rollout": asked.rollout, "operation_id": 1}
                )
            case "delete":
                self.deleted[asked.segment] = asked.at
            case "add":
                if pair in self.excluded:
                    self.excluded.pop(pair)["ended_at"] = asked.at
                self._add(pair, asked)
            case "remove":
                if (row := self.memberships.get(pair)) is not None and row["expires_at"] > asked.at:
                    del self.memberships[pair]
                    self._record(pair, MembershipAction.REMOVED, asked.at)
                if asked.segment in self.rollouts and pair not in self.excluded:
                    row = {"user_id": asked.user, "segment_id": asked.segment, "operation_id": 1}
                    self.excluded[pair] = row | {"excluded_at": asked.at, "ended_at": NEVER}
                    self.exclusions.append(self.excluded[pair])

    def _add(self, pair: tuple[str, int], asked: Asked) -> None:
        row = self.memberships.get(pair)
        if row is not None and row["expires_at"] <= asked.at:
            self._record(pair, MembershipAction.EXPIRED, row["expires_at"])
            row = None
        if row is None:
            self.memberships[pair] = {
                "user_id": asked.user,
                "segment_id": asked.segment,
                "added_at": asked.at,
                "expires_at": asked.expires_at,
            }
            self._record(pair, MembershipAction.ADDED, asked.at, asked.expires_at)
        elif row["expires_at"] != asked.expires_at:
            row["expires_at"] = asked.expires_at
            self._record(pair, MembershipAction.EXPIRY_CHANGED, asked.at, asked.expires_at)

    def tidy(self, chance: random.Random, now: datetime) -> None:
        """Let jobs have moved out half of what has expired, and of what was in half of the deleted segments."""
        cleaned = {segment for segment in self.deleted if chance.random() < 1 / 2}
        for pair, row in list(self.memberships.items()):
            deleted_at = self.deleted.get(pair[1], NEVER)
            if min(row["expires_at"], deleted_at) > now or (pair[1] not in cleaned and chance.random() < 1 / 2):
                continue
            del self.memberships[pair]
            ended_by = MembershipAction.SEGMENT_DELETED if deleted_at < row["expires_at"] else MembershipAction.EXPIRED
            self._record(pair, ended_by, min(row["expires_at"], deleted_at))

    def _record(
        self, pair: tuple[str, int], action: MembershipAction, at: datetime, expires_at: datetime | None = None
    ) -> None:
        row = {"user_id": pair[0], "segment_id": pair[1], "action": action, "at": at, "expires_at": expires_at}
        self.events.append(row | {"operation_id": None if action is MembershipAction.EXPIRED else 1})


@dataclass(slots=True)
class Differing:
    memberships: int = 0
    histories: int = 0


def measure(users: int = 300, segments: int = 20, changes: int = 15_000, instants: int = 1_000) -> Results:
    results, seed = Results("as of"), random.randrange(2**32)
    chance = random.Random(seed)
    said(f"seed {seed}")
    with databases.running() as database:
        base = seeds.prepare(database)
        known = [Segment(number, f"seed-{chance.random()}") for number in range(1, segments + 1)]
        for asked in _story(chance, base, users, segments, changes):
            known[asked.segment - 1].asked.append(asked)
        written = _written(chance, known, base)
        asyncio.run(_write(database, known, written, base))
        seeds.settle(database)
        found = database.differences()
        with processes.serving(database, tasks=1) as client:
            when = list(_instants(chance, known, base, users, instants))
            differing = asyncio.run(_compare(client, known, when))
    results.raw |= {"seed": seed, "events": len(written.events), "exclusions": len(written.exclusions)}
    results.add("events", len(written.events))
    results.add("differences that verify finds in them", found, most=0)
    results.add("memberships(at:) compared", len(when))
    results.add("that differ", differing.memberships, most=0)
    results.add("histories until then that fold to something else", differing.histories, most=0)
    return results


def _story(chance: random.Random, base: datetime, users: int, segments: int, changes: int) -> Iterator[Asked]:
    """What callers ask for, in order, in the time that history goes back."""
    microseconds = (seeds.DAYS - 1) * 86_400 * 10**6
    live = list(range(1, segments + 1))
    for before in sorted(chance.sample(range(1, microseconds), changes), reverse=True):
        at, segment = base - before * MICROSECOND, chance.choice(live)
        user = seeds.user_id(chance.randrange(users))
        match chance.choices("ARPD", (ADDITIONS, REMOVALS, ROLLOUTS, DELETIONS))[0]:
            case "A":
                # Some end before anything else can happen, some with the microsecond of something else, some later.
                ends = chance.choice((NEVER, at + MICROSECOND, at + chance.random() * timedelta(days=90)))
                yield Asked(at, "add", segment, user, expires_at=ends)
            case "R":
                yield Asked(at, "remove", segment, user)
            case "P":
                yield Asked(at, "rollout", segment, rollout=chance.choice(PERCENTAGES))
            case "D" if len(live) > segments / 2:
                live.remove(segment)
                yield Asked(at, "delete", segment)


def _written(chance: random.Random, known: list[Segment], base: datetime) -> Written:
    written = Written()
    for asked in sorted((each for segment in known for each in segment.asked), key=lambda each: each.at):
        written.do(asked)
    written.tidy(chance, base)
    return written


async def _write(database: Database, known: list[Segment], written: Written, base: datetime) -> None:
    writer = connections.writer(database.url.render_as_string(hide_password=False), 1)
    begin = base - timedelta(days=seeds.DAYS)
    async with writer.begin() as tx:
        await tx.execute(text("SET LOCAL statement_timeout = 0"))
        for segment in known:
            deleted_at = written.deleted.get(segment.id)
            waits = any(row["segment_id"] == segment.id for row in written.memberships.values())
            values = {
                "slug": f"S{segment.id}",
                "created_at": begin,
                "deleted_at": deleted_at,
                "deleted_by": None if deleted_at is None else 1,
                "cleaned_at": None if waits else deleted_at,
                "version": 1,
                "rollout": written.rollouts.get(segment.id),
                "seed": segment.seed,
            }
            await tx.execute(insert(tables.segments), values)
        await tx.execute(text("UPDATE catalogue SET version = 1"))
        await tx.execute(insert(tables.rollout_changes), written.changes)
        await tx.execute(insert(tables.exclusions), written.exclusions)
        await tx.execute(insert(tables.memberships), list(written.memberships.values()))
        await tx.execute(insert(tables.membership_events), written.events)
    await writer.dispose()


def _instants(
    chance: random.Random, known: list[Segment], base: datetime, users: int, number: int
) -> Iterator[tuple[str, datetime]]:
    """Users and instants: half of these exactly at something that was asked, at an expiry, or a microsecond before."""
    asked = [each for segment in known for each in segment.asked]
    for _ in range(number // 2):
        yield seeds.user_id(chance.randrange(users)), base - chance.random() * timedelta(days=seeds.DAYS - 1)
    for _ in range(number - number // 2):
        each = chance.choice(asked)
        ends = [each.expires_at] if each.expires_at < base else []
        at = chance.choice([each.at, *ends]) - chance.choice((0, 1)) * MICROSECOND
        yield each.user or seeds.user_id(chance.randrange(users)), at


async def _compare(client: Client, known: list[Segment], when: list[tuple[str, datetime]]) -> Differing:
    differing, left = Differing(), iter(when)

    async def ask() -> None:
        async with Wire(client.host, client.port) as wire:
            for user, at in left:
                expected = {found for segment in known if (found := segment.was(user, at)) is not None}
                answer = await _answer(wire, user, at)
                memberships = [_membership(each) for each in answer["memberships"]]
                if memberships != sorted(expected, key=lambda each: f"S{each[0]}"):
                    differing.memberships += 1
                    said(f"user {user} at {at}: {expected.symmetric_difference(memberships)}")
                if _folded(answer["events"]) != {(f"S{segment}", why) for segment, _, _, why in expected}:
                    differing.histories += 1
                    said(f"user {user} until {at}: {answer['events']}")

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    return differing


async def _answer(wire: Wire, user: str, at: datetime) -> dict[str, Any]:
    """The memberships at that instant, and all events until then, the oldest first."""
    variables = {"id": user, "at": at.isoformat(), "to": (at + MICROSECOND).isoformat()}
    page: dict[str, Any] = {"hasNextPage": True, "endCursor": None}
    answer: dict[str, Any] = {}
    events: list[Any] = []
    while page["hasNextPage"]:
        answer = (await wire.ask(ASKED, variables | {"after": page["endCursor"]}))["user"]
        events += answer["history"]["nodes"]
        page = answer["history"]["pageInfo"]
    return answer | {"events": events[::-1]}


def _membership(answer: Any) -> Membership:
    ends = NEVER if answer["expiresAt"] is None else datetime.fromisoformat(answer["expiresAt"])
    return int(answer["segment"]["id"]), datetime.fromisoformat(answer["addedAt"]), ends, answer["source"]


def _folded(events: list[Any]) -> set[tuple[str, str]] | None:
    """Segments and why the user is in them; None when beginnings and ends do not alternate."""
    inside: dict[str, str] = {}
    for event in events:
        slug, action, source = event["slug"], event["action"], event["source"]
        if (action == MembershipAction.ADDED) is (slug in inside):
            return None
        if action == MembershipAction.ADDED:
            inside[slug] = source
        elif inside[slug] != source:
            return None
        elif action != MembershipAction.EXPIRY_CHANGED:
            del inside[slug]
    return set(inside.items())


def main(json: Json = None) -> None:
    figures.conclude([measure()], json)


if __name__ == "__main__":
    typer.run(main)
