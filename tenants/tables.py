"""The catalog's tables, and `migrate`, which upgrades a database to the newest schema."""

from pathlib import Path
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    insert,
    select,
    text,
)

from tenants.entities import DEFAULT_MODEL
from vicinage.catalog import change

metadata = MetaData()

catalog_version = Table(
    "catalog_version",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("manifests", BigInteger, nullable=False),
)
tenants = Table(
    "tenants",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("priority", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("row_version", BigInteger, nullable=False, index=True),
)
partition_maps = Table(
    "partition_maps",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("topic_id", String(64), nullable=False),
    Column("partitions", Integer, nullable=False),
    Column("starts", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("row_version", BigInteger, nullable=False, index=True),
)
ingest_partitions = Table(
    "ingest_partitions",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("topic_id", String(64), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("since_ms", BigInteger, nullable=False),
    Column("kind", String(32), nullable=True),
    Column("reason", Text, nullable=True),
    Column("updated_ms", BigInteger, nullable=False),
)
keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=True, index=True),
    Column("scopes", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=True),
    Column("revoked_ms", BigInteger, nullable=True),
)
models = Table(
    "models",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("location", Text, nullable=False),
    Column("dimension", Integer, nullable=False),
    Column("window_tokens", Integer, nullable=False),
    Column("normalized", Boolean, nullable=False),
    Column("query_prompt", Text, nullable=False, server_default=""),
    Column("document_prompt", Text, nullable=False, server_default=""),
    Column("retired", Boolean, nullable=False, server_default=false()),
    Column("row_version", BigInteger, nullable=False, index=True),
)
collections = Table(
    "collections",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("live", Integer, nullable=False),
    Column("next_generation", Integer, nullable=False),
    Column("objectives", Text, nullable=False),
    Column("uid", String(32), nullable=False),
    Column("first_offsets", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("row_version", BigInteger, nullable=False, index=True),
)
generations = Table(
    "generations",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("collection", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("model", String(64), nullable=True),
    Column("dimension", Integer, nullable=False),
    Column("metric", String(16), nullable=False),
    Column("index", String(64), nullable=False),
    Column("slots", Text, nullable=False),
    Column("starts", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("row_version", BigInteger, nullable=False, index=True),
)
manifests = Table(
    "manifests",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("collection", String(64), primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("sealed", BigInteger, nullable=False),
    Column("segments", Text, nullable=False),
    Column("change", BigInteger, nullable=False),
    Index("manifests_by_change", "change"),
)
quarantine = Table(
    "quarantine",
    metadata,
    Column("path", String(512), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("collection", String(64), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("slot", Integer, nullable=False),
    Column("segment", String(64), nullable=False),
    Column("role", String(32), nullable=False),
    Column("fault", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Index("quarantine_by_shard", "tenant", "collection", "generation", "slot"),
)
ingest_lanes = Table(
    "ingest_lanes",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("collection", String(64), primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("model", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
)
leases = Table(
    "leases",
    metadata,
    Column("resource", String(128), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
)
drafts = Table(
    "drafts",
    metadata,
    Column("folder", String(512), primary_key=True),
    Column("resource", String(128), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("begun_ms", BigInteger, nullable=False),
)
recent_queries = Table(
    "recent_queries",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("collection", String(64), primary_key=True),
    Column("model", String(64), nullable=False),
    Column("dimension", Integer, nullable=False),
    Column("vectors", LargeBinary, nullable=False),
    Column("kept_ms", BigInteger, nullable=False),
)
recall_history = Table(
    "recall_history",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("collection", String(64), primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("samples", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("kept_ms", BigInteger, nullable=False),
)
JOBS_ENDED: Final = ("done", "canceled", "failed")
"""Final states of a job."""
jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("collection", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("spec", Text, nullable=False),
    Column("progress", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
)
audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("before", Text, nullable=True),
    Column("after", Text, nullable=True),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("mac", String(64), nullable=True),
)

_LOCK: Final = 0x56494349
"""Advisory lock under which PostgreSQL migrates; SQLite's write transaction is lock enough."""


def migrate(engine: Engine) -> None:
    """Upgrades the catalog to the newest schema. Idempotent; safe for concurrent processes."""
    from alembic import command
    from alembic.config import Config

    with change(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if connection.execute(select(models.c.name).limit(1)).first() is None:
            connection.execute(insert(models).values(**_model_row(), row_version=1))


def _model_row() -> dict[str, object]:
    return {name: getattr(DEFAULT_MODEL, name) for name in DEFAULT_MODEL.__dataclass_fields__}
