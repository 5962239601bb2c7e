"""`vicinage audit`: the record of privileged actions."""

import sys
from pathlib import Path

import click

from cluster.commands.base import (
    EPILOG,
    EXIT_PARTLY,
    Group,
    common,
    confirmed,
    here,
    operator,
    settings_on,
)
from cluster.commands.output import show
from vicinage.errors import Conflict


@click.group(cls=Group, epilog=EPILOG)
def audit() -> None:
    """The audit chain: each privileged action, and its actor."""


@audit.command("list")
@click.option(
    "--after", type=int, default=0, show_default=True, help="Only records after this number."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000),
    default=100,
    show_default=True,
    help="Most records, to 1,000.",
)
@common
def audit_list(
    after: int, limit: int, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""List audit records, oldest first.

    \b
    vicinage audit list --after 100 --limit 20
    """
    rows = operator(data, url, key).call("GET", f"/audit?after={after}&limit={limit}")
    show(rows, as_json, ("seq", "at_ms", "actor", "action", "subject", "after"))


@audit.command("verify")
@click.option(
    "--against",
    metavar="SEQ:HASH",
    help="Newest record of an earlier verify, kept outside the catalog.",
)
@common
def audit_verify(
    against: str | None, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""Verify each record's hash and MAC, and print the newest one; keep it outside the catalog.

    "intact" means verified with the audit key. Without the key only the chain is checked, which
    anyone with write access to the catalog can recompute: exit status 4. Records that were cut off
    the end are found only with --against and an earlier newest record.

    \b
    vicinage audit verify --against 118:9f2c…
    """
    seq, _, digest = (against or "").partition(":")
    if against and not (seq.isdecimal() and digest):
        raise click.BadParameter(
            "write SEQ:HASH, as an earlier verify printed them", param_hint="--against"
        )
    body = {"seq": int(seq), "hash": digest} if against else {}
    found = operator(data, url, key).call("POST", "/audit/verify", body)
    show(found, as_json)
    if found["keyed_from"] is None:
        sys.exit(EXIT_PARTLY)


@audit.command("new-key")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@here
def audit_new_key(data: Path, *, yes: bool, as_json: bool) -> None:
    r"""Replace an audit key that is lost or leaked; the platform must be down on every node.

    Existing records are then verified by the hash of the newest one, as they are now. Copy the new
    file to every node.

    \b
    vicinage audit new-key --yes
    """
    from cluster import local
    from cluster.audit_key import make_key, path_of
    from cluster.wiring import open_resources

    if local.running(data.absolute()) is not None:
        raise Conflict(f"a platform runs on {data} with the present key: `vicinage down` first")
    if not yes:
        confirmed("Create another audit key? Every node then needs its file")
    resources = open_resources(settings_on(data), audit_key_optional=True)
    try:
        made = make_key(resources.settings, resources.engine, again=True)
    finally:
        resources.close()
    show({"file": str(path_of(resources.settings)), "after": made.after}, as_json)
