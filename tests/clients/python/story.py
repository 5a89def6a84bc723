"""What each Python client does: a segment, a user who is put into it, a retry, pages, and what goes wrong."""

import os
from uuid import uuid4

URL, TOKEN = os.environ["SEGMENTQL_URL"], os.environ["SEGMENTQL_TOKEN"]
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
SECONDS = 20


def new_name(client: str) -> str:
    """For a segment that nobody else has made."""
    return f"{client}-{uuid4()}"


def new_key() -> str:
    return str(uuid4())
