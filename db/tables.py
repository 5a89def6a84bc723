"""The tables, as the newest migration leaves them."""

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Enum,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()
instant = DateTime(timezone=True)
# Identifiers are compared byte by byte: no locale decides what is equal or what comes first.
identifier = Text(collation="C")


class MembershipAction(StrEnum):
    """What happened to a membership.

    The order is the order of events of one instant: a membership ends before the next one begins.
    """

    EXPIRED = "EXPIRED"
    SEGMENT_DELETED = "SEGMENT_DELETED"
    REMOVED = "REMOVED"
    EXPIRY_CHANGED = "EXPIRY_CHANGED"
    ADDED = "ADDED"


class TaskKind(StrEnum):
    """What a background task does."""

    REPORT = "REPORT"
    SEGMENT_CLEANUP = "SEGMENT_CLEANUP"
    IMPORT = "IMPORT"
    EXPORT = "EXPORT"


class TaskStatus(StrEnum):
    """How far a background task has come."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


class Scope(StrEnum):
    """What a caller may do; each may do also what those before it may."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


class RunState(StrEnum):
    """How far a run of a scheduled job has come."""

    RUNNING = "RUNNING"
    FAILED = "FAILED"
    FINISHED = "FINISHED"


# One row. Every change of a segment raises the version in its own transaction, so segment changes commit one
# after the other, and a reader knows from one number whether its copy of the segments is current.
catalogue = Table(
    "catalogue",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("version", BigInteger, nullable=False),
    CheckConstraint("singleton", name="catalogue_one_row"),
)

segments = Table(
    "segments",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("slug", identifier, nullable=False),
    Column("description", Text),
    Column("created_at", instant, nullable=False, server_default=text("now()")),
    Column("updated_at", instant, nullable=False, server_default=text("now()")),
    Column("deleted_at", instant),
    # The operation that deleted it: history names who caused the end of its memberships.
    Column("deleted_by", BigInteger),
    # When the last membership of a deleted segment was removed.
    Column("cleaned_at", instant),
    # The catalogue's version at the last change.
    Column("version", BigInteger, nullable=False),
    # Hundredths of a percent of all users that are members without being added; null: no rollout.
    Column("rollout", Integer),
    # Which users these are: drawn once, so that they stay the same ones, and are others in each segment.
    Column("seed", Text, nullable=False, server_default=text("(gen_random_uuid())::text")),
    CheckConstraint("rollout BETWEEN 0 AND 10000", name="segments_rollout_check"),
    CheckConstraint("slug ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,254}$'", name="segments_slug"),
    Index("segments_live_slug", "slug", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("segments_deleted_slug", "slug", "id", postgresql_where=text("deleted_at IS NOT NULL")),
    Index("segments_version", "version"),
)

# What a segment's rollout was from when on, and by whose operation.
rollout_changes = Table(
    "rollout_changes",
    metadata,
    Column("segment_id", Integer, nullable=False),
    Column("at", instant, nullable=False),
    Column("rollout", Integer),
    Column("operation_id", BigInteger, nullable=False),
    PrimaryKeyConstraint("segment_id", "at", name="rollout_changes_pkey"),
)

# Who was removed from a segment with a rollout: it takes the user in no more, until somebody adds the user again. What
# has ended stays: it explains what was.
exclusions = Table(
    "exclusions",
    metadata,
    Column("user_id", identifier, nullable=False),
    Column("segment_id", Integer, nullable=False),
    Column("excluded_at", instant, nullable=False),
    Column("ended_at", instant, nullable=False, server_default=text("'infinity'")),
    Column("operation_id", BigInteger, nullable=False),
    PrimaryKeyConstraint("user_id", "segment_id", "excluded_at", name="exclusions_pkey"),
    Index("exclusions_current", "user_id", "segment_id", unique=True, postgresql_where=text("ended_at = 'infinity'")),
    Index("exclusions_segment", "segment_id", "excluded_at"),
)

# No foreign key, no sequence: rows of one user never need a row of another, so this can be distributed by user_id.
memberships = Table(
    "memberships",
    metadata,
    Column("user_id", identifier, nullable=False),
    Column("segment_id", Integer, nullable=False),
    Column("added_at", instant, nullable=False),
    Column("expires_at", instant, nullable=False, server_default=text("'infinity'")),
    PrimaryKeyConstraint("user_id", "segment_id", name="memberships_pkey"),
    # With the expiry, so that members are counted from the index alone.
    Index("memberships_segment", "segment_id", "user_id", postgresql_include=["expires_at"]),
    Index("memberships_expiry", "expires_at", postgresql_where=text("expires_at < 'infinity'")),
)

# Partitioned by month of `at`; db/partitions.py makes the partitions.
membership_events = Table(
    "membership_events",
    metadata,
    Column("user_id", identifier, nullable=False),
    Column("segment_id", Integer, nullable=False),
    Column("action", Enum(MembershipAction, name="membership_action"), nullable=False),
    Column("at", instant, nullable=False),
    # The expiry from then on, `infinity` when there is none; null where the event ends the membership.
    Column("expires_at", instant),
    # Null when nobody asked for it: the membership expired.
    Column("operation_id", BigInteger),
    Index("membership_events_user", "user_id", "at"),
    Index("membership_events_at", "at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    postgresql_partition_by="RANGE (at)",
)

# One row per mutation: the idempotency record and the audit trail at once.
operations = Table(
    "operations",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("client", identifier, nullable=False),
    Column("kind", Text, nullable=False),
    # Null once the key's retention is over; the row stays as long as the history it explains.
    Column("idempotency_key", identifier),
    Column("fingerprint", LargeBinary, nullable=False),
    # Null only inside the transaction that is still at work.
    Column("result", JSONB),
    Column("at", instant, nullable=False, server_default=text("now()")),
    # Drawn by whoever makes a change in one statement, so that, asking again, they know their own operation.
    Column("attempt", BigInteger),
    UniqueConstraint("client", "idempotency_key", name="operations_key"),
    # For giving keys up once their retention is over.
    Index("operations_keyed", "id", "at", postgresql_where=text("idempotency_key IS NOT NULL")),
)

# Work that nobody waits for: what callers poll, and the queue that workers take from.
tasks = Table(
    "tasks",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=text("uuidv7()")),
    Column("kind", Enum(TaskKind, name="task_kind"), nullable=False),
    Column("status", Enum(TaskStatus, name="task_status"), nullable=False, server_default=text("'QUEUED'")),
    # Whose it is.
    Column("client", identifier, nullable=False),
    # Null when a job has made it.
    Column("operation_id", BigInteger),
    # What a cleanup cleans up.
    Column("segment_id", Integer),
    Column("args", JSONB, nullable=False, server_default=text("'{}'")),
    # Rises with every claim. Whoever works on the task writes only while it is still theirs.
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    # Attempts that failed, or whose worker was not heard of again.
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("rows_done", BigInteger, nullable=False, server_default=text("0")),
    # Null when it cannot be known.
    Column("rows_total", BigInteger),
    Column("result", JSONB),
    Column("error", Text),
    Column("created_at", instant, nullable=False, server_default=text("now()")),
    # Not to be claimed before.
    Column("run_after", instant, nullable=False, server_default=text("now()")),
    Column("started_at", instant),
    Column("heartbeat_at", instant),
    Column("finished_at", instant),
    # When its file, if it made one, was past its retention.
    Column("file_removed_at", instant),
    # What was uploaded for it; an import waits for that.
    Column("upload", JSONB),
    # How far it has come, for whoever goes on with it.
    Column("state", JSONB),
    Index("tasks_unfinished", "id", postgresql_where=text("status IN ('QUEUED', 'RUNNING')")),
    Index("tasks_client", "client", "id"),
    Index("tasks_finished", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    Index(
        "tasks_with_file",
        "finished_at",
        postgresql_where=text("kind <> 'SEGMENT_CLEANUP' AND status = 'SUCCEEDED' AND file_removed_at IS NULL"),
    ),
    # One at a time for each segment.
    Index(
        "tasks_cleanup",
        "segment_id",
        unique=True,
        postgresql_where=text("kind = 'SEGMENT_CLEANUP' AND status IN ('QUEUED', 'RUNNING')"),
    ),
)

# What the clock has caused: the row decides who runs a slot, and is its record.
job_runs = Table(
    "job_runs",
    metadata,
    Column("job", Text, nullable=False),
    # When it was due; of a run by hand, when that began.
    Column("slot", instant, nullable=False),
    Column("state", Enum(RunState, name="run_state"), nullable=False),
    # Host and process.
    Column("runner", Text, nullable=False),
    Column("attempt", Integer, nullable=False, server_default=text("1")),
    Column("started_at", instant, nullable=False),
    Column("heartbeat_at", instant, nullable=False),
    Column("finished_at", instant),
    # How many of what.
    Column("stats", JSONB, nullable=False, server_default=text("'{}'")),
    Column("error", Text),
    PrimaryKeyConstraint("job", "slot", name="job_runs_pkey"),
)

# What processes share and nobody else knows.
secrets = Table(
    "secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

# Who may ask for what. Several of one name are one caller's: the old one and the new one while they are exchanged.
tokens = Table(
    "tokens",
    metadata,
    # Part of the token itself.
    Column("id", identifier, primary_key=True),
    # Whose it is: the client of operations and tasks.
    Column("name", identifier, nullable=False),
    Column("scope", Enum(*(scope.value for scope in Scope), name="token_scope"), nullable=False),
    # SHA-256 of the secret, which nobody but the caller has.
    Column("hash", LargeBinary, nullable=False),
    Column("created_at", instant, nullable=False, server_default=text("now()")),
    # Null: never.
    Column("expires_at", instant),
    Column("revoked_at", instant),
    # To the minute.
    Column("last_used_at", instant),
)
