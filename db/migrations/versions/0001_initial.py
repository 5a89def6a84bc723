"""Segments, memberships, their history, and the operations that changed them."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE catalogue (
            singleton boolean PRIMARY KEY DEFAULT true CONSTRAINT catalogue_one_row CHECK (singleton),
            version   bigint NOT NULL
        )
    """)
    op.execute("INSERT INTO catalogue (version) VALUES (0)")
    op.execute("""
        CREATE TABLE segments (
            id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            slug        text COLLATE "C" NOT NULL,
            description text,
            created_at  timestamptz NOT NULL DEFAULT now(),
            updated_at  timestamptz NOT NULL DEFAULT now(),
            deleted_at  timestamptz,
            deleted_by  bigint,
            cleaned_at  timestamptz,
            version     bigint NOT NULL,
            CONSTRAINT segments_slug CHECK (slug ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,254}$')
        )
    """)
    op.execute("CREATE UNIQUE INDEX segments_live_slug ON segments (slug) WHERE deleted_at IS NULL")
    op.execute("CREATE INDEX segments_deleted_slug ON segments (slug, id) WHERE deleted_at IS NOT NULL")
    op.execute("CREATE INDEX segments_version ON segments (version)")
    op.execute("""
        CREATE TABLE memberships (
            user_id    text COLLATE "C" NOT NULL,
            segment_id integer NOT NULL,
            added_at   timestamptz NOT NULL,
            expires_at timestamptz NOT NULL DEFAULT 'infinity',
            PRIMARY KEY (user_id, segment_id)
        ) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05)
    """)
    op.execute("CREATE INDEX memberships_segment ON memberships (segment_id, user_id)")
    op.execute("CREATE INDEX memberships_expiry ON memberships (expires_at) WHERE expires_at < 'infinity'")
    op.execute("""
        CREATE TYPE membership_action AS ENUM ('EXPIRED', 'SEGMENT_DELETED', 'REMOVED', 'EXPIRY_CHANGED', 'ADDED')
    """)
    op.execute("""
        CREATE TABLE membership_events (
            user_id      text COLLATE "C" NOT NULL,
            segment_id   integer NOT NULL,
            action       membership_action NOT NULL,
            at           timestamptz NOT NULL,
            expires_at   timestamptz,
            operation_id bigint
        ) PARTITION BY RANGE (at)
    """)
    op.execute("CREATE INDEX membership_events_user ON membership_events (user_id, at)")
    op.execute("CREATE INDEX membership_events_at ON membership_events USING brin (at)")
    op.execute("""
        CREATE TABLE operations (
            id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            client          text COLLATE "C" NOT NULL,
            kind            text NOT NULL,
            idempotency_key text COLLATE "C",
            fingerprint     bytea NOT NULL,
            result          jsonb,
            at              timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT operations_key UNIQUE (client, idempotency_key)
        )
    """)


def downgrade() -> None:
    for table in ("operations", "membership_events", "memberships", "segments", "catalogue"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP TYPE membership_action")
