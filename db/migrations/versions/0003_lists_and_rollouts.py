"""Rollouts with their history, and what imports and exports need of tasks."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TYPE task_kind ADD VALUE 'IMPORT'")
    op.execute("ALTER TYPE task_kind ADD VALUE 'EXPORT'")
    op.execute("ALTER TABLE segments ADD COLUMN rollout integer CHECK (rollout BETWEEN 0 AND 10000)")
    # Computed for each row: a segment of before gets a seed of its own, as those have that are made from now on.
    op.execute("ALTER TABLE segments ADD COLUMN seed text NOT NULL DEFAULT gen_random_uuid()::text")
    op.execute("""
        CREATE TABLE rollout_changes (
            segment_id   integer NOT NULL,
            at           timestamptz NOT NULL,
            rollout      integer,
            operation_id bigint NOT NULL,
            PRIMARY KEY (segment_id, at)
        )
    """)
    op.execute("""
        CREATE TABLE exclusions (
            user_id     text COLLATE "C" NOT NULL,
            segment_id  integer NOT NULL,
            excluded_at timestamptz NOT NULL,
            ended_at    timestamptz NOT NULL DEFAULT 'infinity',
            operation_id bigint NOT NULL,
            PRIMARY KEY (user_id, segment_id, excluded_at)
        )
    """)
    op.execute("CREATE UNIQUE INDEX exclusions_current ON exclusions (user_id, segment_id) WHERE ended_at = 'infinity'")
    op.execute("CREATE INDEX exclusions_segment ON exclusions (segment_id, excluded_at)")
    op.execute("DROP INDEX memberships_segment")
    op.execute("CREATE INDEX memberships_segment ON memberships (segment_id, user_id) INCLUDE (expires_at)")
    op.execute("ALTER TABLE tasks ADD COLUMN upload jsonb")
    op.execute("ALTER TABLE tasks ADD COLUMN state jsonb")
    op.execute("DROP INDEX tasks_with_file")
    op.execute("""
        CREATE INDEX tasks_with_file ON tasks (finished_at)
        WHERE kind <> 'SEGMENT_CLEANUP' AND status = 'SUCCEEDED' AND file_removed_at IS NULL
    """)


def downgrade() -> None:
    op.execute("DELETE FROM tasks WHERE kind IN ('IMPORT', 'EXPORT')")
    # PostgreSQL takes no value away from a type: another one takes its place.
    op.execute("DROP INDEX tasks_with_file, tasks_cleanup")
    op.execute("ALTER TYPE task_kind RENAME TO task_kind_0003")
    op.execute("CREATE TYPE task_kind AS ENUM ('REPORT', 'SEGMENT_CLEANUP')")
    op.execute("ALTER TABLE tasks ALTER COLUMN kind TYPE task_kind USING kind::text::task_kind")
    op.execute("DROP TYPE task_kind_0003")
    op.execute("""
        CREATE INDEX tasks_with_file ON tasks (finished_at)
        WHERE kind = 'REPORT' AND status = 'SUCCEEDED' AND file_removed_at IS NULL
    """)
    op.execute("""
        CREATE UNIQUE INDEX tasks_cleanup ON tasks (segment_id)
        WHERE kind = 'SEGMENT_CLEANUP' AND status IN ('QUEUED', 'RUNNING')
    """)
    op.execute("DROP INDEX memberships_segment")
    op.execute("CREATE INDEX memberships_segment ON memberships (segment_id, user_id)")
    op.execute("ALTER TABLE tasks DROP COLUMN upload, DROP COLUMN state")
    op.execute("DROP TABLE exclusions, rollout_changes")
    op.execute("ALTER TABLE segments DROP COLUMN rollout, DROP COLUMN seed")
