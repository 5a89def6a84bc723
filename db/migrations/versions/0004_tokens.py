"""Tokens of callers."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE TYPE token_scope AS ENUM ('read', 'write', 'admin')")
    op.execute("""
        CREATE TABLE tokens (
            id           text COLLATE "C" PRIMARY KEY,
            name         text COLLATE "C" NOT NULL,
            scope        token_scope NOT NULL,
            hash         bytea NOT NULL,
            created_at   timestamptz NOT NULL DEFAULT now(),
            expires_at   timestamptz,
            revoked_at   timestamptz,
            last_used_at timestamptz
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE tokens")
    op.execute("DROP TYPE token_scope")
