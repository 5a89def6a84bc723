"""ariadne-codegen: a client whose methods are made from documents, and whose answers are checked at run time."""

import asyncio
import importlib
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from story import HEADERS, URL, new_key, new_name

HERE = Path(__file__).parent
CONFIGURATION = """
[tool.ariadne-codegen]
schema_path = "schema.graphql"
queries_path = "operations.graphql"
target_package_name = "segments"
scalars = { DateTime = { type = "datetime.datetime" }, BigInt = { type = "int" } }
"""


def generated(folder: Path) -> Any:
    """The package that is made of the schema and the operations."""
    (folder / "pyproject.toml").write_text(CONFIGURATION)
    shutil.copy(HERE.parents[2] / "schema.graphql", folder)
    shutil.copy(HERE / "operations.graphql", folder)
    program = Path(sys.executable).with_name("ariadne-codegen")
    subprocess.run([program], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    sys.path.insert(0, str(folder))
    return importlib.import_module("segments")


async def main(made: Any) -> None:
    name = new_name("ariadne")
    async with made.Client(url=URL, headers=HEADERS) as client:
        await retries(made, client, name)
        await refusals(made, client, name)
        await pages(made, client, name)


async def retries(made: Any, client: Any, name: str) -> None:
    began = datetime.now(UTC)
    created = (await client.create_segment(slug=name, key=new_key())).create_segment
    assert (created.replayed, created.segment.slug, created.user_errors) == (False, name, [])
    assert abs((created.segment.created_at - began).total_seconds()) < 60
    expires_at = datetime(2126, 1, 1, microsecond=1, tzinfo=UTC)
    key = new_key()
    for replayed in (False, True):
        input = made.ChangeUserSegmentsInput(userId=name, add=[name], expiresAt=expires_at)
        changed = (await client.change_user(input=input, key=key)).change_user_segments
        segments = [segment.slug for segment in changed.user.segments]
        assert (changed.replayed, changed.added, changed.user_errors, segments) == (replayed, [name], [], [name])
    user = (await client.read_user(id=name)).user
    assert [segment.slug for segment in user.segments] == [name]
    [event] = user.history.nodes
    assert (event.slug, event.action, event.source) == (name, made.MembershipAction.ADDED, "EXPLICIT")
    assert event.expires_at == expires_at
    print("a retry happens once")


async def refusals(made: Any, client: Any, name: str) -> None:
    input = made.ChangeUserSegmentsInput(userId=name, add=[f"{name}-nowhere"])
    refused = (await client.change_user(input=input, key=new_key())).change_user_segments
    [error] = refused.user_errors
    assert (error.code, error.path) == (made.UserErrorCode.SEGMENT_NOT_FOUND, ["input", "add", "0"])
    invalid = await client.execute("{ user(id: 7) { nickname } }")
    assert [found["extensions"]["code"] for found in invalid.json()["errors"]] == ["GRAPHQL_VALIDATION_FAILED"]
    try:
        await made.Client(url=URL).read_user(id=name)
        status = 200
    except made.GraphQLClientHttpError as nobody:
        status = nobody.status_code
    assert status == 401
    print("refusals by their codes")


async def pages(made: Any, client: Any, name: str) -> None:
    slug, ids = f"{name}-pages", [f"{name}-{number}" for number in range(5)]
    await client.create_segment(slug=slug, key=new_key())
    input = made.AddUsersToSegmentInput(slug=slug, userIds=ids)
    filled = (await client.fill(input=input, key=new_key())).add_users_to_segment
    assert (filled.added, filled.user_errors) == (5, [])
    found: list[list[str]] = []
    after, more = None, True
    while more:
        members = (await client.read_members(slug=slug, after=after)).segment.members
        found.append([node.id for node in members.nodes])
        after, more = members.page_info.end_cursor, members.page_info.has_next_page
    assert found == [ids[:2], ids[2:4], ids[4:]]
    print("three pages")


with tempfile.TemporaryDirectory() as folder:
    package = generated(Path(folder))
    print("a typed client, generated")
    asyncio.run(main(package))
