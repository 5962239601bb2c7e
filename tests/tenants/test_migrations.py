"""Migrations are one chain: two with the same number, or two heads, break every start."""

import re
from pathlib import Path

import tenants

VERSIONS = Path(tenants.__file__).parent / "migrations" / "versions"


def test_every_migration_follows_exactly_one_other() -> None:
    found = [path.read_text() for path in VERSIONS.glob("*.py")]
    revisions = [re.search(r'^revision = "(\w+)"$', text, re.MULTILINE)[1] for text in found]
    before = [
        re.search(r'^down_revision = (?:"(\w+)"|None)$', text, re.MULTILINE)[1] for text in found
    ]
    assert len(set(revisions)) == len(revisions) == len(set(before))
    assert set(before) - {None} < set(revisions)
