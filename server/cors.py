"""Which pages of other origins may ask from a browser, what they may send, and what they may read."""

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from server.settings import Settings

# For so long a browser does not ask again.
MAX_AGE_SECONDS = 600


def cors(settings: Settings) -> list[Middleware]:
    """Nothing where no origins are set, which to a browser means none. Cookies are not needed: there are none."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type", "X-Request-Id"),
            expose_headers=("RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate", "X-Request-Id"),
            max_age=MAX_AGE_SECONDS,
        )
    ]
