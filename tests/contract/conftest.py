"""The catalogs of the contract suites."""

from catalogs import fresh_url, house  # noqa: F401
