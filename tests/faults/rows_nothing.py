"""No fault at all: what the others are to be compared with."""

import asyncio

from faults.load import Load
from faults.row import row
from faults.stack import Stack


@row("nothing", "no fault, for comparison")
async def strike(stack: Stack, load: Load) -> None:
    await asyncio.sleep(stack.random.uniform(1, 3))
