"""The catalogs of the contract suites."""

from catalogs import catalog, fresh_url  # noqa: F401
