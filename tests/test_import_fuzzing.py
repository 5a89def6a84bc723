"""Files that are broken in all ways, or only look so; `make fuzz ARGS="--files 1000"` sends more of them."""

from collections.abc import AsyncIterator

import pytest
from conftest import Client, Serve
from fuzzing.importing_files import run
from operations import differences
from sqlalchemy.ext.asyncio import AsyncEngine

FILES = 12
SEED = 83


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[Client]:
    async with serve(serve_tasks=4) as client:
        yield client


async def test_every_file_is_imported_as_python_reads_it_or_refused_with_a_reason(
    client: Client, engine: AsyncEngine
) -> None:
    tally = await run(client, SEED, FILES)
    assert [(number, file.kind, wrong) for number, file, wrong in tally.findings] == []
    assert tally.ends.total() == FILES
    # Not all were refused, nor all taken; and nothing that counts is missing.
    assert tally.compared > FILES / 4
    assert min(tally.ends["SUCCEEDED"], tally.ends["FAILED"]) > 0
    assert min(tally.rows[name] for name in ("added", "updated", "unchanged", "duplicate", "invalid")) > 0
    assert await differences(engine) == []
