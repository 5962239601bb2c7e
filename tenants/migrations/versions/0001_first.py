"""The first catalog."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


name, big = sa.String(64), sa.BigInteger


def upgrade() -> None:
    create_version()
    create_tenants()
    create_collections()
    create_jobs()


def create_version() -> None:
    version = op.create_table(
        "catalog_version",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("version", big, nullable=False),
        sa.Column("manifests", big, nullable=False),
    )
    op.bulk_insert(version, [{"id": 1, "version": 1, "manifests": 0}])


def create_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", name, primary_key=True),
        sa.Column("priority", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_ms", big, nullable=False),
        sa.Column("row_version", big, nullable=False, index=True),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", name, nullable=True, index=True),
        sa.Column("scopes", name, nullable=False),
        sa.Column("sha256", name, nullable=False),
        sa.Column("created_ms", big, nullable=False),
        sa.Column("expires_ms", big, nullable=True),
        sa.Column("revoked_ms", big, nullable=True),
    )


def create_collections() -> None:
    op.create_table(
        "models",
        sa.Column("name", name, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("dimension", sa.Integer, nullable=False),
        sa.Column("window_tokens", sa.Integer, nullable=False),
        sa.Column("normalized", sa.Boolean, nullable=False),
        sa.Column("row_version", big, nullable=False, index=True),
    )
    op.create_table(
        "collections",
        sa.Column("tenant", name, primary_key=True),
        sa.Column("name", name, primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("live", sa.Integer, nullable=False),
        sa.Column("next_generation", sa.Integer, nullable=False),
        sa.Column("objectives", sa.Text, nullable=False),
        sa.Column("created_ms", big, nullable=False),
        sa.Column("row_version", big, nullable=False, index=True),
    )
    op.create_table(
        "generations",
        sa.Column("tenant", name, primary_key=True),
        sa.Column("collection", name, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("model", name, nullable=True),
        sa.Column("dimension", sa.Integer, nullable=False),
        sa.Column("metric", sa.String(16), nullable=False),
        sa.Column("index", name, nullable=False),
        sa.Column("slots", sa.Text, nullable=False),
        sa.Column("starts", sa.Text, nullable=False),
        sa.Column("created_ms", big, nullable=False),
        sa.Column("row_version", big, nullable=False, index=True),
    )
    op.create_table(
        "manifests",
        sa.Column("tenant", name, primary_key=True),
        sa.Column("collection", name, primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True),
        sa.Column("slot", sa.Integer, primary_key=True),
        sa.Column("version", big, nullable=False),
        sa.Column("epoch", big, nullable=False),
        sa.Column("sealed", big, nullable=False),
        sa.Column("segments", sa.Text, nullable=False),
        sa.Column("change", big, nullable=False),
        sa.Index("manifests_by_change", "change"),
    )


def create_jobs() -> None:
    op.create_table(
        "leases",
        sa.Column("resource", sa.String(128), primary_key=True),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("epoch", big, nullable=False),
        sa.Column("expires_ms", big, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", name, nullable=False, index=True),
        sa.Column("collection", name, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("progress", sa.Text, nullable=False),
        sa.Column("created_ms", big, nullable=False),
        sa.Column("version", big, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("seq", big, primary_key=True, autoincrement=False),
        sa.Column("at_ms", big, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", name, nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("before", sa.Text, nullable=True),
        sa.Column("after", sa.Text, nullable=True),
        sa.Column("previous", name, nullable=False),
        sa.Column("hash", name, nullable=False),
    )
