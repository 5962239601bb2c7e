"""Loads settings from options, environment and file, and reports each error in one line.

Sources by precedence: command-line options, `VICINAGE_*`, the file (`--config`, `VICINAGE_CONFIG`,
or `vicinage.toml` in the working directory), defaults. An error names its source and the remedy.
"""

import contextlib
import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import SettingsError

from vicinage.errors import Refused
from vicinage.settings import CONFIG, Settings, config_path

PREFIX: Final = "VICINAGE_"
OTHERS: Final = frozenset(
    {
        CONFIG,
        "VICINAGE_KEY",
        "VICINAGE_URL",
        "VICINAGE_SUPERVISED",
        "VICINAGE_CRASH",
        "VICINAGE_REQUIRE",
    }
    | {"VICINAGE_TEST_DEVICE"}
)
"""Variables with the prefix that are not settings."""


PRIVATE: Final = frozenset({"run", "store", "cache", ".db", ".db-wal", ".db-shm", ".key"})
"""Names, and suffixes of names, of files and folders with tenants' documents or keys."""


class ConfigurationError(Refused):
    """The settings cannot be used; the text names the setting, its source and the remedy.

    Exit status 2.
    """

    kind = "configuration"


@dataclass(frozen=True, slots=True)
class Origin:
    """One setting: its dotted name, its value as text (secrets hidden), and its source."""

    name: str
    value: str
    origin: str


def load(**given: Any) -> Settings:
    """Returns the settings; `given` are the command line's. Raises ConfigurationError."""
    path = config_path()
    if os.environ.get(CONFIG) and not path.is_file():
        raise ConfigurationError(f"{path}: there is no such file (named by --config or {CONFIG})")
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigurationError(_first(error, given)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 (its byte {error.start})") from None
    except SettingsError as error:
        raise ConfigurationError(
            f"environment: {error}: use JSON, or set its parts one by one"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None


def names() -> list[str]:
    """Returns the dotted names of all settings."""
    return [name for name, _ in _leaves(Settings)]


def variable(name: str) -> str:
    """Returns the environment variable of a setting."""
    return PREFIX + name.upper().replace(".", "__")


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Returns a warning for each variable with the prefix that is not a setting. Pure."""
    known = {variable(name) for name in names()}
    groups = {variable(name.partition(".")[0]) for name in names()}
    found = []
    for name in sorted(environment):
        key = name.upper()
        parts_of_one = any(key.startswith(f"{one}__") for one in known)
        if key.startswith(PREFIX) and key not in known | groups | OTHERS and not parts_of_one:
            nearest = difflib.get_close_matches(key, sorted(known), 1)
            found.append(
                f"{name} is not a setting" + (f"; did you mean {nearest[0]}?" if nearest else "")
            )
    return found


def origins(
    settings: Settings, environment: Mapping[str, str], given: Mapping[str, Any]
) -> list[Origin]:
    """Returns every setting with its origin.

    `given` are the options of the command line, by dotted name.
    """
    path = config_path()
    file = _flat(tomllib.loads(path.read_text())) if path.is_file() else {}
    upper = {name.upper() for name in environment}
    found = []
    for name, value in _values(settings):
        group = name.partition(".")[0]
        if name in given:
            origin = "command line"
        elif variable(name) in upper or (group != name and variable(group) in upper):
            origin = f"environment {variable(name)}"
        elif any(key == name or key.startswith(f"{name}.") for key in file):
            origin = f"file {path}"
        else:
            origin = "default"
        found.append(Origin(name, value, origin))
    return found


def _first(error: ValidationError, given: Mapping[str, Any]) -> str:
    """Returns the first of the errors in one line."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    origin = _origin(name, given)
    known = [n for n in names() if n == name or name.startswith(f"{n}.")]
    if first["type"] == "extra_forbidden" and not known:
        nearest = difflib.get_close_matches(name, names(), 1, cutoff=0.5)
        what = f"unknown setting {name}" + (f"; did you mean {nearest[0]}?" if nearest else "")
    else:
        value = "" if _is_secret(name) else f" (is {str(first['input'])[:80]!r})"
        what = f"{name}: {first['msg'].lower()}{value}"
    return f"{origin}: {what}"


def _origin(name: str, given: Mapping[str, Any]) -> str:
    if name.partition(".")[0] in given:
        return "command line"
    upper = {key.upper() for key in os.environ}
    if variable(name) in upper or (
        name not in names() and any(k.startswith(variable(name)) for k in upper)
    ):
        return f"environment {variable(name)}"
    return str(config_path())


def _is_secret(name: str) -> bool:
    return any(word in name for word in ("key", "secret", "password", "catalog_url", "log_url"))


def _leaves(model: type[BaseModel], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _leaves(field.annotation, f"{before}{name}.")
        else:
            yield f"{before}{name}", field


def _values(model: BaseModel, before: str = "") -> Iterator[tuple[str, str]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _values(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", shown(value)


def shown(value: object) -> str:
    """Returns a setting's value as text; for a secret, only whether it is set."""
    if isinstance(value, SecretStr):
        return "(secret)" if value.get_secret_value() else ""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}=(secret)" for key in value)
    return str(value)


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, each in value.items():
        if isinstance(each, Mapping):
            found |= _flat(each, f"{before}{name}.") or {f"{before}{name}": each}
        else:
            found[f"{before}{name}"] = each
    return found


def usable_data(data: Path) -> Path:
    """Creates the data directory, accessible to its owner only, and returns it.

    Removes other users' permissions from an existing directory, its databases and its keys. Raises
    ConfigurationError.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(data, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"the data directory {data} cannot be written: choose another with --data"
            )
        for each in (
            data,
            *(path for path in data.iterdir() if path.name in PRIVATE or path.suffix in PRIVATE),
        ):
            _tighten(each)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(
            f"the data directory {data} cannot be used ({reason}): choose another with --data"
        ) from None
    return data


def _tighten(path: Path) -> None:
    """Removes other users' permissions, if the path belongs to this user.

    Skips links: they point elsewhere.
    """
    with contextlib.suppress(FileNotFoundError):  # a database creates and deletes files
        found = path.lstat()
        if not path.is_symlink() and found.st_mode & 0o077 and found.st_uid == os.geteuid():
            path.chmod(found.st_mode & 0o700)
