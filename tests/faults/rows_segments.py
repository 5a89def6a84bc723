"""Segments that are deleted while others still add to them."""

import asyncio

from faults.load import Load
from faults.row import row
from faults.slowness import adding_slowly
from faults.stack import Stack

# Longer than a cleanup takes to begin and to end, where it finds nobody.
SECONDS = 2.0


@row(
    "deleted-while-added",
    "a segment is deleted while users are being added to it, which takes seconds",
    before=adding_slowly(SECONDS),
)
async def delete_while_adding(stack: Stack, load: Load) -> None:
    slug, value = f"D{stack.faults}", load.value()
    await load.write("createSegment", {"slug": slug}, {})
    users = [f"slow-{number}" for number in range(3)]
    adding = [asyncio.create_task(load.change(user, [slug], [], value)) for user in users]
    await asyncio.sleep(stack.random.uniform(0.05, 0.3))
    await load.write("deleteSegment", slug, {(user, slug): None for user in users})
    await asyncio.gather(*adding)
    for user in users:
        await load.read(stack.somebody(), user)
