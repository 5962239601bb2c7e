"""Objects of segments that cannot be used."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    name = sa.String(64)
    op.create_table(
        "quarantine",
        sa.Column("path", sa.String(512), primary_key=True),
        sa.Column("tenant", name, nullable=False),
        sa.Column("collection", name, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("slot", sa.Integer, nullable=False),
        sa.Column("segment", name, nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("fault", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("seen_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Index("quarantine_by_shard", "tenant", "collection", "generation", "slot"),
    )
