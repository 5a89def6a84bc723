"""Background tasks, the runs of scheduled jobs, and the secret that signs links to files."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE TYPE task_kind AS ENUM ('REPORT', 'SEGMENT_CLEANUP')")
    op.execute("CREATE TYPE task_status AS ENUM ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELED')")
    op.execute("CREATE TYPE run_state AS ENUM ('RUNNING', 'FAILED', 'FINISHED')")
    op.execute("""
        CREATE TABLE tasks (
            id              uuid PRIMARY KEY DEFAULT uuidv7(),
            kind            task_kind NOT NULL,
            status          task_status NOT NULL DEFAULT 'QUEUED',
            client          text COLLATE "C" NOT NULL,
            operation_id    bigint,
            segment_id      integer,
            args            jsonb NOT NULL DEFAULT '{}',
            attempt         integer NOT NULL DEFAULT 0,
            failures        integer NOT NULL DEFAULT 0,
            rows_done       bigint NOT NULL DEFAULT 0,
            rows_total      bigint,
            result          jsonb,
            error           text,
            created_at      timestamptz NOT NULL DEFAULT now(),
            run_after       timestamptz NOT NULL DEFAULT now(),
            started_at      timestamptz,
            heartbeat_at    timestamptz,
            finished_at     timestamptz,
            file_removed_at timestamptz
        ) WITH (autovacuum_vacuum_scale_factor = 0.02, fillfactor = 70)
    """)
    op.execute("CREATE INDEX tasks_unfinished ON tasks (id) WHERE status IN ('QUEUED', 'RUNNING')")
    op.execute("CREATE INDEX tasks_client ON tasks (client, id)")
    op.execute("CREATE INDEX tasks_finished ON tasks (finished_at) WHERE finished_at IS NOT NULL")
    op.execute("""
        CREATE INDEX tasks_with_file ON tasks (finished_at)
        WHERE kind = 'REPORT' AND status = 'SUCCEEDED' AND file_removed_at IS NULL
    """)
    op.execute("""
        CREATE UNIQUE INDEX tasks_cleanup ON tasks (segment_id)
        WHERE kind = 'SEGMENT_CLEANUP' AND status IN ('QUEUED', 'RUNNING')
    """)
    op.execute("""
        CREATE TABLE job_runs (
            job          text NOT NULL,
            slot         timestamptz NOT NULL,
            state        run_state NOT NULL,
            runner       text NOT NULL,
            attempt      integer NOT NULL DEFAULT 1,
            started_at   timestamptz NOT NULL,
            heartbeat_at timestamptz NOT NULL,
            finished_at  timestamptz,
            stats        jsonb NOT NULL DEFAULT '{}',
            error        text,
            PRIMARY KEY (job, slot)
        )
    """)
    op.execute("CREATE TABLE secrets (name text PRIMARY KEY, value bytea NOT NULL)")
    # Two random uuids have 244 random bits.
    op.execute("""
        INSERT INTO secrets VALUES
            ('links', sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())))
    """)
    op.execute("CREATE INDEX operations_keyed ON operations (id, at) WHERE idempotency_key IS NOT NULL")
    # Kept up to date as rows come: a deletion looks for events that are dated in the future.
    op.execute("DROP INDEX membership_events_at")
    op.execute("CREATE INDEX membership_events_at ON membership_events USING brin (at) WITH (autosummarize = on)")
    # Segments that were deleted before there were tasks.
    op.execute("""
        INSERT INTO tasks (kind, client, operation_id, segment_id)
        SELECT 'SEGMENT_CLEANUP', coalesce(o.client, 'cleanup'), s.deleted_by, s.id
        FROM segments AS s LEFT JOIN operations AS o ON o.id = s.deleted_by
        WHERE s.deleted_at IS NOT NULL AND s.cleaned_at IS NULL
        ORDER BY s.id
    """)


def downgrade() -> None:
    op.execute("DROP INDEX operations_keyed")
    op.execute("DROP INDEX membership_events_at")
    op.execute("CREATE INDEX membership_events_at ON membership_events USING brin (at)")
    for table in ("secrets", "job_runs", "tasks"):
        op.execute(f"DROP TABLE {table}")
    for type_ in ("run_state", "task_status", "task_kind"):
        op.execute(f"DROP TYPE {type_}")
