"""GraphiQL from our own files: the page, its assets, and what a browser may do with them."""

import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FILES = Path(__file__).parent / "static" / "graphiql"
INDEX = (FILES / "index.html").read_text(encoding="utf-8")
POLICY = (
    "default-src 'none'; "
    "script-src 'self'; "
    # The hash is that of the one style GraphiQL writes into the page, while a dialog or a menu is open.
    "style-src 'self' 'sha256-Y/huXlwoYkVyQlxwSVcCi1RCDGDCSVBzDt0hYP9qlTc='; "
    "font-src data:; "
    "img-src 'self'; "
    "connect-src 'self'; "
    "base-uri 'none'; "
    "form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A page that has opened ours, or that ours opens, has no hold on it.
    "Cross-Origin-Opener-Policy": "same-origin",
}
VERSIONED = re.compile(r"@\d+\.\d+\.\d+/")


def page() -> HTMLResponse:
    return HTMLResponse(INDEX, headers={**HEADERS, "Cache-Control": "no-cache", "Vary": "Accept"})


class Assets(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        # A path with a version never changes what it means; our own files do with every release.
        kept = "public, max-age=31536000, immutable" if VERSIONED.search(path) else "no-cache"
        response.headers.update({**HEADERS, "Cache-Control": kept})
        return response


async def to_page(_: Request) -> RedirectResponse:
    return RedirectResponse("/graphql")


ROUTES: list[BaseRoute] = [
    Route("/graphiql", to_page),
    Mount("/graphiql", Assets(directory=FILES)),
]
