"""Keeping the history's partitions ahead of time."""

import logging

from sqlalchemy.ext.asyncio import AsyncEngine

from db import partitions

log = logging.getLogger(__name__)


async def keep_ahead(writer: AsyncEngine) -> None:
    """Make this month's partition and those of the next months, where they are missing.

    Safe to run twice, or in several processes at once.
    """
    async with writer.connect() as conn:
        if not await partitions.missing(conn):
            return
    async with writer.begin() as tx:
        made = await partitions.make(tx)
    if made:
        log.info("made partitions of the history for %s", ", ".join(made))
