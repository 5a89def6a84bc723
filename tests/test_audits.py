"""The audits of GraphQL over HTTP, by the people who wrote its reference implementation, against the running server."""

import asyncio
import os
import shutil
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "node"


async def test_all_61_audits_of_graphql_over_http_pass(
    server_url: str, record_property: Callable[[str, object], None]
) -> None:
    require_node()
    audits = await asyncio.create_subprocess_exec(
        "node", "audits.mjs", f"{server_url}/graphql", cwd=FOLDER, stdout=PIPE, stderr=STDOUT
    )
    output = (await audits.communicate())[0].decode()
    summary = output.partition("\n")[0]
    record_property("printed", f"GraphQL over HTTP: {summary}")
    assert (summary, audits.returncode) == ("61 of 61 audits pass", 0), output


def require_node() -> None:
    if shutil.which("node") is None or not (FOLDER / "node_modules" / "graphql-http").is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs node, and: npm install --prefix tests/node")
