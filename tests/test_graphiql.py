"""GraphiQL opens from our own files alone, ready to run, and leaves the browser nothing to complain about."""

import json
import re
from base64 import b64encode
from hashlib import sha384
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
from browsers import TABS, chromium, first_visit, is_answer, run
from callers import a_token
from conftest import Serve
from playwright.async_api import Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette

from server import graphiql

__all__ = ["chromium"]

NO_PAGES = {"hasNextPage": False, "endCursor": None}


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
    for name in ["index.html", "segmentql.css", "segmentql.js", "tabs.js"]:
        assert not re.findall(r"https?://|[\"'(]//", (graphiql.FILES / name).read_text()), name
    assets = re.findall(r'(?:src|href)="(.*?)"', graphiql.INDEX)
    assert len(assets) == 11
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


async def test_tools_open_and_the_tabs_are_still_there_on_the_next_visit(chromium: str, server_url: str) -> None:
    async with first_visit(chromium, server_url) as page:
        variables = page.get_by_label("Variables", exact=True)
        await expect(variables).to_contain_text('"try-create-segment-1"')
        await tools_open(page)
        async with page.expect_response(is_answer):
            await page.reload(wait_until="networkidle")
        await expect(variables).to_contain_text('"user": "1000"')
        assert await page.get_by_role("tab").all_inner_texts() == TABS


async def tools_open(page: Page) -> None:
    await page.get_by_label("Show Documentation Explorer").click()
    docs = page.get_by_label("Documentation Explorer", exact=True)
    await expect(docs).to_contain_text("query: Query")
    await expect(docs).to_contain_text("mutation: Mutation")
    await docs.get_by_role("link", name="Mutation", exact=True).click()
    await expect(docs).to_contain_text("createSegment(")

    await page.get_by_label("Show GraphiQL Explorer").click()
    await expect(page.locator(".graphiql-explorer-root")).to_contain_text("createSegment")

    await run(page, "ReadItBack")
    await page.get_by_label("Show History").click()
    await expect(page.get_by_label("History", exact=True)).to_contain_text("ReadItBack")

    for dialog, title in [("Open short keys dialog", "Short Keys"), ("Open settings dialog", "Settings")]:
        await page.get_by_label(dialog).click()
        await expect(page.get_by_role("dialog")).to_contain_text(title)
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_a_token_is_kept_for_the_session_and_nowhere_else(
    serve: Serve, chromium: str, engine: AsyncEngine
) -> None:
    token = await a_token(engine, "read")
    async with (
        serve(authentication="required", graphiql="on") as client,
        first_visit(chromium, str(client.http.base_url), allowed=("401",)) as page,
    ):
        hint = page.get_by_role("status").first
        await expect(hint).to_have_text(re.compile("^A token is needed."))
        await page.get_by_label("Token").fill("segmentql_mistyped")
        await page.get_by_label("Token").press("Enter")
        await expect(hint).to_have_text(re.compile("^The token at the top is not accepted"))
        await page.get_by_label("Token").fill(f"Bearer {token.text}")
        await page.get_by_label("Token").press("Enter")
        await expect(hint).to_have_text("")
        assert await run(page, "ListSegments") == {"segments": {"nodes": [], "pageInfo": NO_PAGES}}

        # What is written among the headers goes before, and is as little for the next visitor.
        await page.get_by_role("button", name="Headers").click()
        await page.get_by_label("Headers", exact=True).click()
        await page.keyboard.insert_text('{"authorization": "Bearer segmentql_other"}')
        await page.get_by_label("Execute query").click()
        await expect(page.get_by_label("Result Window")).to_contain_text("UNAUTHENTICATED")
        await page.get_by_label("Show History").click()
        await page.reload(wait_until="networkidle")
        await expect(page.get_by_label("Token")).to_have_value(token.text)
        kept = await page.evaluate("JSON.stringify(localStorage)")
        assert "ListSegments" in kept
        assert token.secret not in kept
        assert "segmentql_other" not in kept
        await page.get_by_label("Token").fill("")
        assert await page.evaluate("sessionStorage.length") == 0


async def test_a_page_without_the_schema_still_runs_what_is_asked(serve: Serve, chromium: str) -> None:
    async with (
        serve(introspection="off", graphiql="on") as client,
        first_visit(chromium, str(client.http.base_url), allowed=("400",)) as page,
    ):
        await expect(page.get_by_role("status").first).to_have_text(re.compile("does not show its schema"))
        assert await run(page, "ListSegments") == {"segments": {"nodes": [], "pageInfo": NO_PAGES}}
        await page.get_by_label("Show Documentation Explorer").click()
        await expect(page.get_by_label("Documentation Explorer", exact=True)).to_contain_text("Error fetching schema")


async def test_a_link_fills_a_tab_and_runs_nothing(chromium: str, server_url: str) -> None:
    query = 'mutation Mine($key: String!) { deleteSegment(slug: "Ä&+#", idempotencyKey: $key) { replayed } }'
    mine = {"query": query, "variables": '{"key": "mine-1234"}', "operationName": "Mine"}
    # The browser fetches its icon when it likes, and a new page cuts that short.
    async with first_visit(chromium, server_url, f"#{urlencode(mine)}", allowed=("favicon.svg",)) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.post_data or ""))
        selected = page.get_by_role("tab", selected=True)
        variables = page.get_by_label("Variables", exact=True)
        assert page.url == f"{server_url}/graphql"
        assert await page.get_by_role("tab").all_inner_texts() == [*TABS, "Mine"]
        await expect(selected).to_contain_text("Mine")
        await expect(page.get_by_label("Query Editor")).to_contain_text('"Ä&+#"')
        await expect(variables).to_contain_text("mine-1234")

        await page.get_by_label("Token").fill("segmentql_secret")
        hint = page.get_by_role("status").first
        await page.get_by_role("button", name="Copy link").click()
        await expect(hint).to_have_text(re.compile("^A link to this tab was copied."))
        link = urlsplit(await page.evaluate("navigator.clipboard.readText()"))
        assert f"{link.scheme}://{link.netloc}{link.path}" == f"{server_url}/graphql"
        assert parse_qs(link.fragment) == {name: [value] for name, value in mine.items()}

        # Over the page that has this tab already.
        await page.get_by_role("tablist").get_by_text("RollOut", exact=True).click()
        await expect(variables).to_contain_text("try-roll-out-1")
        async with page.expect_event("load"), page.expect_response(is_answer):
            await page.evaluate(f"location.hash = {json.dumps(link.fragment)}")
        await expect(selected).to_contain_text("Mine")
        assert await page.get_by_role("tab").all_inner_texts() == [*TABS, "Mine"]
        await page.wait_for_load_state("networkidle")
        assert not any("deleteSegment" in body for body in asked)


async def test_links_leave_room_for_the_page(chromium: str, server_url: str) -> None:
    def link(name: str) -> str:
        return urlencode({"query": f"query {name} {{ __typename }}"})

    async with first_visit(chromium, server_url, f"#{link('First')}", allowed=("favicon.svg", "ERR_ABORTED")) as page:
        tabs = page.get_by_role("tab")
        await expect(tabs.last).to_contain_text("First")
        # As if many had been opened; each of them costs a visit. GraphiQL writes what it has until it is left.
        await page.evaluate("""() => addEventListener("pagehide", () => {
          const name = Object.keys(localStorage).find((name) => name.endsWith("graphiql:tabState"));
          const state = JSON.parse(localStorage.getItem(name));
          const linked = state.tabs.at(-1);
          for (let i = 1; i < 12; i++) {
            state.tabs.push({ ...linked, id: `${linked.id}-${i}`, query: `query N${i} { __typename }` });
          }
          localStorage.setItem(name, JSON.stringify(state));
        })""")
        await open_over(page, link("Last"))
        await expect(tabs).to_have_count(len(TABS) + 10)
        await expect(tabs.last).to_contain_text("Last")
        await page.evaluate("""() => addEventListener("pagehide", () => {
          const name = Object.keys(localStorage).find((name) => name.endsWith("graphiql:tabState"));
          localStorage.setItem(name, "{");
        })""")
        await open_over(page, link("Again"))
        await expect(tabs).to_have_count(len(TABS) + 1)
        await expect(tabs.last).to_contain_text("Again")


async def open_over(page: Page, fragment: str) -> None:
    async with page.expect_event("load"), page.expect_response(is_answer):
        await page.evaluate(f"location.hash = {json.dumps(fragment)}")
    await page.wait_for_load_state("networkidle")
