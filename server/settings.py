"""What the environment decides: read once, checked at once, and handed down as a value."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jobs.purge import Retention
from resolvers.context import Limits
from server.documents import DocumentLimits
from server.setting_kinds import (
    ANY,
    DATABASE,
    FILE,
    FILES,
    FOLDER,
    HOSTS,
    HTTP_URL,
    NETWORKS,
    ORIGIN,
    ORIGINS,
    REDIS,
    TEXT,
    Kind,
    Network,
    one_of,
    whole,
)

PREFIX = "SEGMENTQL_"
# What the commands that ask a server take from the same environment (server/client_commands.py).
OF_CLIENTS = frozenset({"SEGMENTQL_URL", "SEGMENTQL_TOKEN", "SEGMENTQL_STATE_DIR"})
log = logging.getLogger(__name__)


class StartError(Exception):
    """Why the service does not start: one line for a person, with the remedy."""


def setting(default: Any, kind: Kind, description: str) -> Any:
    return field(default=default, metadata={"kind": kind, "description": description})


@dataclass(frozen=True, slots=True)
class Settings:
    host: str = setting("127.0.0.1", TEXT, "The address to listen on.")
    port: int = setting(8080, whole(0, 65535), "The port to listen on; 0 takes a free one.")
    workers: int = setting(1, whole(1, 64), "Server processes.")
    authentication: str = setting(
        "off",
        one_of("off", "required"),
        "Whether callers must show a token (`segmentql token create`), or a JWT if its issuer is set.",
    )
    unauthenticated: str = setting(
        "loopback",
        one_of("loopback", "anywhere"),
        "Where callers are served without authentication. `anywhere` only where the network itself is the guard.",
    )
    jwt_issuer: str | None = setting(None, TEXT, "Whose JWTs are accepted besides our tokens: what their `iss` says.")
    jwt_audience: str | None = setting(None, TEXT, "What the `aud` of a JWT must name.")
    jwt_jwks_url: str | None = setting(
        None, HTTP_URL, "Where the issuer keeps its public keys, as a JWK set. https, but on this machine."
    )
    jwt_client_claim: str = setting("sub", TEXT, "The claim of a JWT that says who the caller is.")
    jwt_scope_claim: str = setting(
        "scope",
        TEXT,
        "The claim that says what the caller may do: words, or a list of them, among which are `segmentql:read`, "
        "`segmentql:write` or `segmentql:admin`. The words can be others: see SEGMENTQL_JWT_SCOPE_PREFIX.",
    )
    jwt_scope_prefix: str = setting("segmentql:", ANY, "What stands before `read`, `write` and `admin` in that claim.")
    allowed_hosts: tuple[str, ...] | None = setting(
        None,
        HOSTS,
        "Names that callers may use for this service in `Host`. Without it: where nobody is authenticated the names of "
        "this machine and that of the public URL, elsewhere any.",
    )
    cors_origins: tuple[str, ...] = setting(
        (), ORIGINS, "Origins whose pages may ask from a browser, with a token of their own. Without it: none."
    )
    trusted_proxies: tuple[Network, ...] = setting(
        (), NETWORKS, "Proxies that are believed what `X-Forwarded-For` says of the caller's address. Without it: none."
    )
    graphiql: str = setting(
        "auto", one_of("auto", "on", "off"), "Whether GraphiQL is served. `auto`: where only this machine reaches us."
    )
    introspection: str = setting(
        "auto",
        one_of("auto", "on", "off"),
        "Whether callers may ask for the schema, and are told names that they may have meant. `auto`: likewise.",
    )
    persisted_queries: str = setting(
        "automatic",
        one_of("automatic", "off"),
        "Whether a document that was sent once can be named by its hash from then on, as Apollo Client and urql do.",
    )
    trusted_documents: Path | None = setting(
        None,
        FILE,
        "A manifest of documents, as Relay, Apollo or GraphQL Code Generator write it. With it these alone are "
        "executed, and GraphiQL is not served.",
    )
    rate_limit: int = setting(
        1_000,
        whole(0, 1_000_000),
        "Points that a client (without authentication: an address) gets back each second; 0: without a limit.",
    )
    rate_burst: int = setting(10_000, whole(200, 10_000_000), "Points that a client can have, and spend at once.")
    login_failures: int = setting(
        20, whole(1, 10_000), "Wrong tokens that an address may show in a minute, before it is not looked at any more."
    )
    max_concurrent: int = setting(
        1_000,
        whole(1, 100_000),
        "Requests that one process has under way, half of them mutations at most, and of one client an eighth; further "
        "ones are OVERLOADED.",
    )
    max_concurrent_per_client: int = setting(
        500, whole(1, 100_000), "Of these, of one client (without authentication: of one address)."
    )
    max_subscriptions_per_client: int = setting(
        2_000,
        whole(1, 100_000),
        "Subscriptions of one client (without authentication: of one address) that one process has open, and "
        "connections that they go over.",
    )
    database_url: str | None = setting(
        None, DATABASE, "PostgreSQL 18. Without it, and without a Redis URL, own servers are started."
    )
    redis_url: str | None = setting(None, REDIS, "Redis 7 or newer, or Valkey.")
    data_dir: Path = setting(Path(".segmentql"), FOLDER, "Where the own servers keep their data.")
    database_wait: int = setting(
        30, whole(0, 3600), "Seconds to wait at the start for a database that is not there yet."
    )
    pool_size: int = setting(14, whole(4, 200), "Connections of one process for mutations.")
    read_pool_size: int = setting(6, whole(3, 200), "Connections of one process for queries.")
    redis_budget_ms: int = setting(
        50,
        whole(1, 5000),
        "Milliseconds that a read waits for Redis, before it does without; a mutation waits six times as long to have "
        "what it changed forgotten.",
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
        "The port on which Prometheus finds `/metrics`; further server processes take the ports that follow. Without "
        "it there are none.",
    )
    metrics_host: str | None = setting(
        None, TEXT, "The address of that port, which asks nobody who they are. Without it: that of the service."
    )
    fast_path: str = setting(
        "on",
        one_of("on", "off"),
        "Whether queries that were seen before are answered by code that was compiled for them. The answers are the "
        "same; `off` is for finding out whether they are.",
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
    max_header_bytes: int = setting(32_768, whole(1_024, 1_048_576), "Bytes of one request's headers together.")
    drain_seconds: int = setting(
        0,
        whole(0, 300),
        "Seconds that a process which is told to stop says that it is not ready, and serves on: behind a balancer, as "
        "long as that takes to notice.",
    )
    log_level: str = setting("INFO", one_of("DEBUG", "INFO", "WARNING", "ERROR"), "What is logged, on standard error.")
    log_format: str = setting(
        "console", one_of("console", "json"), "Lines for people, in colours on a terminal, or one JSON object a line."
    )
    slow_ms: int = setting(
        1_000, whole(1, 300_000), "Milliseconds from which on a request is logged as slow, with its document's hash."
    )
    tracing: str = setting(
        "off",
        one_of("off", "otlp"),
        "Whether OpenTelemetry traces are sent, by OTLP over HTTP; where to, and how many, the `OTEL_…` variables say.",
    )

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
