"""The identity of a data directory: its log, catalog, store and number of slots.

The first start stores it. A platform that was started on the same directory with other URLs would
serve another log's tokens from this catalog.
"""

import json
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from cluster.configuration import ConfigurationError
from vicinage.settings import Settings

FILE: Final = "identity.json"
DEFAULT: Final = "(default)"


def identity_of(settings: Settings) -> dict[str, str]:
    """Returns the identity that the settings have. Pure.

    URLs are without passwords; `(default)` is a URL inside the directory.
    """
    s = settings.resolved()
    defaults = Settings.model_construct(data=s.data).resolved()
    found = {
        "log_url": (s.log_url, defaults.log_url),
        "catalog_url": (s.catalog_url.get_secret_value(), defaults.catalog_url.get_secret_value()),
        "store_url": (s.store_url, defaults.store_url),
    }
    urls = {
        name: DEFAULT if url == default else _bare(url) for name, (url, default) in found.items()
    }
    return {**urls, "slots": str(s.slots)}


def check_identity(settings: Settings) -> None:
    """Raises ConfigurationError if the directory's URLs or slots differ from the settings'."""
    path = settings.data.absolute() / FILE
    stored = _read(path)
    for name, value in identity_of(settings).items():
        if (before := stored.get(name, value)) != value:
            raise ConfigurationError(
                f"{settings.data} belongs to {name} {before}, and the settings have {value}: use"
                f" another --data, or, if {name} has moved, change {path}"
            )


def store_identity(settings: Settings) -> None:
    """Writes the identity if the file does not exist. Not synced: a lost file is written again."""
    path = settings.data.absolute() / FILE
    if not path.exists():
        path.write_text(json.dumps(identity_of(settings), indent=2) + "\n")


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _bare(url: str) -> str:
    """Returns the URL without user, password and query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if "," not in parts.netloc and parts.port else ""
    netloc = parts.netloc.rpartition("@")[2] if "," in parts.netloc else host + port
    return urlunsplit((parts.scheme, netloc, parts.path, "", ""))
