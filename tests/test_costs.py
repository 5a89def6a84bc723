"""What an operation costs, and what a bucket does."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

from conftest import Client
from graphql import OperationDefinitionNode, parse
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from limiting import READ, asked, cost
from redis import Redis as SyncRedis

from db.cache import Cache
from db.limiter import Limiter, Policy, Verdict
from db.limiter_script import LIMIT, SPEND
from schema.api import schema
from schema.costs import Price
from server.embedded import Servers

USERS = [str(n) for n in range(100)]
BULK = 'mutation ($input: AddUsersToSegmentInput!) { addUsersToSegment(input: $input, idempotencyKey: "x") { added } }'
REMOVE = """mutation ($u: [ID!]!) {
  removeUsersFromSegment(input: {slug: "A", userIds: $u}, idempotencyKey: "x") { removed } }"""
CREATE = 'createSegment(input: {slug: "-"}, idempotencyKey: "x") { replayed }'
SCHEMA = schema()._schema
# Valid or not: what is wrong with it is for others to say.
ALL_KINDS = """query ($n: Int!, $ids: [ID!]!, $i: Odd!, $yes: Boolean = true) {
  segments(first: $n) { nodes { memberCount(limit: $n) { value } } }
  users(ids: $ids) { memberships(only: $ids) { source } }
  users(ids: [1, $n, {a: [$ids]}]) @include(if: $yes) { id } tasks(first: $ids) @skip(if: $i) { nodes { id } }
  ... on Mutation { changeMemberships(input: $i) { added } addUsersToSegment(input: {userIds: $ids}) { added } }
  ... on Mutation { removeUsersFromSegment(input: [{userIds: [$n]}, $i]) { removed } } }"""
PRICES: list[tuple[str, dict[str, Any], int]] = [
    ('{ user(id: "1") { id } }', {}, 1),
    (READ, {}, 1),
    ("query ($ids: [ID!]!) { users(ids: $ids) { id } }", {"ids": USERS}, 1 + 100 // 50),
    ("query ($ids: [ID!]!) { users(ids: $ids) { segments { slug } } }", {"ids": USERS}, 1 + (100 + 1000) // 50),
    (
        "query ($ids: [ID!]!) { users(ids: $ids) { history(first: 100) { nodes { at } } } }",
        {"ids": USERS},
        1 + 100 + (100 + 100 * 100) // 50,
    ),
    ("query ($n: Int! = 100) { segments(first: $n) { nodes { slug } } }", {}, 2 + 100 // 50),
    ("query ($n: Int! = 100) { segments(first: $n) { nodes { slug } } }", {"n": 50}, 2 + 50 // 50),
    ("{ segments { nodes { slug } } }", {}, 2 + 50 // 50),
    ('{ a: user(id: "1") { segments { id } } b: user(id: "1") { segments { id } } }', {}, 1 + 20 // 50),
    ("{ a: segments { nodes { id } } b: segments { nodes { id } } }", {}, 3 + 100 // 50),
    (
        "query ($no: Boolean!) { segments @include(if: $no) { nodes { id } } tasks @skip(if: true) { nodes { id } } }",
        {"no": False},
        1,
    ),
    (
        (
            "{ ...A ...A } fragment A on Query { segments(first: 100) { ...B } } "
            "fragment B on SegmentConnection { nodes { id } }"
        ),
        {},
        3 + 200 // 50,
    ),
    (
        '{ user(id: "1") { memberships(only: ["A", "B"]) { source } history(first: 98) { nodes { at } } } }',
        {},
        2 + 100 // 50,
    ),
    (
        "{ segments(first: 10) { nodes { memberCount(limit: 100000) { value } } } }",
        {},
        2 + 10 + (2_000 + 10 * 100_000) // 10_000,
    ),
    # What takes a statement each.
    ('{ segment(slug: "A") { slug } task(id: "1") { id } }', {}, 3),
    ("query ($ids: [ID!]!) { users(ids: $ids) { history(first: 1) { nodes { at } } } }", {"ids": USERS}, 1 + 100 + 4),
    ('{ user(id: "1") { segments { memberCount(limit: 999) { value } } } }', {}, 2 + 10),
    ("query ($at: DateTime) { user(id: 1) { memberships(at: $at) { addedAt } } }", {"at": "2026-01-01T00:00:00Z"}, 2),
    ("query ($at: DateTime) { user(id: 1) { memberships(at: $at) { addedAt } } }", {}, 1),
    ('query ($ids: [ID!]!) { users(ids: $ids) { isIn(slug: "A") } }', {"ids": USERS}, 1 + 200 // 50),
    (" ".join(["mutation {", *(f"m{n}: {CREATE}" for n in range(20)), "}"]), {}, 1 + 20),
    # A whole number may be written in many ways.
    ('{ segment(slug: "A") { memberCount(limit: 1e6) { value } } }', {}, 3 + 100),
    ('{ segment(slug: "A") { memberCount(limit: 1000000.0) { value } } }', {}, 3 + 100),
    (f'{{ segment(slug: "A") {{ memberCount(limit: 1{"0" * 6}.{"0" * 200}) {{ value }} }} }}', {}, 3 + 100),
    ('query ($n: BigInt! = 1e6) { segment(slug: "A") { memberCount(limit: $n) { value } } }', {}, 3 + 100),
    ('query ($n: BigInt!) { segment(slug: "A") { memberCount(limit: $n) { value } } }', {"n": 1e6}, 3 + 100),
    ("{ __schema { queryType { name } } }", {}, 1 + 50),
    (
        'mutation ($i: GenerateReportInput!) { generateReport(input: $i, idempotencyKey: "x") { task { id } } }',
        {"i": {"from": "2020-01-01T00:00:00Z"}},
        51,
    ),
    (BULK, {"input": {"slug": "A", "userIds": USERS * 25}}, 2 + 2_500 // 1_000),
    (
        REMOVE,
        {"u": USERS * 10},
        3,
    ),
    (
        (
            "mutation ($c: [ChangeUserSegmentsInput!]!) "
            '{ changeMemberships(input: {changes: $c}, idempotencyKey: "x") { added } }'
        ),
        {"c": [{"userId": f"u{n}", "add": ["A", "B"], "remove": ["C"]} for n in range(1_000)]},
        2 + 3,
    ),
    # What is odd is refused by others, and costs no more than it takes.
    ("query ($n: Int!) { segments(first: $n) { nodes { id } } }", {"n": 1_000_000}, 2),
    ("query ($n: Int!) { segments(first: $n) { nodes { id } } }", {"n": "fifty"}, 2),
    ("query ($ids: [ID!]!) { users(ids: $ids) { id } }", {"ids": "1000"}, 1),
    (BULK, {"input": [[["userIds"]]]}, 2),
    ("{ segments(first: -1) { nodes { id } } }", {}, 2),
]


async def test_what_each_operation_costs(client: Client) -> None:
    known: set[str] = set()
    for query, variables, points in PRICES:
        response = await asked(client, query, variables)
        reading = 0 if query in known else max(len(query) // 500, parse(query).token_count // 25)
        assert cost(response)["requested"] == points + reading, query
        known.add(query)


def test_each_fragment_is_looked_at_once() -> None:
    deep = 60
    chain = [f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(deep)]
    last = f"fragment F{deep} on Query {{ segments(first: $n) {{ nodes {{ id }} }} }}"
    document = parse(" ".join(["query ($n: Int!) { ...F0 }", *chain, last]), no_location=True)
    (operation, *_) = document.definitions
    assert isinstance(operation, OperationDefinitionNode)
    assert Price(SCHEMA, document, operation).points({"n": 50}) == 1 + 2 * 2**deep


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("9" * 5_000),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["userIds", "changes", "add", "remove", "slug"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(ODD, ODD, ODD)
@hypothesis_settings(max_examples=60, deadline=None)
def test_whatever_is_sent_has_a_price(first: object, ids: object, input: object) -> None:
    document = parse(ALL_KINDS)
    (operation,) = document.definitions
    assert isinstance(operation, OperationDefinitionNode)
    assert Price(SCHEMA, document, operation).points({"n": first, "ids": ids, "i": input}) >= 1


# Long enough that no key expires while its time is made up.
POLICIES = st.builds(Policy, st.integers(1, 7), st.integers(1, 20), st.just(600))
STEPS = st.lists(st.tuples(st.integers(0, 400_000_000), st.integers(0, 22), st.integers(0, 3)), max_size=15)


def expected(policy: Policy, steps: list[tuple[int, int, int]]) -> Iterator[tuple[bool, int]]:
    """A bucket as one imagines it, into which each microsecond puts one: what is taken, and what it lacks then."""
    most = left = policy.microseconds(policy.burst)
    for microseconds, points, fee in steps:
        left = min(most, left + microseconds)
        cost = policy.microseconds(points)
        allowed = cost <= left
        left -= cost if allowed else min(left, policy.microseconds(fee))
        yield allowed, most - left


class Away:
    """As when there is no Redis."""

    def soon(self, join: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(join)

    def run(self, _script: object, _keys: object, _args: object, take: Callable[[None], None]) -> None:
        take(None)


@given(POLICIES, STEPS)
@hypothesis_settings(max_examples=40, deadline=None)
def test_both_limiters_do_what_a_bucket_does(
    servers: Servers, policy: Policy, steps: list[tuple[int, int, int]]
) -> None:
    now = 1_800_000_000_000_000
    own = Limiter(Away(), lambda: now * 1_000)  # type: ignore[arg-type]  # all that a limiter needs of a cache
    bucket = uuid4().hex
    # The script itself, with a clock that we set.
    script = SPEND.replace("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}")

    async def spend(points: int, fee: int) -> Verdict:
        return await own.spend(bucket, points, policy, fee)

    lacked = 0
    with SyncRedis.from_url(servers.redis_url) as redis:
        for (microseconds, points, fee), (allowed, lacking) in zip(steps, expected(policy, steps), strict=True):
            now += microseconds
            cost, most = policy.microseconds(points), policy.microseconds(policy.burst)
            numbers = most, 1, cost, policy.microseconds(fee), 1, *divmod(now, 1_000_000)
            assert redis.eval(script, 1, LIMIT + bucket, *numbers) == [max(0, lacked - microseconds)]
            assert asyncio.run(spend(points, fee)) == Verdict(allowed, lacking, cost, policy)
            lacked = lacking


@given(POLICIES, STEPS, st.lists(st.integers(1, 4), min_size=1))
@hypothesis_settings(max_examples=40, deadline=None)
def test_what_is_spent_together_is_what_would_have_been_spent_one_after_the_other(
    servers: Servers, policy: Policy, steps: list[tuple[int, int, int]], times: list[int]
) -> None:
    # All of them at one instant, and some several times over.
    wishes = [
        (0, points, fee) for (_, points, fee), n in zip(steps, itertools.cycle(times), strict=False) for _ in range(n)
    ]

    async def spend(buckets: list[str]) -> list[list[Verdict]]:
        cache = Cache(servers.redis_url, 5_000)
        async with cache.running():
            limiter = Limiter(cache)
            asked = [[limiter.spend(bucket, points, policy, fee) for bucket in buckets] for _, points, fee in wishes]
            found = [await asyncio.gather(*each) for each in asked]
            # And Redis has kept what they were told.
            for n, bucket in enumerate(buckets if found else []):
                now = await limiter.spend(bucket, 0, policy)
                assert 0 <= found[-1][n].ahead - now.ahead < 5_000_000
            return found

    for (_, points, _), told, (allowed, lacking) in zip(
        wishes, asyncio.run(spend([uuid4().hex, uuid4().hex])), expected(policy, wishes), strict=True
    ):
        assert told == [Verdict(allowed, lacking, policy.microseconds(points), policy)] * 2


def test_what_is_told_of_a_bucket_fits() -> None:
    policy = Policy(1_000, 10_000)

    def told(*, allowed: bool, ahead: int, cost: int) -> tuple[int, int, int, int, int]:
        verdict = Verdict(allowed, ahead, cost, policy)
        return verdict.remaining, verdict.retry_ms, verdict.reset_ms, verdict.empty_us, verdict.again_us

    assert told(allowed=True, ahead=1_000, cost=1_000) == (9_999, 0, 1, 0, 0)
    assert told(allowed=True, ahead=10_000_000, cost=1_000) == (0, 0, 10_000, 1_000, 1_000)
    assert told(allowed=False, ahead=9_999_500, cost=1_000) == (0, 1, 10_000, 500, 500)
    assert told(allowed=False, ahead=9_000_000, cost=3_000_000) == (1_000, 2_000, 9_000, 0, 2_000_000)
    assert (policy.window, Policy(3, 10).window, Policy(20, 20, 60).window) == (10, 4, 60)
