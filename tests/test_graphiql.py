"""GraphiQL opens from our own files alone, ready to run, and leaves the browser nothing to complain about."""

import json
import os
import re
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from hashlib import sha384
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, Request, Response, async_playwright, expect
from starlette.applications import Starlette

from server import graphiql

CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SLUG = "AVITO_DISCOUNT_50"
TABS = ["CreateSegment", "AddUser", "ReadItBack", "SeeTheHistory"]

expect.set_options(timeout=20_000)  # a browser among many busy test processes


def test_each_vendored_file_is_the_one_that_was_published() -> None:
    vendored = [path for path in graphiql.FILES.rglob("*") if path.is_file() and "@" in str(path)]
    hashes = {
        path.relative_to(graphiql.FILES).as_posix(): f"sha384-{b64encode(sha384(path.read_bytes()).digest()).decode()}"
        for path in vendored
    }
    assert hashes == json.loads((graphiql.FILES / "integrity.json").read_text())


def test_each_vendored_package_has_its_licence_named() -> None:
    licences = (graphiql.FILES / "LICENSES.md").read_text()
    packages = {path.rpartition("/")[0] for path in json.loads((graphiql.FILES / "integrity.json").read_text())}
    named = {f"{name}@{version}" for name, version in re.findall(r"^\| (\S+) \| (\d\S+) \|", licences, re.MULTILINE)}
    assert named == packages


def test_the_page_names_no_other_host_and_only_files_that_exist() -> None:
    for name in ["index.html", "segmentql.css", "segmentql.js"]:
        assert not re.findall(r"https?://|[\"'(]//", (graphiql.FILES / name).read_text()), name
    assets = re.findall(r'(?:src|href)="(.*?)"', graphiql.INDEX)
    assert len(assets) == 9
    for asset in assets:
        assert asset.startswith("/graphiql/")
        assert (graphiql.FILES / asset.removeprefix("/graphiql/")).is_file(), asset


def test_the_page_may_load_from_its_own_host_only_and_run_nothing_inline() -> None:
    headers = graphiql.page().headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert not any("unsafe" in sources or "*" in sources or "http" in sources for sources in policy.values())
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["vary"] == "Accept"


async def test_only_files_with_a_version_in_their_path_are_kept_by_browsers() -> None:
    transport = httpx.ASGITransport(Starlette(routes=graphiql.ROUTES))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        vendored = await client.get("/graphiql/@graphiql/plugin-explorer@1.0.2/style.css")
        ours = await client.get("/graphiql/segmentql.js")
        known = await client.get("/graphiql/segmentql.js", headers={"If-None-Match": ours.headers["etag"]})
        absent = await client.get("/graphiql/react@18.2.0/absent.js")
        folder = await client.get("/graphiql")
    assert (vendored.status_code, vendored.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
    assert (ours.status_code, ours.headers["cache-control"]) == (200, "no-cache")
    assert ours.headers["x-content-type-options"] == "nosniff"
    assert (known.status_code, known.content) == (304, b"")
    assert absent.status_code == 404
    assert (folder.status_code, folder.headers["location"]) == (307, "/graphql")


async def test_a_newcomer_runs_the_four_tabs_in_order(server_url: str) -> None:
    async with first_visit(server_url) as page:
        assert await page.get_by_role("tab").all_inner_texts() == TABS

        created = (await run(page, "CreateSegment"))["createSegment"]
        assert (created["segment"]["slug"], created["replayed"], created["userErrors"]) == (SLUG, False, [])
        assert await run(page, "CreateSegment") == {"createSegment": {**created, "replayed": True}}

        changed = (await run(page, "AddUser"))["changeUserSegments"]
        assert {"slug": SLUG} in changed.pop("user")["segments"]
        assert changed == {
            "added": [SLUG],
            "updated": [],
            "removed": [],
            "unchanged": [],
            "replayed": False,
            "userErrors": [],
        }

        user = (await run(page, "ReadItBack"))["user"]
        assert (user["id"], user["isIn"]) == ("1000", True)
        assert {"slug": SLUG, "description": "Half price on the first order"} in user["segments"]
        [membership] = [each for each in user["memberships"] if each["segment"]["slug"] == SLUG]
        assert membership["source"] == "EXPLICIT"
        assert membership["expiresAt"] > membership["addedAt"]

        history = (await run(page, "SeeTheHistory"))["user"]["history"]
        [event] = [each for each in history["nodes"] if each["slug"] == SLUG]
        assert (event["action"], event["expiresAt"]) == ("ADDED", membership["expiresAt"])
        assert history["pageInfo"]["hasNextPage"] is False


async def test_the_tabs_are_still_there_on_the_next_visit(server_url: str) -> None:
    async with first_visit(server_url) as page:
        variables = page.get_by_label("Variables", exact=True)
        await expect(variables).to_contain_text('"try-create-segment-1"')
        async with page.expect_response(is_answer):
            await page.reload(wait_until="networkidle")
        await expect(variables).to_contain_text('"try-create-segment-1"')
        assert await page.get_by_role("tab").all_inner_texts() == TABS


async def test_documentation_explorer_and_dialogs_open(server_url: str) -> None:
    async with first_visit(server_url) as page:
        await page.get_by_label("Show Documentation Explorer").click()
        docs = page.get_by_label("Documentation Explorer", exact=True)
        await expect(docs).to_contain_text("query: Query")
        await expect(docs).to_contain_text("mutation: Mutation")
        await docs.get_by_role("link", name="Mutation", exact=True).click()
        await expect(docs).to_contain_text("createSegment(")

        await page.get_by_label("Show GraphiQL Explorer").click()
        await expect(page.locator(".graphiql-explorer-root")).to_contain_text("createSegment")

        for dialog, title in [("Open short keys dialog", "Short Keys"), ("Open settings dialog", "Settings")]:
            await page.get_by_label(dialog).click()
            await expect(page.get_by_role("dialog")).to_contain_text(title)
            await page.keyboard.press("Escape")
            await expect(page.get_by_role("dialog")).to_have_count(0)


@asynccontextmanager
async def first_visit(server_url: str) -> AsyncGenerator[Page]:
    """A browser without a past; whatever it complains about fails the test at the end."""
    require_chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = await browser.new_page(viewport={"width": 1440, "height": 1000})
        complaints = complaints_about(page, server_url)
        async with page.expect_response(is_answer):  # the introspection, and idle: no request is cut short later on
            document = await page.goto(f"{server_url}/graphql", wait_until="networkidle")
        assert document is not None
        assert document.headers["content-security-policy"] == graphiql.POLICY
        yield page
        await browser.close()
    assert complaints == []


def require_chromium() -> None:
    if not CHROMIUM.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{CHROMIUM} is not installed: apt-get install chromium")


def complaints_about(page: Page, server_url: str) -> list[str]:
    complaints: list[str] = []

    def requested(request: Request) -> None:
        if not request.url.startswith((f"{server_url}/", "data:")):
            complaints.append(f"asked for {request.url}")

    def answered(response: Response) -> None:
        if response.status >= 400:
            complaints.append(f"{response.status} for {response.url}")

    page.on("request", requested)
    page.on("response", answered)
    page.on("requestfailed", lambda request: complaints.append(f"no answer for {request.url}"))
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
    return complaints


def is_answer(response: Response) -> bool:
    return response.request.method == "POST"


async def run(page: Page, tab: str) -> Any:
    """Press the button in this tab, and read the data off the result pane."""
    await page.get_by_role("tablist").get_by_text(tab, exact=True).click()
    await expect(page.get_by_label("Query Editor")).to_contain_text(tab)
    await page.get_by_label("Execute query").click()
    pane = page.get_by_label("Result Window")
    await expect(pane).to_contain_text('"data"')
    shown = (await pane.inner_text()).replace("\N{NO-BREAK SPACE}", " ")  # indentation, as the editor draws it
    return json.loads(shown)["data"]
