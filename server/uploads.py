"""Uploads of files for imports: streamed to where files are kept, whatever their size."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from db import files, tasks
from db.clock import ticks
from db.files import Files, NotStored
from db.tables import TaskKind, TaskStatus
from db.tasks import Task
from resolvers.context import Context
from resolvers.errors import Overloaded
from resolvers.links import PATH, UPLOAD, BadLink

log = logging.getLogger(__name__)
# A client that has not sent at least so much after waiting for so long has left, or only holds its place.
WAIT_SECONDS = 60
WAIT_BYTES = 60_000
# A token may be revoked while its file is arriving.
CHECK_SECONDS = 60
# Each has some megabytes in memory, and goes to the same disk.
MOST_AT_ONCE = 8
GZIP = b"\x1f\x8b"
ENDED = "The link has ended with the token that it was made for."
NOT_WAITED_FOR = "Nobody waits for this file: the import has another one already, or has ended."


class TooLargeError(Exception):
    pass


class Uploads:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._at_work = 0
        self.routes = [Route(f"{PATH}{{task_id:uuid}}", self.upload, methods=["PUT"])]

    async def upload(self, request: Request) -> Response:
        """Keep the body for the import. 403 without a good link; 409 when it has another file, or has ended."""
        context: Context = request.state.context
        task_id: UUID = request.path_params["task_id"]
        if (refused := await self._refused(request, context, task_id)) is not None:
            return refused
        if self._at_work >= MOST_AT_ONCE:
            return JSONResponse({"error": str(Overloaded())}, 503, {"Retry-After": "1"})
        self._at_work += 1
        try:
            task = await _find(context, task_id)
            if task is None:
                return JSONResponse({"error": "There is no such import."}, 404)
            return await self._keep(request, context, task)
        except TooLargeError:
            return self._too_large()
        except BadLink as bad:
            return JSONResponse({"error": str(bad)}, 403)
        except TimeoutError:
            return JSONResponse({"error": "The file did not arrive in time."}, 408)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except NotStored as error:
            log.error("an upload could not be stored: %s", error.reason)  # noqa: TRY400  # it says it all
            return JSONResponse({"error": "The file could not be stored."}, 507 if error.full else 503)
        except (SQLAlchemyError, OSError):
            log.exception("an upload could not be noted")
            return JSONResponse({"error": str(Overloaded())}, 503)
        finally:
            self._at_work -= 1

    async def _refused(self, request: Request, context: Context, task_id: UUID) -> Response | None:
        try:
            await context.services.links.check(task_id, UPLOAD, request.query_params)
        except BadLink as bad:
            return JSONResponse({"error": str(bad)}, 403)
        except Overloaded as error:
            return JSONResponse({"error": str(error)}, 503)
        if int(request.headers.get("content-length", "0")) > self._max_bytes:
            return self._too_large()
        return None

    async def _keep(self, request: Request, context: Context, task: Task) -> Response:
        path = files.upload_path(task.id)
        kept = context.services.links.files
        # Sent again because the answer was lost: it is not stored twice.
        waiting = task.upload is None and task.status is TaskStatus.QUEUED
        upload = await self._store(request, kept, path) if waiting else await self._read(request)
        noted = waiting and await context.services.operations.note(
            lambda tx: tasks.upload(tx, task.id, {"path": path, **upload})
        )
        if noted:
            context.services.wake()
        else:
            if waiting:
                await kept.discard(path)
            now = await _find(context, task.id)
            if now is None or now.upload is None or now.upload["sha256"] != upload["sha256"]:
                return JSONResponse({"error": NOT_WAITED_FOR}, 409)
        return JSONResponse({"taskId": str(task.id), "bytes": upload["bytes"], "sha256": upload["sha256"]})

    async def _store(self, request: Request, kept: Files, path: str) -> dict[str, Any]:
        async with kept.writing(path, path.rpartition("/")[2]) as file:
            return await self._read(request, file.write)

    async def _read(self, request: Request, write: Callable[[bytes], Awaitable[None]] | None = None) -> dict[str, Any]:
        digest, size, beginning = hashlib.sha256(), 0, b""
        async for chunk in _arriving(request):
            size += len(chunk)
            if size > self._max_bytes:
                raise TooLargeError
            digest.update(chunk)
            beginning = (beginning + chunk)[: len(GZIP)]
            if write is not None and chunk:
                await write(chunk)
        return {"bytes": size, "sha256": digest.hexdigest(), "gzip": beginning == GZIP}

    def _too_large(self) -> Response:
        return JSONResponse({"error": f"The file has more than {self._max_bytes} bytes."}, 413)


async def _arriving(request: Request) -> AsyncIterator[bytes]:
    """The body's pieces. Raises TimeoutError when they come too slowly, and BadLink when the link's token has ended."""
    links, token_id = request.state.context.services.links, request.query_params.get("token")
    stream, left, missing = aiter(request.stream()), float(WAIT_SECONDS), WAIT_BYTES
    checked = ticks()
    while True:
        asked = ticks()
        try:
            # Only what the client takes counts, and not what the disk does.
            async with asyncio.timeout(left):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        now = ticks()
        left, missing = left - (now - asked), missing - len(chunk)
        if missing <= 0:
            left, missing = float(WAIT_SECONDS), WAIT_BYTES
        if token_id is not None and now - checked >= CHECK_SECONDS:
            checked = now
            with suppress(Overloaded):
                if not await links.good(token_id):
                    raise BadLink(ENDED)
        yield chunk


async def _find(context: Context, task_id: UUID) -> Task | None:
    async with context.querying() as conn:
        task = (await tasks.of_files(conn, [task_id])).get(task_id)
    return task if task is not None and task.kind is TaskKind.IMPORT else None
