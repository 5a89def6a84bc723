"""GraphiQL's tabs are ready to run: one after the other, on a new database, they do what they say."""

from typing import Any

from browsers import TABS, chromium, first_visit, run
from conftest import Client, Serve
from operations import change
from playwright.async_api import Page, expect

__all__ = ["chromium"]

SLUG = "AVITO_DISCOUNT_50"
NOTHING = {"added": 0, "updated": 0, "removed": 0, "unchanged": 0, "replayed": False, "userErrors": []}


async def test_a_newcomer_runs_the_tabs_in_order(serve: Serve, chromium: str) -> None:
    async with (
        serve(serve_tasks=1) as client,
        # A stream is stopped by not reading on.
        first_visit(chromium, str(client.http.base_url), allowed=("ERR_ABORTED",)) as page,
    ):
        assert await page.get_by_role("tab").all_inner_texts() == TABS
        await one_user(page)
        await many_users(page)
        await a_report(page, client)
        await a_stream(page, client)
        deleted = (await run(page, "DeleteSegment"))["deleteSegment"]
        assert (deleted["segment"]["slug"], deleted["replayed"], deleted["userErrors"]) == (SLUG, False, [])


async def a_stream(page: Page, client: Client) -> None:
    first = (await run(page, "WatchTheUser"))["userChanged"]
    assert (first["resync"], first["events"]) == (True, [])
    assert {"slug": SLUG} in first["user"]["segments"]
    await change(client, "1000", remove=[SLUG])
    pane = page.get_by_label("Result Window")
    await expect(pane).to_contain_text('"REMOVED"')
    await page.get_by_label("Stop query").click()
    await expect(page.get_by_label("Execute query")).to_be_visible()
    await expect(pane).to_contain_text('"REMOVED"')


async def one_user(page: Page) -> None:
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


async def many_users(page: Page) -> None:
    listed = (await run(page, "AddAList"))["addUsersToSegment"]
    assert listed == {"added": 3, "updated": 0, "unchanged": 0, "replayed": False, "userErrors": []}
    changed = (await run(page, "ChangeMany"))["changeMemberships"]
    assert changed == NOTHING | {"added": 1, "removed": 1}

    segment = (await run(page, "ListMembers"))["segment"]
    assert segment["memberCount"] == {"value": 4, "exact": True}
    assert [edge["node"]["id"] for edge in segment["members"]["edges"]] == ["1000", "1002"]
    assert segment["members"]["pageInfo"]["hasNextPage"] is True

    rolled = (await run(page, "RollOut"))["updateSegment"]
    assert (rolled["segment"]["rolloutPercent"], rolled["userErrors"]) == (25, [])
    segments = (await run(page, "ListSegments"))["segments"]
    assert [(each["slug"], each["rolloutPercent"]) for each in segments["nodes"]] == [(SLUG, 25)]


async def a_report(page: Page, client: Client) -> None:
    started = (await run(page, "StartAReport"))["generateReport"]
    assert (started["replayed"], started["userErrors"]) == (False, [])
    task: Any = {}
    for _ in range(20):
        [task] = (await run(page, "PollTheReport"))["tasks"]["nodes"]
        if task["pollAfterMs"] is None:
            break
        await page.wait_for_timeout(task["pollAfterMs"])
    assert (task["id"], task["status"]) == (started["task"]["id"], "SUCCEEDED")
    content = (await client.http.get(task["file"]["url"])).text
    assert sorted(line.split(",")[0] for line in content.splitlines()[1:]) == [
        "1000",
        "1001",
        "1001",
        "1002",
        "1003",
        "1004",
    ]
    assert task["file"]["rows"] == 6
