"""Alembic's entry: runs the migrations on the connection that `db.migrate` hands over."""

from alembic import context

from db.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # All missing migrations are one transaction: a failure leaves the database as it was.
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
