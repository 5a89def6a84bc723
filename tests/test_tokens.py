"""Tokens: what they look like, who makes and ends them, and how soon everybody knows."""

import asyncio
import itertools
import logging
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import forking
import httpx
import pytest
from background import ask_for_report, execute, finished, task
from callers import a_token, bearing, caller, last_use, revoke
from conftest import Client, Serve
from importing import ask_to_import
from operations import MEMBERSHIPS, change, create, database_clock, history, new_key, slugs
from prometheus_client import REGISTRY
from relays import relay_before
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from db import tokens as db_tokens
from server import database, known_tokens
from server.embedded import Servers
from server.serve import _greet, _listener
from server.serve import serve as serve_for_ever
from server.settings import Settings, StartError
from server.tokens import DIGITS, Token, make, parse

ASKED = {"query": "{ __typename }"}
Run = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[Client]:
    async with serve(authentication="required") as client:
        yield client


@pytest.fixture
def run(servers: Servers, engine: AsyncEngine, tmp_path: Path) -> Run:
    """Run `segmentql` with these arguments, and more settings."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SEGMENTQL_")}
    environ = ours | {"SEGMENTQL_DATABASE_URL": servers.database_url, "SEGMENTQL_REDIS_URL": servers.redis_url}

    async def running(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(forking.run, command, cwd=tmp_path, env=environ | more)

    return running


async def status(client: Client, token: Token | str | None, address: str = "") -> int:
    headers = bearing(token) | ({"X-Forwarded-For": address} if address else {})
    return (await client.http.post("/graphql", json=ASKED, headers=headers)).status_code


def test_what_a_token_looks_like() -> None:
    drawn = [make() for _ in range(100)]
    assert len({token.id for token in drawn} | {token.secret for token in drawn}) == 200
    for token in drawn:
        assert re.fullmatch(r"segmentql_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}", token.text)
        assert parse(token.text) == token
        assert token.secret not in repr(token)
        assert token.secret not in str([token])
    # 256 bits.
    assert len(DIGITS) ** 43 > 2**256


def test_what_was_mistyped_is_known_without_looking_it_up() -> None:
    good = make().text
    for place in range(len(good)):
        for digit in "aZ0_-":
            mistyped = good[:place] + digit + good[place + 1 :]
            assert (parse(mistyped) is None) == (mistyped != good), mistyped
    for wrong in ("", "segmentql_", good[:-1], good + "0", f"{good}\n", f" {good}", good.swapcase(), good * 2):
        assert parse(wrong) is None


async def test_made_shown_used_and_revoked(run: Run, client: Client) -> None:
    made = await run("token", "create", "--name", "nightly job", "--scope", "write", "--expires", "90d")
    assert made.returncode == 0, made.stderr
    # Alone, so that a shell can put it into a variable.
    token = parse(made.stdout.removesuffix("\n"))
    assert token is not None
    assert re.fullmatch(
        rf"Token {token.id} of nightly job, scope write, is good until \S+Z. It will not be shown again:\n", made.stderr
    )
    assert token.secret not in made.stderr
    assert await status(client, token) == 200
    forever = await run("token", "create", "--name", "a/b@c.d_e-f", "--scope", "admin")
    listed = (await run("token", "list")).stdout
    other, ours = [re.split(r"\s{2,}", line.strip()) for line in listed.splitlines()[3:] if line.strip()]
    until = f"{datetime.now(UTC) + timedelta(days=90):%Y-%m-%dT}"
    assert (ours[0], ours[1], ours[2], ours[4][:11], ours[6]) == (token.id, "nightly job", "write", until, "good")
    assert (other[1], other[2], other[4], other[5], other[6]) == ("a/b@c.d_e-f", "admin", "-", "-", "good")
    assert forever.stdout.split("_")[1] == other[0]
    assert token.secret not in listed
    revoked = await run("token", "revoke", token.id)
    assert (revoked.returncode, revoked.stderr) == (0, f"Token {token.id} is revoked.\n")
    again = await run("token", "revoke", token.id)
    assert (again.returncode, again.stderr) == (0, f"Token {token.id} was revoked before.\n")
    assert (await run("token", "list")).stdout.count("revoked") == 1
    unknown = await run("token", "revoke", "nosuchtoken0")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == "segmentql: There is no such token: `segmentql token list` shows them by their ids.\n"


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--name", "", "--name must be 1 to 100 "),
        ("--name", " a", "--name must be 1 to 100 "),
        ("--name", "a" * 101, "--name must be 1 to 100 "),
        ("--name", "a\nb", "--name must be 1 to 100 "),
        ("--name", "jwt:a", "--name must be 1 to 100 "),
        ("--name", "ж", "--name must be 1 to 100 "),
        ("--name", "anonymous", "--name cannot be anonymous: "),
        ("--name", "purge", "--name cannot be purge: "),
        ("--name", "cleanup", "--name cannot be cleanup: "),
        ("--name", "rollout", "--name cannot be rollout: "),
        ("--expires", "90", "--expires is '90': it must be a number of days like 90d, "),
        ("--expires", "0d", "--expires is '0d': "),
        ("--expires", "99999d", "--expires is '99999d': "),
        ("--expires", "2030-01-01", "--expires is '2030-01-01': "),
        ("--expires", "9999-12-31T23:59:59.999999Z", "--expires is '9999-12-31T23:59:59.999999Z': "),
        ("--expires", "2020-01-01T00:00:00Z", "--expires is 2020-01-01T00:00:00Z, which is over."),
    ],
)
async def test_what_makes_no_token_is_refused_in_one_line(
    run: Run, engine: AsyncEngine, option: str, value: str, why: str
) -> None:
    options = {"--name": "me", "--scope": "read"} | {option: value}
    made = await run("token", "create", *itertools.chain(*options.items()))
    assert (made.returncode, made.stdout) == (1, "")
    assert made.stderr.startswith(f"segmentql: {why}")
    assert made.stderr.count("\n") == 1
    assert await execute(engine, "SELECT FROM tokens") == []


async def test_a_revoked_token_and_its_links_end_everywhere_within_ten_seconds(
    serve: Serve, engine: AsyncEngine
) -> None:
    ended, kept = await a_token(engine), await a_token(engine)
    required = {"authentication": "required", "login_failures": 10_000}
    async with (
        serve(serve_tasks=1, **required) as one,
        serve(**required) as other,
        caller(one, ended) as asking,
        caller(one, kept) as keeping,
    ):
        await create(asking, "A")
        done = await finished(asking, (await ask_for_report(asking))["task"]["id"])
        link = urlsplit(done["file"]["url"])
        links = [urlunsplit(link._replace(netloc=urlsplit(str(at.http.base_url)).netloc)) for at in (one, other)]
        put = (await ask_to_import(asking, "A"))["task"]["uploadUrl"]

        async def ways_in() -> list[int]:
            tokens = [await status(at, ended) for at in (one, other)]
            return tokens + [(await httpx_get(url)).status_code for url in links]

        async def httpx_get(url: str) -> httpx.Response:
            return await one.http.get(url)

        assert await ways_in() == [200, 200, 200, 200]
        await revoke(engine, ended)
        began = time.monotonic()
        while await ways_in() != [401, 401, 403, 403]:
            assert time.monotonic() - began < 10
            await asyncio.sleep(0.2)
        answer = await one.http.get(links[0])
        assert answer.json() == {"error": "The link has ended with the token that it was made for."}
        assert (await one.http.put(put, content=b"7\n")).status_code == 403
        # Another token of the same name goes on, and so do links made for it.
        assert [await status(at, kept) for at in (one, other)] == [200, 200]
        assert (await keeping.http.get((await task(keeping, done["id"]))["file"]["url"])).status_code == 200


async def test_a_token_is_good_until_its_instant_and_not_longer(client: Client, engine: AsyncEngine) -> None:
    token = await a_token(engine, seconds=1.2)
    ((end,),) = await execute(engine, "SELECT expires_at FROM tokens")
    while True:
        before = await database_clock(engine)
        answered = await status(client, token)
        after = await database_clock(engine)
        if answered == 401:
            break
        assert before < end
        await asyncio.sleep(0.02)
    # It may be refused early by as long as it took to look it up.
    assert after > end - timedelta(milliseconds=200)


async def test_a_name_is_one_caller_whatever_the_token(client: Client, engine: AsyncEngine) -> None:
    old, new = await a_token(engine, name="job"), await a_token(engine, "write", name="job")
    async with (
        caller(client, old) as before,
        caller(client, new) as after,
        caller(client, await a_token(engine, name="other")) as other,
    ):
        await create(before, "A")
        assert (await change(before, 7, add=["A"], key="the-very-key"))["replayed"] is False
        assert (await change(after, 7, add=["A"], key="the-very-key"))["replayed"] is True
        # The same key of another caller is another key.
        theirs = await change(other, 7, add=["A"], key="the-very-key")
        assert (theirs["replayed"], theirs["unchanged"]) == (False, ["A"])
        assert [event["actor"] for event in await history(other, 7)] == ["job"]
        ours = (await ask_for_report(before))["task"]["id"]
        assert (await task(after, ours))["id"] == ours
        assert await task(other, ours) is None
        assert (await other.ask("{ tasks { nodes { id } } }"))["tasks"]["nodes"] == []


async def test_its_last_use_is_noted_once_a_minute_by_all_together(serve: Serve, engine: AsyncEngine) -> None:
    token, unused = await a_token(engine), await a_token(engine)
    async with serve(authentication="required") as one, serve(authentication="required") as other:
        assert await status(one, token) == 200
        while (first := await last_use(engine, token)) is None:
            await asyncio.sleep(0.01)
        for at in (one, other) * 5:
            assert await status(at, token) == 200
        assert await status(other, Token(unused.id, make().secret)) == 401
    # At its end each process has noted what it had to.
    assert await last_use(engine, token) == first
    assert await last_use(engine, unused) is None
    await execute(engine, "UPDATE tokens SET last_used_at = last_used_at - interval '1 minute'")
    async with serve(authentication="required") as client:
        assert await status(client, token) == 200
    assert (await execute(engine, "SELECT count(*) FROM tokens WHERE last_used_at >= :first", first=first)) == [(1,)]


async def test_many_at_once_with_one_token_are_one_lookup(
    client: Client, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    by_ids = db_tokens.by_ids

    async def counting(conn: Any, ids: Any) -> Any:
        looked_up.extend(ids)
        return await by_ids(conn, ids)

    monkeypatch.setattr(db_tokens, "by_ids", counting)
    token, unknown = await a_token(engine), make()
    assert set(await asyncio.gather(*(status(client, token) for _ in range(50)))) == {200}
    assert looked_up == [token.id]
    assert set(await asyncio.gather(*(status(client, unknown) for _ in range(15)))) == {401}
    assert looked_up == [token.id, unknown.id]


async def test_while_postgresql_is_away_known_tokens_are_good_for_a_while(
    serve: Serve, servers: Servers, engine: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_tokens, "FRESH_SECONDS", 0.05)
    monkeypatch.setattr(known_tokens, "STALE_SECONDS", 0.1)
    monkeypatch.setattr(known_tokens, "PAUSE_SECONDS", 0.3)
    token, cold = await a_token(engine), await a_token(engine)
    async with (
        relay_before(servers.database_url, tmp_path) as relay,
        serve(database_url=relay.url, authentication="required") as client,
        caller(client, token) as known,
    ):
        await create(known, "A")
        await change(known, 7, add=["A"])
        assert await slugs(known, 7) == ["A"]
        relay.leave()
        for _ in range(20):
            assert await slugs(known, 7) == ["A"]
            await asyncio.sleep(0.02)
        answer = await client.http.post("/graphql", json=ASKED, headers=bearing(cold))
        assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (503, "OVERLOADED")
        assert answer.headers["retry-after"] == "1"
        # What never was a token is known to be none.
        assert await status(client, "garbage") == 401
        monkeypatch.setattr(known_tokens, "OUTAGE_SECONDS", 0.2)
        assert await status(client, token) == 503
        relay.heal()
        for wanted in (token, cold):
            for _ in range(200):
                if await status(client, wanted) == 200:
                    break
                await asyncio.sleep(0.02)
            assert await status(client, wanted) == 200


async def test_when_all_connections_are_taken_nobody_is_believed_for_longer(
    serve: Serve, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await a_token(engine)
    async with serve(read_pool_size=3, authentication="required") as client, caller(client, token) as asking:
        assert await status(client, token) == 200
        async with engine.begin() as tx:
            await tx.execute(text("LOCK TABLE alembic_version, memberships, segments IN ACCESS EXCLUSIVE MODE"))
            waiting = [
                asyncio.create_task(asking.post(MEMBERSHIPS, {"id": "7", "freshness": "LATEST"})),
                asyncio.create_task(asking.post("{ segments { nodes { slug } } }")),
                asyncio.create_task(client.http.get("/readyz")),
            ]
            async with asyncio.timeout(5):
                while REGISTRY.get_sample_value("segmentql_pool_in_use", {"pool": "reader"}) != 2:
                    await asyncio.sleep(0.01)
            await revoke(engine, token)
            monkeypatch.setattr(known_tokens, "FRESH_SECONDS", 0)
            monkeypatch.setattr(known_tokens, "STALE_SECONDS", 0)
            assert [await status(client, token) for _ in range(2)] == [503, 503]
        await asyncio.gather(*waiting)
        assert await status(client, token) == 401


async def test_who_has_a_token_is_not_held_to_what_a_neighbour_guesses(
    serve: Serve, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever asks seldom is never remembered well enough.
    monkeypatch.setattr(known_tokens, "FRESH_SECONDS", 0)
    monkeypatch.setattr(known_tokens, "STALE_SECONDS", 0)
    seldom, ended, stolen = await a_token(engine), await a_token(engine), await a_token(engine)
    async with serve(authentication="required", login_failures=3) as client:
        assert [await status(client, token) for token in (seldom, ended, stolen)] == [200] * 3
        await revoke(engine, ended)
        # A token that has ended is no guess.
        assert [await status(client, ended) for _ in range(5)] == [401] * 5
        assert [await status(client, make()) for _ in range(4)] == [401] * 3 + [429]
        assert [await status(client, token) for token in (seldom, ended)] == [200, 401]
        assert await status(client, Token(stolen.id, make().secret)) == 429
        assert await status(client, await a_token(engine)) == 429
        monkeypatch.setattr(known_tokens, "OUTAGE_SECONDS", 0)
        assert await status(client, seldom) == 429


async def test_an_address_that_shows_wrong_tokens_is_not_listened_to(serve: Serve, engine: AsyncEngine) -> None:
    known, cold = await a_token(engine), await a_token(engine)
    proxies = Settings.__dataclass_fields__["trusted_proxies"].metadata["kind"].parse("127.0.0.1")
    required = {"authentication": "required", "login_failures": 3, "trusted_proxies": proxies}
    here, beside, elsewhere = "2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"
    async with serve(**required) as client, serve(**required) as other:
        assert await status(client, known, here) == 200
        for wrong in (make(), "garbage", Token(known.id, make().secret)):
            assert await status(client, wrong, here) == 401
        answer = await client.http.post("/graphql", json=ASKED, headers=bearing(make()) | {"X-Forwarded-For": here})
        assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (429, "RATE_LIMITED")
        assert 15 <= int(answer.headers["retry-after"]) <= 20
        assert 15_000 <= answer.json()["errors"][0]["extensions"]["retryAfterMs"] <= 20_000
        # The network has one purse, in all processes; a token that is known is let through, and so are others.
        assert await status(client, make(), beside) == 429
        assert await status(other, make(), beside) == 429
        assert await status(client, cold, beside) == 429
        assert await status(client, known, here) == 200
        assert await status(client, cold, elsewhere) == 200
        assert await status(client, cold, here) == 200
        # Who shows none has not guessed.
        assert await status(client, None, here) == 401


def changed(url: str, **query: str | None) -> str:
    parts = urlsplit(url)
    pairs = {name: values[0] for name, values in parse_qs(parts.query).items()} | query
    return urlunsplit(parts._replace(query=urlencode({name: value for name, value in pairs.items() if value})))


async def test_a_link_is_its_tokens_and_ends_no_later(serve: Serve, engine: AsyncEngine) -> None:
    token, short = await a_token(engine), await a_token(engine, seconds=100)
    async with serve(serve_tasks=1, authentication="required") as client, caller(client, token) as asking:
        await create(asking, "A")
        found = await finished(asking, (await ask_for_report(asking))["task"]["id"])
        url = found["file"]["url"]
        assert parse_qs(urlsplit(url).query)["token"] == [token.id]
        assert (await client.http.get(url)).status_code == 200
        for wrong in (changed(url, token=None), changed(url, token=short.id), changed(url, token=f"{token.id} ")):
            answer = await client.http.get(wrong)
            assert (answer.status_code, answer.json()) == (403, {"error": "This is not a link that was given out."})
        async with caller(client, short) as briefly:
            file = (await task(briefly, found["id"]))["file"]
            ((end,),) = await execute(engine, "SELECT expires_at FROM tokens WHERE id = :id", id=short.id)
            assert datetime.fromisoformat(file["urlExpiresAt"]) == end.replace(microsecond=0)
    async with serve(serve_tasks=1) as client:
        await create(client, "B")
        url = (await finished(client, (await ask_for_report(client))["task"]["id"]))["file"]["url"]
        assert "token" not in url
        assert (await client.http.get(url)).status_code == 200
        assert (await client.http.get(changed(url, token=token.id))).status_code == 403


async def test_no_secret_is_in_any_log(
    client: Client, engine: AsyncEngine, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    good, bad = await a_token(engine), make()
    for token in (good, bad):
        await status(client, token)
        await client.http.get("/graphql", params={"query": "{ nonsense }"}, headers=bearing(token))
    await execute(engine, "ALTER TABLE tokens RENAME TO away")
    try:
        await status(client, make())
        fresh = await run("token", "create", "--name", "a", "--scope", "read")
        assert fresh.returncode == 2
        assert "hash" not in fresh.stderr
    finally:
        await execute(engine, "ALTER TABLE away RENAME TO tokens")
    assert "tokens cannot be looked up" in caplog.text
    for token in (good, bad):
        for secret in (token.secret, token.secret[:10], token.hash.hex(), repr(token.hash)):
            assert secret not in caplog.text


async def test_the_command_line_says_what_to_do_about_its_token(run: Run, client: Client, engine: AsyncEngine) -> None:
    url = f"{str(client.http.base_url).rstrip('/')}/graphql"
    reader = await a_token(engine, "read")
    asked = await run("user", "7", SEGMENTQL_URL=url, SEGMENTQL_TOKEN=reader.text)
    assert (asked.returncode, asked.stdout.splitlines()[0]) == (0, "7 is in 0 segments.")
    refused = {
        "": "(UNAUTHENTICATED) Put one into SEGMENTQL_TOKEN.",
        make().text: "(UNAUTHENTICATED) Is the token in SEGMENTQL_TOKEN still good?",
    }
    began = time.monotonic()
    for token, advice in refused.items():
        asked = await run("user", "7", SEGMENTQL_URL=url, SEGMENTQL_TOKEN=token)
        assert (asked.returncode, asked.stdout) == (2, "")
        assert asked.stderr.endswith(f"{advice}\n")
    command = ["report", "--from", "2020-01-01T00:00:00Z", "--url", url]
    forbidden = await run(*command, SEGMENTQL_TOKEN=reader.text)
    assert forbidden.returncode == 2
    assert forbidden.stderr == (
        f"segmentql: {url} says: Field generateReport needs the scope write. (FORBIDDEN) "
        "The token in SEGMENTQL_TOKEN may do less.\n"
    )
    # Trying again would not help.
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"jwt_issuer": "https://a.example", "jwt_audience": "b", "jwt_jwks_url": "https://a.example/keys"},
            "SEGMENTQL_JWT_ISSUER is set, but nobody is asked for a token: set SEGMENTQL_AUTHENTICATION=required, too.",
        ),
        (
            {"authentication": "required", "jwt_issuer": "https://a.example"},
            (
                "JWTs cannot be checked without SEGMENTQL_JWT_AUDIENCE and SEGMENTQL_JWT_JWKS_URL: set that, too, "
                "or no SEGMENTQL_JWT_… at all."
            ),
        ),
    ],
)
def test_half_of_an_authentication_is_refused_at_the_start(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(StartError) as refused:
        serve_for_ever(Settings(**changes))
    assert str(refused.value) == why


async def test_where_a_token_is_needed_the_start_says_how_to_make_one(
    settings: Settings, engine: AsyncEngine, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = "nobody has a token, so nobody is served: make one with `segmentql token create`"
    for token, said in ((None, 1), (-1.0, 2), (100.0, 2)):
        if token is not None:
            await a_token(engine, seconds=token)
        await database.warn_without_tokens(settings)
        assert [record.getMessage() for record in caplog.records].count(needed) == said
    with _listener(Settings(port=0)) as listener:
        _greet(listener, Settings(authentication="required"))
    greeting = capsys.readouterr().out
    assert "Callers must show a token: TOKEN=$(segmentql token create --name me --scope admin)\n" in greeting
    assert ' -H "Authorization: Bearer $TOKEN" ' in greeting


async def test_a_token_made_a_moment_ago_is_good_at_once(client: Client, engine: AsyncEngine) -> None:
    assert [await status(client, await a_token(engine, scope)) for scope in ("read", "write", "admin")] == [200] * 3
    async with caller(client, await a_token(engine)) as asking:
        assert (await change(asking, 7, add=["no-such"], key=new_key()))["userErrors"] != []
