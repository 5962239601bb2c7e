"""Fixtures for all tests: real servers, a platform of real parts, and skips that fail in CI."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import HealthCheck, settings

settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

from resources import resources_in
from servers import kafka_servers, postgres_server, postgres_url, s3_server  # noqa: F401

from cluster.wiring import Resources


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Resources]:
    """Log, catalog and store of an embedded platform, empty."""
    made = resources_in(tmp_path / "data")
    yield made
    made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Turns a skip into a failure when CI requires every component."""
    report = yield
    if (
        report.skipped
        and os.environ.get("VICINAGE_REQUIRE") == "all"
        and not hasattr(report, "wasxfail")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped under VICINAGE_REQUIRE=all: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def no_settings_file_is_left() -> Iterator[None]:
    """Restores the environment: `--config` sets a variable of its process."""
    yield
    os.environ.pop("VICINAGE_CONFIG", None)
