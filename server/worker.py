"""One of several server processes, as uvicorn's supervisor starts it."""

import os

from starlette.applications import Starlette

from server import logs
from server.app import create_app
from server.serve import end_with_parent
from server.settings import from_environ


def app() -> Starlette:
    settings = from_environ(os.environ)
    logs.configure(settings.log_level)
    end_with_parent()
    return create_app(settings)
