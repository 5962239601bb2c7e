"""Alembic's entry: runs inside the transaction that `tenants.tables.migrate` opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
