"""What every test may rely on: a skip is a failure where `VICINAGE_REQUIRE=all`."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Turn a skip into a failure when CI requires every component."""
    report = yield
    if report.skipped and os.environ.get("VICINAGE_REQUIRE") == "all" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under VICINAGE_REQUIRE=all: {report.longrepr}"
    return report
