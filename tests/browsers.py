"""A browser for the tests of pages: Chromium, one for a whole module, and everything it complains about."""

import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import BrowserContext, ConsoleMessage, Page, Request, Response, async_playwright, expect

from server import graphiql

CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--remote-debugging-port=0",
]

expect.set_options(timeout=20_000)  # a browser among many busy test processes


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where it can be told what to do. Its contexts know nothing of each other."""
    if not CHROMIUM.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{CHROMIUM} is not installed: apt-get install chromium")
    folder = tmp_path_factory.mktemp("chromium")
    with (folder / "log").open("wb") as log:
        command = [str(CHROMIUM), *QUIET, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        port = folder / "DevToolsActivePort"
        for _ in range(600):
            if port.exists() and "\n" in port.read_text():
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
    finally:
        process.terminate()
        process.wait(20)


@asynccontextmanager
async def visitor(chromium: str, **options: object) -> AsyncIterator[BrowserContext]:
    """A browser without a past."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(chromium)
        context = await browser.new_context(viewport={"width": 1440, "height": 1000}, **options)  # type: ignore[arg-type]  # handed on
        try:
            yield context
        finally:
            await context.close()


def complaints_about(page: Page, *origins: str) -> list[str]:
    """What the browser will complain about, and whatever is asked of other hosts than these."""
    complaints: list[str] = []

    def requested(request: Request) -> None:
        if not request.url.startswith((*(f"{origin}/" for origin in origins), "data:", "blob:")):
            complaints.append(f"asked for {request.url}")

    def answered(response: Response) -> None:
        if response.status >= 400:
            complaints.append(f"{response.status} for {response.url}")

    page.on("request", requested)
    page.on("response", answered)

    def said(message: ConsoleMessage) -> None:
        # What is verbose is advice, shown to those who ask for it; there is no type for it.
        if str(message.type) != "verbose":
            complaints.append(f"{message.type}: {message.text}")

    page.on("requestfailed", lambda request: complaints.append(f"{request.failure} for {request.url}"))
    page.on("console", said)
    page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
    return complaints


# GraphiQL, from here on: its tabs, as a newcomer finds them.
TABS = [
    "CreateSegment",
    "AddUser",
    "ReadItBack",
    "SeeTheHistory",
    "AddAList",
    "ChangeMany",
    "ListMembers",
    "RollOut",
    "ListSegments",
    "StartAReport",
    "PollTheReport",
    "WatchTheUser",
    "DeleteSegment",
]


@asynccontextmanager
async def first_visit(
    chromium: str, server_url: str, fragment: str = "", allowed: tuple[str, ...] = ()
) -> AsyncIterator[Page]:
    """A browser without a past; whatever it complains about, but for what is allowed, fails the test at the end."""
    async with visitor(chromium) as context:
        await context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server_url)
        page = await context.new_page()
        complaints = complaints_about(page, server_url)
        async with page.expect_response(is_answer):  # the introspection, and idle: no request is cut short later on
            document = await page.goto(f"{server_url}/graphql{fragment}", wait_until="networkidle")
        assert document is not None
        assert document.headers["content-security-policy"] == graphiql.POLICY
        yield page
    unexpected = [complaint for complaint in complaints if not any(each in complaint for each in allowed)]
    assert not unexpected, unexpected


def is_answer(response: Response) -> bool:
    return response.request.method == "POST"


async def run(page: Page, tab: str) -> Any:
    """Press the button in this tab, and read the data off the result pane."""
    await page.get_by_role("tablist").get_by_text(tab, exact=True).click()
    await expect(page.get_by_label("Query Editor")).to_contain_text(tab)
    # GraphiQL looks at the text in a moment: whoever is faster finds the former operation's name in the history.
    await page.wait_for_function("tab => localStorage.getItem('segmentql:graphiql:operationName') === tab", arg=tab)
    async with page.expect_response(is_answer):
        await page.get_by_label("Execute query").click()
    pane = page.get_by_label("Result Window")
    await expect(pane).to_contain_text('"data"')
    shown = (await pane.inner_text()).replace("\N{NO-BREAK SPACE}", " ")  # indentation, as the editor draws it
    return json.loads(shown)["data"]
