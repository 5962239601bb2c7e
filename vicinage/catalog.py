"""The catalog's engine: SQLAlchemy over SQLite or PostgreSQL, and one place that says when it is away."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from vicinage.errors import Refused, Unavailable

BUSY_S: Final = 20
"""How long a change may wait for its turn before it answers Unavailable."""


def open_catalog(url: str) -> Engine:
    """The engine at a SQLAlchemy URL: `sqlite:////path` or `postgresql+psycopg://user:password@host/name`."""
    match make_url(url).get_backend_name():
        case "sqlite":
            return _sqlite(url)
        case "postgresql":
            return _postgres(url)
        case other:
            raise Refused(
                f"catalog_url: {other} is not supported; use sqlite or postgresql+psycopg", field="catalog_url"
            )


@contextmanager
def change(engine: Engine) -> Iterator[Connection]:
    """One write transaction: durable when the block ends, undone when it raises. Raises Unavailable."""
    with _said(), engine.begin() as connection:
        yield connection


@contextmanager
def look(engine: Engine) -> Iterator[Connection]:
    """One read-only connection. Raises Unavailable."""
    with _said(), engine.connect().execution_options(vicinage_reads=True) as connection:
        yield connection


@contextmanager
def _said() -> Iterator[None]:
    try:
        yield
    except (OperationalError, PoolTimeout) as error:
        raise Unavailable(f"the catalog is away: {_first_line(error)}", dependency="catalog") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable(f"the catalog is away: {_first_line(error)}", dependency="catalog") from error
        raise


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]


def _sqlite(url: str) -> Engine:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise Refused(
            "catalog_url: SQLite needs a file, so that every process sees the same catalog", field="catalog_url"
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_S}, pool_size=8, max_overflow=24, pool_timeout=BUSY_S)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we begin transactions ourselves, below: the driver would begin them late
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        reads = connection.get_execution_options().get("vicinage_reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _postgres(url: str) -> Engine:
    arguments = {
        "connect_timeout": 5,
        "options": f"-c statement_timeout={BUSY_S * 1000} -c lock_timeout={BUSY_S * 1000}",
    }
    return create_engine(
        url, connect_args=arguments, pool_size=8, max_overflow=24, pool_timeout=BUSY_S, pool_pre_ping=True
    )
