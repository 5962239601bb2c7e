"""Frozen settings, grouped by component, read once at start.

Sources are arguments, `VICINAGE_*` and `vicinage.toml`. Every field has a unit in its name or its
description, a default, bounds, and a line in docs/reference/settings.md.
"""

import os
from pathlib import Path
from typing import Any, Final

from pydantic import Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from vicinage.settings.indexer import IndexerSettings
from vicinage.settings.ingest import EmbedderSettings, IngestSettings
from vicinage.settings.log import KafkaSettings
from vicinage.settings.query import GatewaySettings, RerankSettings, SearcherSettings
from vicinage.settings.tenants import AuditSettings

__all__ = [
    "CONFIG",
    "AuditSettings",
    "EmbedderSettings",
    "GatewaySettings",
    "IndexerSettings",
    "IngestSettings",
    "KafkaSettings",
    "RerankSettings",
    "SearcherSettings",
    "Settings",
    "config_path",
]

CONFIG: Final = "VICINAGE_CONFIG"
"""Environment variable that names the settings file; `--config` sets it."""


def config_path() -> Path:
    """Returns the path of the settings file, which need not exist.

    It is the file that CONFIG names, or vicinage.toml in the working directory.
    """
    return Path(os.environ.get(CONFIG) or "vicinage.toml")


class Settings(BaseSettings):
    """All settings. Components receive only the values that they use, never the whole object."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="VICINAGE_", env_nested_delimiter="__"
    )

    data: Path = Field(
        default=Path("data"),
        description="directory of the embedded platform",
    )
    log_url: str = Field(
        default="", description="sqlite:///PATH or kafka://HOST:PORT; empty: DATA/log.db"
    )
    catalog_url: SecretStr = Field(
        default=SecretStr(""), description="SQLAlchemy URL; empty: SQLite in DATA/catalog.db"
    )
    store_url: str = Field(
        default="", description="directory, file://, s3://, gs:// or abfs:// URL; empty: DATA/store"
    )
    store_cache_bytes_max: int = Field(
        default=64 << 30,
        ge=1 << 20,
        description="bytes of a remote store's objects kept in DATA/cache on each node",
    )
    slots: int = Field(
        default=8,
        ge=1,
        le=4_096,
        description="partitions of the vectors log; fixed when the platform is made",
    )
    audit: AuditSettings = AuditSettings()
    kafka: KafkaSettings = KafkaSettings()
    gateway: GatewaySettings = GatewaySettings()
    embedder: EmbedderSettings = EmbedderSettings()
    rerank: RerankSettings = RerankSettings()
    ingest: IngestSettings = IngestSettings()
    indexer: IndexerSettings = IndexerSettings()
    searcher: SearcherSettings = SearcherSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Returns the sources by precedence: arguments, the environment, the file."""
        del dotenv_settings, file_secret_settings
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls, toml_file=config_path()),
        )

    def resolved(self) -> "Settings":
        """Returns the settings with every empty URL derived from `data`."""
        data = self.data.absolute()
        fill: dict[str, Any] = {
            "data": data,
            "log_url": self.log_url or f"sqlite:///{data}/log.db",
            "catalog_url": SecretStr(
                self.catalog_url.get_secret_value() or f"sqlite:///{data}/catalog.db"
            ),
            "store_url": self.store_url or str(data / "store"),
        }
        if not self.embedder.url:
            host = "127.0.0.1" if self.gateway.host in ("0.0.0.0", "::") else self.gateway.host  # noqa: S104  (compared, not bound)
            fill["embedder"] = self.embedder.model_copy(
                update={"url": f"http://{host}:{self.gateway.port + 1}"}
            )
        return self.model_copy(update=fill)
