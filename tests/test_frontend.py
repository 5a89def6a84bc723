"""The front end among the examples, in a browser and from another origin: what it shows is so, and happens once."""

import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from browsers import chromium, complaints_about, visitor
from callers import a_token, bearing
from conftest import ROOT, Client, Serve
from operations import change, create, history, memberships
from playwright.async_api import Page, Response, Route, expect
from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["chromium"]

EXAMPLE = ROOT / "docs" / "examples" / "frontend"
# Set, it makes the picture in the example's README anew.
SCREENSHOT = os.environ.get("SEGMENTQL_TEST_SCREENSHOT")
# What a download, a reload or another look-up cuts short.
QUIETLY = ("ERR_ABORTED",)

# By how many milliseconds a message comes after an instant.
LATE = """([instant, message]) => new Promise((done) => {
  const log = document.querySelector("#messages");
  const look = () => log.textContent.includes(message) && done(Date.now() - Date.parse(instant));
  new MutationObserver(look).observe(log, { childList: true });
  look();
})"""


class Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """Where the page is served, which is not where the service is."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(EXAMPLE))) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@asynccontextmanager
async def opened(
    chromium: str, origin: str, client: Client, token: str = "", allowed: tuple[str, ...] = ()
) -> AsyncIterator[Page]:
    """The page, connected to the service; what the browser complains about, but for what is allowed, fails the test."""
    url = str(client.http.base_url)
    async with visitor(chromium, accept_downloads=True, timezone_id="UTC", locale="en-GB") as context:
        page = await context.new_page()
        complaints = complaints_about(page, origin, url)
        await page.goto(origin)
        await page.get_by_label("Endpoint").fill(f"{url}/graphql")
        await page.get_by_label("Token").fill(token)
        await page.get_by_role("button", name="Use", exact=True).click()
        yield page
    assert [complaint for complaint in complaints if not any(each in complaint for each in (*QUIETLY, *allowed))] == []


async def look_up(page: Page, user: str) -> None:
    await page.get_by_label("User id").fill(user)
    await page.get_by_role("button", name="Look up").click()
    await expect(page.locator("caption")).to_have_text(f"User {user} now")


async def press(page: Page, button: str, slug: str, days: str = "") -> None:
    await page.get_by_label("Segment", exact=True).fill(slug)
    await page.get_by_label("Days").fill(days)
    await page.locator("#change").get_by_role("button", name=button).click()


def messages(page: Page) -> Any:
    return page.get_by_role("log")


async def no_stream(route: Route) -> None:
    if route.request.headers["accept"] == "text/event-stream":
        await route.fulfill(status=406, headers={"Access-Control-Allow-Origin": "*"})
    else:
        await route.continue_()


async def test_a_user_is_looked_up_changed_and_reported(
    serve: Serve, chromium: str, origin: str, tmp_path: Path
) -> None:
    async with (
        serve(cors_origins=(origin,), serve_tasks=1) as client,
        opened(chromium, origin, client, allowed=("406",)) as page,
    ):
        # Without streams all else is as with them.
        await page.route("**/graphql", no_stream)
        await create(client, "AVITO_DISCOUNT_50", "AVITO_VOICE_MESSAGES")
        await change(client, "1000", add=["AVITO_VOICE_MESSAGES"])
        await look_up(page, "1000")
        rows = page.locator("tbody tr")
        await expect(rows).to_have_count(1)
        await expect(rows.nth(0)).to_contain_text("AVITO_VOICE_MESSAGES")
        await expect(rows.nth(0)).to_contain_text("for good")

        await press(page, "Add", "AVITO_DISCOUNT_50", "5")
        await expect(messages(page)).to_contain_text("Add AVITO_DISCOUNT_50 to user 1000: done.")
        await expect(rows).to_have_count(2)
        left = rows.filter(has_text="AVITO_DISCOUNT_50").locator("td").nth(1)
        await expect(left).to_have_text(re.compile(r"^4 d 23:59:[345]\d$"))
        before = await left.inner_text()
        await expect(left).not_to_have_text(before)
        assert before > await left.inner_text() > "4 d 23:59:00"

        await press(page, "Add", "NO_SUCH_SEGMENT")
        refused = "Add NO_SUCH_SEGMENT to user 1000: There is no segment named NO_SUCH_SEGMENT. (SEGMENT_NOT_FOUND)"
        await expect(messages(page)).to_contain_text(refused)
        assert await page.evaluate("Object.keys(localStorage).filter(name => name.includes('pending'))") == []

        await page.get_by_role("button", name="Make a report of this user").click()
        async with page.expect_download() as waiting:
            await page.get_by_role("link", name="Download it (CSV, 2 rows").click()
        await (await waiting.value).save_as(tmp_path / "report.csv")
        events = [f"1000,{event['slug']},ADDED,{event['at']}" for event in reversed(await history(client, "1000"))]
        lines = ["user_id,segment,operation,at", *events, ""]
        assert (tmp_path / "report.csv").read_bytes().decode() == "\r\n".join(lines)
        await expect(page.get_by_role("status")).to_have_text("The report is SUCCEEDED. 2 rows.")
        if SCREENSHOT:
            await page.get_by_label("Endpoint").fill("http://127.0.0.1:8080/graphql")
            await page.locator("h1").click()
            await page.set_viewport_size({"width": 1000, "height": 600})
            await page.screenshot(path=EXAMPLE / "screenshot.png", full_page=True)

        # The button has the keyboard's focus, and its name says what it takes away.
        await page.get_by_role("button", name="Remove AVITO_VOICE_MESSAGES").press("Enter")
        await expect(messages(page)).to_contain_text("Remove AVITO_VOICE_MESSAGES from user 1000: done.")
        await expect(rows).to_have_count(1)
        await change(client, "1000", add=["AVITO_VOICE_MESSAGES"])
        await expect(rows).to_have_count(2)
        await page.reload()
        await expect(page.get_by_role("link", name="Download it (CSV, 2 rows")).to_be_visible()


async def test_a_change_whose_answers_are_lost_happens_once(serve: Serve, chromium: str, origin: str) -> None:
    keys: list[str] = []

    async def lose(route: Route) -> None:
        sent: Any = route.request.post_data_json
        if "mutation" not in sent["query"]:
            await route.continue_()
            return
        keys.append(sent["variables"]["key"])
        answer = await (await route.fetch()).json()
        assert answer["data"]["changeUserSegments"]["userErrors"] == []
        await route.abort("connectionreset")

    async with (
        serve(cors_origins=(origin,)) as client,
        opened(chromium, origin, client, allowed=("ERR_CONNECTION_RESET",)) as page,
    ):
        await create(client, "A")
        await look_up(page, "7")
        await page.route("**/graphql", lose)
        await press(page, "Add", "A", "5")
        await expect(page.locator("#pending")).to_contain_text(
            "Add A to user 7: not known yet. There was no answer. (NO_ANSWER) Trying again in"
        )
        # In this visit it was tried; in the next one it is tried again, with the key that was kept.
        await page.reload()
        await expect(page.locator("#pending")).to_contain_text("not known yet")
        # The key may not be good with another token: it is not sent with one before somebody says so.
        await page.get_by_label("Token").fill("of somebody else")
        await page.get_by_role("button", name="Use", exact=True).click()
        await expect(page.locator("#pending")).to_contain_text("it was sent with another token, and may have happened")
        before = len(keys)
        await page.evaluate("dispatchEvent(new Event('online'))")
        await page.get_by_role("button", name="Use", exact=True).click()
        await expect(page.locator("#pending")).to_contain_text("it was sent with another token, and may have happened")
        assert len(keys) == before
        await page.get_by_role("button", name="Try now").click()
        await expect(page.locator("#pending")).to_contain_text("not known yet")
        assert len(keys) == before + 1
        await page.unroute("**/graphql")
        await expect(messages(page)).to_contain_text("Add A to user 7: done (an earlier attempt had done it).")
        await expect(page.locator("#pending li")).to_have_count(0)
        assert len(keys) >= 2
        assert len(set(keys)) == 1
        assert [(event["slug"], event["action"]) for event in await history(client, "7")] == [("A", "ADDED")]
        assert await page.evaluate("Object.keys(localStorage).filter(name => name.includes('pending'))") == []


async def test_an_end_is_shown_when_it_comes_and_what_others_change(
    serve: Serve, chromium: str, origin: str, engine: AsyncEngine
) -> None:
    async with serve(cors_origins=(origin,)) as client, opened(chromium, origin, client) as page:
        await create(client, "A", "B")
        await change(client, "7", add=["A"])
        await change(client, "7", add=["B"], expiresAt=await seconds_from_now(page, 15))
        async with page.expect_response(is_stream):
            await look_up(page, "7")
        row = page.locator("tbody tr").filter(has_text="B")
        await expect(row.locator("td").nth(1)).to_have_text(re.compile(r"^00:00:(0[1-9]|1[0-5])$"))
        [until] = [each["expiresAt"] for each in await memberships(client, "7") if each["segment"]["slug"] == "B"]
        assert await page.evaluate(LATE, [until, "B of user 7 has ended."]) >= 0
        await expect(row).to_have_count(0)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await change(client, "7", remove=["A"])
        await expect(page.get_by_text("In no segment now.")).to_be_visible()
        # It was told, not found.
        assert asked == []


async def test_a_token_that_is_not_good_any_more_leaves_the_key_where_it_is(
    serve: Serve, chromium: str, origin: str, engine: AsyncEngine
) -> None:
    token, other = await a_token(engine, "write"), await a_token(engine, "read", "reader")
    async with serve(cors_origins=(origin,), authentication="required") as client:
        client.http.headers.update(bearing(await a_token(engine, "admin", "admin")))
        await create(client, "A")
        async with opened(chromium, origin, client, other.text, allowed=("40",)) as page:
            await look_up(page, "7")
            await press(page, "Add", "A")
            await expect(page.locator("#pending")).to_contain_text("(FORBIDDEN) It waits for you.")
            await page.get_by_label("Token").fill(token.text)
            await page.get_by_role("button", name="Use", exact=True).click()
            await expect(messages(page)).to_contain_text("Add A to user 7: done.")
            kept = await page.evaluate("JSON.stringify(localStorage)")
            assert token.text not in kept
            assert other.text not in kept
            # What nothing can mend was refused, and waits for nobody.
            await press(page, "Add", "B", "99999999999")
            await expect(messages(page)).to_contain_text("(BAD_USER_INPUT)")
            await expect(page.locator("#pending li")).to_have_count(0)
            await page.get_by_label("Token").fill("жетон")
            await page.get_by_role("button", name="Use", exact=True).click()
            await expect(messages(page)).to_contain_text("That is no token")
            await page.get_by_label("Endpoint").fill("http://127.0.0.1:9/graphql")
            await expect(page.get_by_label("Token")).to_have_value("")


async def test_a_link_that_would_run_something_is_not_offered(serve: Serve, chromium: str, origin: str) -> None:
    file = {"url": "javascript:alert(1)", "urlExpiresAt": "2099-01-01T00:00:00Z", "rows": 1, "bytes": 1}
    task = {"status": "SUCCEEDED", "rowsDone": 1, "pollAfterMs": None, "error": None, "file": file}

    async def forged(route: Route) -> None:
        await route.fulfill(json={"data": {"task": task}}, headers={"Access-Control-Allow-Origin": "*"})

    async with serve(cors_origins=(origin,)) as client, opened(chromium, origin, client) as page:
        await page.route("**/graphql", forged)
        report = f"""{{ id: "1", endpoint: "{client.http.base_url}/graphql" }}"""
        await page.evaluate(f"localStorage.setItem('segmentql-example:report', JSON.stringify({report}))")
        await page.reload()
        await expect(page.get_by_role("status")).to_have_text("The report has no usable link.")
        await expect(page.locator("#download a")).to_have_count(0)


async def test_what_the_browser_cannot_remember_is_not_sent(serve: Serve, chromium: str, origin: str) -> None:
    async with serve(cors_origins=(origin,)) as client, opened(chromium, origin, client) as page:
        await create(client, "A")
        await look_up(page, "7")
        await page.evaluate(
            "() => { Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }; }"
        )
        await press(page, "Add", "A")
        await expect(messages(page)).to_contain_text("Add A to user 7: This browser cannot remember it now")
        await expect(page.locator("#pending li")).to_have_count(0)
        assert await memberships(client, "7") == []


async def test_of_two_tabs_one_sends_what_was_left(serve: Serve, chromium: str, origin: str) -> None:
    async with (
        serve(cors_origins=(origin,)) as client,
        opened(chromium, origin, client, allowed=("ERR_CONNECTION_RESET",)) as page,
    ):
        await create(client, "A")
        await look_up(page, "7")
        await page.route("**/graphql", lambda route: route.abort("connectionreset"))
        await press(page, "Add", "A")
        await expect(page.locator("#pending")).to_contain_text("not known yet")
        other = await page.context.new_page()
        await other.goto(origin)
        assert await other.evaluate(
            "navigator.locks.query().then(({ held, pending }) => [held.length, pending.length])"
        ) == [1, 1]
        await expect(other.locator("#pending li")).to_have_count(0)
        # What a page sends while it closes may pass: then the other is told that it was done before.
        await page.close()
        await expect(messages(other)).to_contain_text("Add A to user 7: done")
        await expect(other.locator("#pending li")).to_have_count(0)
        assert [(event["slug"], event["action"]) for event in await history(client, "7")] == [("A", "ADDED")]


def is_stream(response: Response) -> bool:
    return (response.status, response.headers.get("content-type")) == (200, "text/event-stream; charset=utf-8")


async def seconds_from_now(page: Page, seconds: int) -> str:
    instant: str = await page.evaluate(f"new Date(Date.now() + {seconds * 1000}).toISOString()")
    return instant


def test_the_example_is_what_its_readme_says() -> None:
    readme = (EXAMPLE / "README.md").read_text()
    for name in ("SEGMENTQL_CORS_ORIGINS=", "python3 -m http.server", "(screenshot.png)"):
        assert name in readme
    linked = set(re.findall(r"\]\(([a-z.]+)\)", readme))
    assert {path.name for path in EXAMPLE.iterdir()} == linked | {"README.md", "index.html", "segments.css"}
    for path in EXAMPLE.glob("*.[hcj]*"):
        assert set(re.findall(r"https?://[^/\"]+", path.read_text())) <= {"http://127.0.0.1:8080"}, path.name
