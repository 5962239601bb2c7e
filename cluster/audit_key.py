"""The file of the audit key: made at the first start, kept outside the catalog, the same on every node (decision 035)."""

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
    "{} is missing, and the catalog's newest audit record has a MAC: copy it from the node that has it, or, where it is "
    "lost, make another with `vicinage audit new-key`"
)


def path_of(settings: Settings) -> Path:
    """Returns the file: `audit.key_file`, else DATA/audit.key."""
    return (
        Path(settings.audit.key_file).absolute()
        if settings.audit.key_file
        else settings.data.absolute() / FILE
    )


def load_key(settings: Settings, engine: "Engine", *, optional: bool = False) -> "AuditKey | None":
    """Returns the key of the catalog's audit chain; makes it where no record has a MAC yet.

    Raises ConfigurationError where the file is not usable, or missing though records have MACs;
    `optional`: then None.
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
    """Writes a key's file (mode 0600, durable), with the newest record of now, and a first record under it.

    `again`: in place of a key that is there or lost; the old file is set aside. All in one turn among the catalog's
    writers, so that of two nodes one makes it, and the other, without its file, raises ConfigurationError.
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
        at.connection.execution_options(**{KEYED_BY: key})  # taken from the engine before
        at.note("audit.key", "audit", after={"after": seq})
    return key


def read_key(path: Path) -> "AuditKey | None":
    """Returns the file's key; None where there is no file. Raises ConfigurationError."""
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
            f"{path} is no audit key: it is a file that `vicinage up` writes, not edited"
        ) from None


def _write(path: Path, key: "AuditKey") -> None:
    """Raises ConfigurationError where the file cannot be written or another process has made it meanwhile."""
    text = json.dumps({"key": key.secret.hex(), "after": key.after, "after_hash": key.after_hash})
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}."
        ) as part:  # mode 0600
            part.write(text + "\n")
            part.flush()
            os.fsync(part.fileno())
            os.link(part.name, path)  # whole or not at all, and never over another
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        raise ConfigurationError(
            f"the audit key {path} cannot be written: {error.strerror}"
        ) from None
