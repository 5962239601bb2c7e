"""The catalog's engine: SQLAlchemy over SQLite or PostgreSQL, and the translation of its errors."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from vicinage.errors import Corrupt, Refused, Unavailable

BUSY_S: Final = 20
"""Longest wait of a change for a lock; then it raises Unavailable."""
IDLE_S: Final = 60
"""Longest idle time of an open change; then the server rolls it back: its client is gone."""
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_GONE: Final = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)


def open_catalog(url: str) -> Engine:
    """Returns the engine of a SQLAlchemy URL, without connecting yet.

    The URL is `sqlite:////path` or `postgresql+psycopg://user:password@host/name`. Raises Refused
    for an invalid URL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:  # the message omits the URL, which may contain a password
        raise Refused(
            "catalog_url is not a SQLAlchemy URL: sqlite:////path or postgresql+psycopg://…",
            field="catalog_url",
        ) from None
    match parsed.get_backend_name():
        case "sqlite":
            return _sqlite(parsed)
        case "postgresql":
            return _postgres(parsed)
        case other:
            raise Refused(
                f"catalog_url: {other} is not supported; use sqlite or postgresql+psycopg",
                field="catalog_url",
            )


@contextmanager
def change(engine: Engine) -> Iterator[Connection]:
    """Opens a write transaction: committed at the end of the block, rolled back if it raises.

    Raises Unavailable.
    """
    with _translated_errors(), engine.begin() as connection:
        yield connection


@contextmanager
def look(engine: Engine) -> Iterator[Connection]:
    """Opens a read-only snapshot: every statement in the block sees the same committed catalog.

    Raises Unavailable.
    """
    # SQLite's deferred transaction is a snapshot; PostgreSQL's default takes one per statement.
    snapshot = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    options = snapshot if engine.dialect.name == "postgresql" else {"vicinage_reads": True}
    with _translated_errors(), engine.connect().execution_options(**options) as connection:
        yield connection


def unreachable(error: Unavailable) -> bool:
    """Returns whether the catalog could not be reached.

    A busy, slow or full catalog was reached.
    """
    cause = error.__cause__
    if not isinstance(cause, DBAPIError):
        return False  # this process's pool has no free connection
    if cause.connection_invalidated:
        return True
    code = getattr(cause.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _GONE  # the low byte is the primary result code
    # each error from a PostgreSQL session has one
    return getattr(cause.orig, "sqlstate", None) is None


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, PoolTimeout) as error:
        raise Unavailable(
            f"the catalog is unavailable: {_first_line(error)}", dependency="catalog"
        ) from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlite_errorcode", None) in _DAMAGED:
            raise Corrupt(
                f"the catalog's file is damaged: {_first_line(error)}", path="catalog"
            ) from error
        if error.connection_invalidated:
            raise Unavailable(
                f"the catalog is unavailable: {_first_line(error)}", dependency="catalog"
            ) from error
        raise


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]


def _sqlite(url: URL) -> Engine:
    path = url.database
    if not path or path == ":memory:":
        raise Refused(
            "catalog_url: SQLite needs a file, so that every process sees the same catalog",
            field="catalog_url",
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url, connect_args={"timeout": BUSY_S}, pool_size=8, max_overflow=24, pool_timeout=BUSY_S
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        # `begun` begins transactions: the driver would begin them late
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        reads = connection.get_execution_options().get("vicinage_reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _postgres(url: URL) -> Engine:
    limits = {
        "statement_timeout": BUSY_S,
        "lock_timeout": BUSY_S,
        # Every change holds the lock of the version row: a client that hangs must not hold it
        # forever.
        "idle_in_transaction_session_timeout": IDLE_S,
    }
    arguments = {
        "connect_timeout": 5,
        "options": " ".join(f"-c {name}={seconds * 1000}" for name, seconds in limits.items()),
        # A server that disappears without closing the connection is detected within BUSY_S.
        "tcp_user_timeout": BUSY_S * 1000,
        "keepalives_idle": BUSY_S // 2,
        "keepalives_interval": BUSY_S // 4,
        "keepalives_count": 2,
    }
    try:
        return create_engine(
            url,
            connect_args=arguments,
            pool_size=8,
            max_overflow=24,
            pool_timeout=BUSY_S,
            pool_pre_ping=True,
        )
    except ModuleNotFoundError as error:
        raise Refused(
            f"catalog_url needs {error.name}: install vicinage[postgres]", field="catalog_url"
        ) from error
