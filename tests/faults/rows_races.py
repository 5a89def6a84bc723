"""Races that are forced: fills that come too late, one key a thousand times, everybody's locks in every order."""

import asyncio
import copy
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from faults import asking, crowd
from faults.history import Outcome, Write
from faults.load import SLUGS, USERS, Load
from faults.processes import PATIENCE_SECONDS, Process
from faults.row import row
from faults.slowness import adding_slowly
from faults.stack import Stack

FILLS = 10
COPIES = 1_000
# How long others' mutations may take while a thousand copies of one are answered.
OTHERS_SECONDS = 5
# What a copy may be told that was not first.
BUSY = {"IDEMPOTENCY_IN_PROGRESS", "OVERLOADED", "TIMEOUT"}
BURST = 12


@row(
    "stale-fill",
    "what one server stores in Valkey is kept back until another one has changed the user, and acknowledged it",
    # Else it would long have given up what is kept back.
    settings={"SEGMENTQL_REDIS_BUDGET_MS": "2000"},
)
async def keep_fills_back(stack: Stack, load: Load) -> None:
    kept = 0
    for number in range(FILLS):
        reader, writer, third = stack.random.sample(stack.servers, 3)
        kept += await _one_too_late(stack, load, f"late-{stack.faults}-{number}", (reader, writer, third))
    if not kept:
        stack.broken.append("no fill was kept back")
    stack.faults += kept - 1


async def _one_too_late(stack: Stack, load: Load, user: str, servers: tuple[Process, Process, Process]) -> bool:
    reader, writer, third = servers
    slug = stack.random.choice(SLUGS)
    await load.change(user, [slug], [], load.value(), writer)
    relay = stack.places[reader.number].valkey
    relay.keep(_fill_of(user))
    reading = asyncio.create_task(load.read(reader, user))
    try:
        for _ in range(100):
            if relay.kept:
                break
            await asyncio.sleep(0.01)
        add, remove = ([slug], []) if stack.random.random() < 0.5 else ([], [slug])
        await load.change(user, add, remove, load.value(), writer)
        if stack.random.random() < 0.5:
            # Somebody has read what is now, and stored it.
            await load.read(third, user)
    finally:
        relay.let_go()
    await reading
    for server in servers:
        await load.read(server, user)
    return relay.kept > 0


def _fill_of(user: str) -> re.Pattern[bytes]:
    """A list after users' keys and an entry of the journal: with the script that looks at it, or with any other."""
    key, word = rb"segmentql:user:%b\r\n" % re.escape(user.encode()), rb"\$\d+\r\n"
    others = rb"(%bsegmentql:user:[^\r]*\r\n)*" % word
    return re.compile(key + others + rb"%b\d+\r\n%b\d+-\d+\r\n%bV" % (word, word, word))


@row("storm-of-one-key", f"{COPIES} copies of one mutation at once, over all servers", before=adding_slowly(0.7))
async def storm(stack: Stack, load: Load) -> None:
    user = f"{stack.random.choice(['slow', 'fast'])}-{stack.faults}"
    slugs, value = stack.random.sample(SLUGS, 2), load.value()
    write = load.begin(
        "changeUserSegments",
        {"userId": user, "add": slugs, "expiresAt": asking.instant(value)},
        {(user, slug): value for slug in slugs},
    )
    async with crowd.connected(stack, COPIES) as connected, _others(stack, load):
        await asyncio.gather(*(load.attempt(each, write) for each in connected))
    if write.outcome is not Outcome.OK:
        stack.broken.append(f"{write.key}: not one of {COPIES} copies was answered")
    told = {each.error for each in write.attempts if each.outcome is not Outcome.OK}
    if told - BUSY:
        stack.broken.append(f"{write.key}: {told}")
    stack.faults += COPIES - 1


@asynccontextmanager
async def _others(stack: Stack, load: Load) -> AsyncIterator[None]:
    """Mutations of somebody else's, from another address, which have to be answered meanwhile as always."""
    transports = [httpx.AsyncHTTPTransport(local_address="127.0.0.2") for _ in stack.servers]
    servers = [copy.copy(server) for server in stack.servers]
    for server, transport in zip(servers, transports, strict=True):
        server.http = httpx.AsyncClient(
            base_url=server.http.base_url, transport=transport, timeout=PATIENCE_SECONDS, trust_env=False
        )
    over = asyncio.Event()
    working = [asyncio.create_task(_until(over, server, load)) for server in servers]
    try:
        yield
    finally:
        over.set()
        written = [write for writes in await asyncio.gather(*working) for write in writes]
        for server in servers:
            await server.http.aclose()
    for write in written:
        (attempt,) = write.attempts
        if attempt.outcome is not Outcome.OK or attempt.seconds > OTHERS_SECONDS:
            stack.broken.append(f"somebody else was told {attempt.error!r} after {attempt.seconds:.1f} s")


async def _until(over: asyncio.Event, server: Process, load: Load) -> list[Write]:
    written = []
    while not over.is_set():
        user, value = f"other-{server.number}", load.value()
        input = {"userId": user, "add": SLUGS[:1], "expiresAt": asking.instant(value)}
        written.append(write := load.begin("changeUserSegments", input, {(user, SLUGS[0]): value}))
        await load.attempt(server, write)
    return written


# By the key's own count, so that none fails more often than is tried again: once at its claim, once at its commit.
FAILING = """
    CREATE FUNCTION failing() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        counter text := format('%s_%s', lower(TG_WHEN), abs(hashtext(NEW.idempotency_key)) % 256);
        number bigint;
    BEGIN
        IF NEW.idempotency_key IS NULL THEN RETURN NEW; END IF;
        number := nextval(counter);
        IF number % 8 = 1 THEN
            PERFORM nextval('failed');
            RAISE EXCEPTION 'Undone, as PostgreSQL undoes what others stand in the way of.'
                USING ERRCODE = CASE WHEN number % 16 = 1 THEN '40001' ELSE '40P01' END;
        END IF;
        RETURN NEW;
    END $$
"""
COUNTERS = """DO $$ BEGIN
    CREATE SEQUENCE failed;
    FOR n IN 0..255 LOOP
        EXECUTE format('CREATE SEQUENCE before_%s', n);
        EXECUTE format('CREATE SEQUENCE after_%s', n);
    END LOOP;
END $$"""
AT_CLAIM = "CREATE TRIGGER failing BEFORE INSERT ON operations FOR EACH ROW EXECUTE FUNCTION failing()"
AT_COMMIT = """CREATE CONSTRAINT TRIGGER failing_late AFTER INSERT ON operations DEFERRABLE INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION failing()"""
FAILED = "SELECT last_value FROM failed"


async def fail_now_and_then(stack: Stack, load: Load) -> None:
    for statement in (COUNTERS, FAILING, AT_CLAIM, AT_COMMIT):
        await stack.postgres.ask(statement)


async def look_for_visible_ones(stack: Stack, load: Load) -> None:
    for attempt in stack.history.attempts():
        if "INTERNAL_SERVER_ERROR" in attempt.error:
            stack.broken.append(f"a caller of server {attempt.server} was told {attempt.error}")


@row(
    "deadlock-bait",
    "changes of the same users in opposite orders, on all servers at once, beside their segments' own changes; "
    "and one in eight claims and one in eight commits are undone as deadlocks or serialization failures",
    before=fail_now_and_then,
    after=look_for_visible_ones,
)
async def bait(stack: Stack, load: Load) -> None:
    before = (await stack.postgres.ask(FAILED))[0][0]
    slug = f"B{stack.faults}"
    await load.write("createSegment", {"slug": slug}, {})
    for _ in range(3):
        await asyncio.gather(*(_cross(stack, load, slug, number) for number in range(BURST)))
    await load.write("deleteSegment", slug, {(user, slug): None for user in USERS})
    stack.faults += (await stack.postgres.ask(FAILED))[0][0] - before - 1


async def _cross(stack: Stack, load: Load, slug: str, number: int) -> None:
    """Forwards or backwards through everybody; or one of them, or a segment they are all put into."""
    server, value = stack.servers[number % len(stack.servers)], load.value()
    if number % 6 == 5:
        await load.write("updateSegment", stack.random.choice([slug, *SLUGS]), {}, server)
        return
    users = USERS if number % 2 else USERS[::-1]
    slugs = [slug, stack.random.choice(SLUGS)]
    if number % 6 == 4:
        await load.change(stack.random.choice(USERS), slugs[::-1], [], value, server)
        return
    ending = {"expiresAt": asking.instant(value)}
    changes = [{"userId": user, "add": slugs if number % 2 else slugs[::-1]} | ending for user in users]
    sets = {(user, each): value for user in users for each in slugs}
    await load.write("changeMemberships", {"changes": changes}, sets, server)
