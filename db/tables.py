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
    CheckConstraint("slug ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,254}$'", name="segments_slug"),
    Index("segments_live_slug", "slug", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("segments_deleted_slug", "slug", "id", postgresql_where=text("deleted_at IS NOT NULL")),
    Index("segments_version", "version"),
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
    Index("memberships_segment", "segment_id", "user_id"),
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
    Index("membership_events_at", "at", postgresql_using="brin"),
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
    UniqueConstraint("client", "idempotency_key", name="operations_key"),
)
