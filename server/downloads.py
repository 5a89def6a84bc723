"""Downloads of files that are kept in a local folder: one task's own file, for whoever has a link to it."""

import logging
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from db import files, tasks
from db.tables import TaskStatus
from resolvers.context import Context
from resolvers.errors import Overloaded
from resolvers.links import PATH, BadLink

log = logging.getLogger(__name__)


async def download(request: Request) -> Response:
    """The file, or the ranges of it that were asked for. 403 without a good link; 404 when there is no such file."""
    context: Context = request.state.context
    # Starlette has seen that it is one; no other part of the request takes part in finding the file.
    task_id: UUID = request.path_params["task_id"]
    try:
        # First: without a link nobody is told whether there is such a task, and nothing is looked up.
        attempt = await context.services.links.check_download(task_id, request.query_params)
    except BadLink as bad:
        return JSONResponse({"error": str(bad)}, 403)
    except Overloaded as error:
        return JSONResponse({"error": str(error)}, 503)
    try:
        async with context.querying() as conn:
            task = (await tasks.of_files(conn, [task_id])).get(task_id)
    except (SQLAlchemyError, OSError, TimeoutError):
        log.exception("a download could not be looked up")
        return JSONResponse({"error": str(Overloaded())}, 503)
    path = context.services.links.files.local(files.path(task_id, attempt))
    gone = JSONResponse({"error": "The file was removed: it is kept for some days only."}, 404)
    if task is None or task.status is not TaskStatus.SUCCEEDED or task.file_removed_at is not None:
        return gone
    if path is None or not path.is_file():
        return gone
    return FileResponse(path, media_type="text/csv; charset=utf-8", filename=files.name(task_id, task.kind))


ROUTES = [Route(f"{PATH}{{task_id:uuid}}", download, methods=["GET"])]
