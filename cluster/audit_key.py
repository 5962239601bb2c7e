"""The file of the audit key, stored outside the catalog and the same on every node.

The first start creates it (docs/decisions/035-audit-key.md).
"""

import json
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster.configuration import ConfigurationError
from vicinage.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tenants.audit import AuditKey

FILE: Final = "audit.key"
_MISSING: Final = (
    "{} is missing, and the catalog's newest audit record has a MAC: copy it from the node that has"
    " it, or, if it is lost, create another with `vicinage audit new-key`"
)


def path_of(settings: Settings) -> Path:
    """Returns the path of the file: `audit.key_file`, else DATA/audit.key."""
    return (
        Path(settings.audit.key_file).absolute()
        if settings.audit.key_file
        else settings.data.absolute() / FILE
    )


def load_key(settings: Settings, engine: "Engine", *, optional: bool = False) -> "AuditKey | None":
    """Returns the key of the catalog's audit chain; creates it if no record has a MAC yet.

    Raises ConfigurationError if the file is not usable, or if it is missing although records have
    MACs. With `optional`, returns None for a missing file.
    """
    from tenants.audit import newest
    from vicinage.catalog import look

    path = path_of(settings)
    if (key := read_key(path)) is not None:
        return key
    with look(engine) as connection:
        _, _, keyed = newest(connection)
    if not keyed:
        return make_key(settings, engine)
    if optional:
        return None
    raise ConfigurationError(_MISSING.format(path))


def make_key(settings: Settings, engine: "Engine", *, again: bool = False) -> "AuditKey":
    """Creates the key: its file (mode 0600, durable) and a first audit record under it.

    The file has the number and hash of the newest record before it. `again` replaces a key that
    exists or is lost; the old file is renamed. All happens in one change of the catalog: of two
    nodes, one creates the key, and the other, without the file, raises ConfigurationError.
    """
    from tenants.audit import KEYED_BY, AuditKey, newest, use_key
    from tenants.changes import changing
    from vicinage.clock import SystemClock

    path = path_of(settings)
    with changing(engine, SystemClock(), "operator/local" if again else "platform") as at:
        if not again and (key := read_key(path)) is not None:
            return key
        seq, digest, keyed = newest(at.connection)
        if keyed and not again:
            raise ConfigurationError(_MISSING.format(path))
        key = AuditKey(secrets.token_bytes(32), seq, digest)
        if again and path.exists():
            path.rename(path.with_name(f"{path.name}.{time.time_ns()}"))
        _write(path, key)
        use_key(engine, key)
        # the connection has copied the engine's options
        at.connection.execution_options(**{KEYED_BY: key})
        at.note("audit.key", "audit", after={"after": seq})
    return key


def read_key(path: Path) -> "AuditKey | None":
    """Returns the file's key; None if there is no file. Raises ConfigurationError."""
    from tenants.audit import AuditKey

    try:
        found = json.loads(path.read_text())
        return AuditKey(bytes.fromhex(found["key"]), int(found["after"]), str(found["after_hash"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"the audit key {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"{path} is not an audit key: `vicinage up` writes the file; do not edit it"
        ) from None


def _write(path: Path, key: "AuditKey") -> None:
    """Writes the file atomically.

    Raises ConfigurationError if it cannot be written, or if another process created it meanwhile.
    """
    text = json.dumps({"key": key.secret.hex(), "after": key.after, "after_hash": key.after_hash})
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # NOTE: temporary files have mode 0600, and a link never replaces another file
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as part:
            part.write(text + "\n")
            part.flush()
            os.fsync(part.fileno())
            os.link(part.name, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        raise ConfigurationError(
            f"the audit key {path} cannot be written: {error.strerror}"
        ) from None
