"""`vicinage tenant`: the teams that share the platform."""

from pathlib import Path

import click

from cluster.commands.base import EPILOG, Group, common, confirmed, operator, part
from cluster.commands.output import show


@click.group(cls=Group, epilog=EPILOG)
def tenant() -> None:
    """Tenants: the teams that share the platform."""


@tenant.command("create")
@click.argument("name")
@click.option(
    "--class",
    "priority",
    type=click.Choice(["gold", "silver", "bronze"]),
    default="silver",
    show_default=True,
    help="Priority: gold has weight 4, silver 2, bronze 1.",
)
@common
def tenant_create(
    name: str, priority: str, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""Create a tenant and print its first key (read and write), which is shown once.

    \b
    vicinage tenant create acme --class gold
    """
    show(
        operator(data, url, key).call("POST", "/tenants", {"name": name, "class": priority}),
        as_json,
    )


@tenant.command("list")
@common
def tenant_list(data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""List all tenants.

    \b
    vicinage tenant list --json
    """
    show(
        operator(data, url, key).call("GET", "/tenants"),
        as_json,
        ("tenant", "class", "state", "collections"),
    )


@tenant.command("show")
@click.argument("name")
@common
def tenant_show(name: str, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Show one tenant.

    \b
    vicinage tenant show acme
    """
    show(operator(data, url, key).call("GET", f"/tenants/{part(name)}"), as_json)


@tenant.command("update")
@click.argument("name")
@click.option(
    "--class",
    "priority",
    type=click.Choice(["gold", "silver", "bronze"]),
    required=True,
    help="New class.",
)
@common
def tenant_update(
    name: str, priority: str, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""Change a tenant's class; every role applies it within about a second.

    \b
    vicinage tenant update acme --class bronze
    """
    show(
        operator(data, url, key).call("PATCH", f"/tenants/{part(name)}", {"class": priority}),
        as_json,
    )


@tenant.command("suspend")
@click.argument("name")
@common
def tenant_suspend(
    name: str, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""Refuse a tenant's keys and pause its topic; nothing is lost.

    \b
    vicinage tenant suspend acme
    """
    show(operator(data, url, key).call("POST", f"/tenants/{part(name)}/suspend"), as_json)


@tenant.command("resume")
@click.argument("name")
@common
def tenant_resume(
    name: str, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""End a suspension.

    \b
    vicinage tenant resume acme
    """
    show(operator(data, url, key).call("POST", f"/tenants/{part(name)}/resume"), as_json)


@tenant.command("resume-ingest")
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="State what would be skipped; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@common
def tenant_resume_ingest(
    name: str,
    data: Path,
    url: str | None,
    key: str | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    r"""Resume a tenant's halted partitions; states which records that skips.

    \b
    vicinage tenant resume-ingest acme --dry-run
    """
    platform, path = operator(data, url, key), f"/tenants/{part(name)}/resume-ingest"
    plan = platform.call("POST", path, {"dry_run": True})
    to_resume = [p for p in plan["partitions"] if p["resume_at"] is not None]
    if not dry_run and to_resume:
        if not yes:
            show(plan["partitions"], as_json=False, columns=RESUMED)
            confirmed("Resume these partitions?")
        plan = platform.call("POST", path, {"dry_run": False})
    show(plan if as_json else plan["partitions"], as_json, RESUMED)


@tenant.command("set-partitions")
@click.argument("name")
@click.argument("partitions", type=click.IntRange(1, 1_024))
@click.option("--dry-run", is_flag=True, help="State what would change; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@common
def tenant_set_partitions(
    name: str,
    partitions: int,
    data: Path,
    url: str | None,
    key: str | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    r"""Add partitions to a tenant's documents topic; --dry-run shows the effect on producers.

    For up to metadata.max.age.ms (5 minutes), a Kafka producer may not know the new partitions. Its
    writes lose to those of producers that do.

    \b
    vicinage tenant set-partitions acme 4 --dry-run
    """
    platform, path = operator(data, url, key), f"/tenants/{part(name)}/partitions"
    plan = platform.call("POST", path, {"partitions": partitions, "dry_run": True})
    if not dry_run:
        if not yes:
            show(plan, as_json=False)
            confirmed("Partitions cannot be removed later. Continue?")
        plan = platform.call("POST", path, {"partitions": partitions})
    show(plan, as_json)


RESUMED = ("partition", "kind", "position", "resume_at", "skipped_records", "effect")


@tenant.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@common
def tenant_delete(
    name: str, data: Path, url: str | None, key: str | None, *, yes: bool, as_json: bool
) -> None:
    r"""Delete a tenant with its collections and topics. Its name is never reused.

    \b
    vicinage tenant delete acme --yes
    """
    if not yes:
        confirmed(f"Delete tenant {name} with all its collections and documents?")
    show(
        operator(data, url, key).call("DELETE", f"/tenants/{part(name)}?confirm={part(name)}"),
        as_json,
    )
