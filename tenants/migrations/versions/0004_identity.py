"""The identity of collections: it distinguishes creations of one name."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("collections", sa.Column("uid", sa.String(32), nullable=False, server_default=""))
    op.add_column(
        "collections", sa.Column("first_offsets", sa.Text, nullable=False, server_default="[]")
    )
    name = sa.String(64)
    rows = sa.table(
        "collections", sa.column("tenant", name), sa.column("name", name), sa.column("uid", name)
    )
    connection = op.get_bind()
    for tenant, collection in connection.execute(sa.select(rows.c.tenant, rows.c.name)).all():
        where = (rows.c.tenant == tenant) & (rows.c.name == collection)
        connection.execute(sa.update(rows).where(where).values(uid=secrets.token_hex(8)))
