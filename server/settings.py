"""What the environment decides: read once, checked at once, and handed down as a value."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from redis.asyncio import ConnectionPool

from db import connections
from db.files import S3
from jobs.purge import Retention
from resolvers.context import Limits
from server.documents import DocumentLimits

PREFIX = "SEGMENTQL_"
# What the commands that ask a server take from the same environment (server/client_commands.py).
OF_CLIENTS = frozenset({"SEGMENTQL_URL", "SEGMENTQL_TOKEN", "SEGMENTQL_STATE_DIR"})
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/].*)?")
log = logging.getLogger(__name__)


class StartError(Exception):
    """Why the service does not start: one line for a person, with the remedy."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a setting is read; `parse` raises ValueError."""

    parse: Callable[[str], Any]
    # What it may be.
    what: str


def whole(least: int, most: int) -> Kind:
    def parse(value: str) -> int:
        if not least <= int(value) <= most:
            raise ValueError
        return int(value)

    return Kind(parse, f"a whole number from {least} to {most}")


def one_of(*choices: str) -> Kind:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError
        return value

    return Kind(parse, " or ".join(choices))


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError
    return value


def _database(value: str) -> str:
    if not value.startswith(("postgresql://", "postgres://", "postgresql+asyncpg://")):
        raise ValueError
    # The driver's own names: what libpq calls `sslmode` is `ssl` here.
    if not connections.url(value).query.keys() <= signature(asyncpg.connect).parameters.keys():
        raise ValueError
    return value


def _redis(value: str) -> str:
    try:
        # It connects to nothing yet.
        ConnectionPool.from_url(value).make_connection()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
    except TypeError as error:
        raise ValueError from error
    return value


def _files(value: str) -> str:
    if value.startswith(S3) and not BUCKET.fullmatch(value.removeprefix(S3)):
        raise ValueError
    # Whatever else looks like a URL is no folder that anybody means.
    if "://" in value and not value.startswith(S3):
        raise ValueError
    return _text(value)


def _origin(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError
    return value.rstrip("/")


FILES = Kind(_files, "a folder, or s3://bucket/prefix")
ORIGIN = Kind(_origin, "a URL like https://segments.example.com")
TEXT = Kind(_text, "some text")
FOLDER = Kind(lambda value: Path(_text(value)), "a folder")
DATABASE = Kind(_database, "a URL like postgresql://user:password@host:5432/database, or …?ssl=require for TLS")
REDIS = Kind(_redis, "a URL like redis://host:6379/0, rediss://… or unix://…")


def setting(default: Any, kind: Kind, description: str) -> Any:
    return field(default=default, metadata={"kind": kind, "description": description})


@dataclass(frozen=True, slots=True)
class Settings:
    host: str = setting("127.0.0.1", TEXT, "The address to listen on.")
    port: int = setting(8080, whole(0, 65535), "The port to listen on; 0 takes a free one.")
    workers: int = setting(1, whole(1, 64), "Server processes.")
    unauthenticated: str = setting(
        "loopback",
        one_of("loopback", "anywhere"),
        "Where callers are served without authentication. `anywhere` only where the network itself is the guard.",
    )
    database_url: str | None = setting(
        None, DATABASE, "PostgreSQL 18. Without it, and without a Redis URL, own servers are started."
    )
    redis_url: str | None = setting(None, REDIS, "Redis 7 or newer, or Valkey.")
    data_dir: Path = setting(Path(".segmentql"), FOLDER, "Where the own servers keep their data.")
    database_wait: int = setting(
        30, whole(0, 3600), "Seconds to wait at the start for a database that is not there yet."
    )
    pool_size: int = setting(10, whole(1, 200), "Connections of one process for mutations.")
    read_pool_size: int = setting(6, whole(3, 200), "Connections of one process for queries.")
    redis_budget_ms: int = setting(
        50, whole(1, 5000), "Milliseconds that a read or a mutation waits for Redis, before it does without."
    )
    serve_tasks: int = setting(
        2,
        whole(0, 64),
        "Background tasks that one server process works on at a time, besides the nightly purge; 0 leaves both to "
        "`segmentql worker`.",
    )
    worker_tasks: int = setting(4, whole(1, 64), "Background tasks that one `segmentql worker` works on at a time.")
    files: str | None = setting(
        None,
        FILES,
        "Where reports are kept; without it, below the data directory. The keys and the endpoint of a bucket are taken "
        "from `AWS_…`. On several hosts: a bucket, or a folder that they share.",
    )
    public_url: str | None = setting(
        None, ORIGIN, "What links to files begin with; without it, the scheme and host that the caller used."
    )
    link_minutes: int = setting(15, whole(1, 10_080), "Minutes that a link to a file is good for.")
    key_retention_hours: int = setting(24, whole(24, 8_784), "Hours that an idempotency key is kept, at least.")
    file_retention_days: int = setting(7, whole(1, 3_660), "Days that the file of a task is kept.")
    task_retention_days: int = setting(
        30, whole(1, 3_660), "Days that a task that has ended is kept, and no less than its file."
    )
    history_retention_months: int | None = setting(
        None, whole(1, 1_200), "Whole months that history is kept before this one; without it, for ever."
    )
    metrics_port: int | None = setting(
        None,
        whole(1, 65_535),
        "Where Prometheus finds `/metrics`, on the same host as the service; further server processes take the ports "
        "that follow. Without it there are none.",
    )
    execution_timeout: int = setting(15, whole(1, 300), "Seconds that one operation may take.")
    max_body_bytes: int = setting(
        16_777_216,
        whole(1_000, 1_073_741_824),
        "Bytes of one request's body: 100 000 user ids of 128 characters take 13 MB.",
    )
    max_upload_bytes: int = setting(
        17_179_869_184, whole(1_000, 1_099_511_627_776), "Bytes of one file that is uploaded for an import."
    )
    max_tokens: int = setting(2_000, whole(10, 1_000_000), "Tokens of one document.")
    max_depth: int = setting(10, whole(2, 1_000), "Levels of one operation.")
    max_aliases: int = setting(30, whole(0, 100_000), "Aliases in one operation.")
    max_root_fields: int = setting(20, whole(1, 10_000), "Fields of an operation's first level.")
    max_directives: int = setting(20, whole(0, 10_000), "Directives in one operation.")
    max_list_items: int = setting(100, whole(1, 10_000), "Users of one `users` field, slugs of one `only`.")
    max_page_size: int = setting(100, whole(1, 10_000), "The largest `first`.")
    max_nodes: int = setting(10_000, whole(100, 10_000_000), "Items of all lists of one answer together.")
    max_changes: int = setting(1_000, whole(1, 10_000), "Slugs in each list of one `changeUserSegments`.")
    max_report_items: int = setting(
        10_000, whole(1, 100_000), "Users, and segments, that one report can be narrowed to."
    )
    max_bulk_pairs: int = setting(
        100_000, whole(1, 1_000_000), "Users of one bulk change; of `changeMemberships`, users and segments in pairs."
    )
    max_bulk_changes: int = setting(10_000, whole(1, 100_000), "Changes of one `changeMemberships`.")
    log_level: str = setting("INFO", one_of("DEBUG", "INFO", "WARNING", "ERROR"), "What is logged, on standard error.")

    @property
    def document_limits(self) -> DocumentLimits:
        return DocumentLimits(
            self.max_tokens, self.max_depth, self.max_aliases, self.max_root_fields, self.max_directives
        )

    @property
    def limits(self) -> Limits:
        return Limits(
            self.max_list_items,
            self.max_page_size,
            self.max_changes,
            self.max_nodes,
            self.max_report_items,
            self.max_bulk_pairs,
            self.max_bulk_changes,
        )

    @property
    def retention(self) -> Retention:
        return Retention(
            self.key_retention_hours,
            self.file_retention_days,
            self.task_retention_days,
            self.history_retention_months,
        )

    @property
    def store(self) -> str:
        """Where the files of tasks are kept."""
        return self.files or str(self.data_dir / "files")

    @property
    def embedded(self) -> bool:
        """Whether the service brings its own PostgreSQL and Valkey."""
        return self.database_url is None


def from_environ(environ: Mapping[str, str]) -> Settings:
    """The settings, or a StartError that names the one that is wrong and says what it may be."""
    found: dict[str, Any] = {}
    for known in fields(Settings):
        name = PREFIX + known.name.upper()
        if name not in environ:
            continue
        kind: Kind = known.metadata["kind"]
        try:
            found[known.name] = kind.parse(environ[name])
        except ValueError as error:
            # A URL may carry a password.
            shown = "" if name.endswith("_URL") else f" {environ[name]!r}"
            raise StartError(f"{name} is{shown or ' not usable'}: it must be {kind.what}.") from error
    if ("database_url" in found) != ("redis_url" in found):
        raise StartError(f"Set both {PREFIX}DATABASE_URL and {PREFIX}REDIS_URL, or neither to use own servers.")
    known_names = {PREFIX + known.name.upper() for known in fields(Settings)}
    for name in sorted(environ.keys() - known_names - OF_CLIENTS):
        if name.startswith(PREFIX):
            log.warning("%s is not a setting of this version", name)
    return Settings(**found)
