"""Connections on which a test sends exactly what it says, right or not."""

import asyncio

from conftest import Client


async def connected(client: Client) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(client.http.base_url.host, client.http.base_url.port)


async def exchange(client: Client, sent: bytes) -> bytes:
    """What the server answers to exactly these bytes, until it closes the connection."""
    reader, writer = await connected(client)
    writer.write(sent)
    answer = await reader.read()
    writer.close()
    return answer
