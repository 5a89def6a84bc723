"""A client that costs next to nothing, for tests that send thousands of requests from the same two cores."""

import asyncio
import json
import re
from typing import Any, Self

from conftest import Client


class Wire:
    """One connection."""

    def __init__(self, client: Client) -> None:
        self._url = client.http.base_url

    async def ask(self, query: str, variables: dict[str, Any] | None = None) -> Any:
        """Send one operation; its `data` is returned, and errors fail the test."""
        body = json.dumps({"query": query, "variables": variables or {}}).encode()
        head = f"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        self._writer.write(head.encode() + b"\r\n\r\n" + body)
        headers = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", headers)
        assert length is not None, headers
        answer = json.loads(await self._reader.readexactly(int(length[1])))
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._url.host, self._url.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
