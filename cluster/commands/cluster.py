"""`vicinage cluster`: the servers that the platform uses."""

from pathlib import Path

import click

from cluster.commands.base import EPILOG, Group, here, settings_on
from cluster.commands.output import show


@click.group("cluster", cls=Group, epilog=EPILOG)
def cluster_group() -> None:
    """The servers that the platform uses."""


@cluster_group.command("kafka-acls")
@click.option(
    "--principal",
    required=True,
    help="Principal that gets the permissions: User:vicinage for the platform itself.",
)
@click.option(
    "--tenant", help="Print the permissions of this tenant's producer, not the platform's."
)
@here
def cluster_kafka_acls(principal: str, tenant: str | None, data: Path, *, as_json: bool) -> None:
    r"""Print the commands that grant permissions in Kafka; changes nothing.

    \b
    vicinage cluster kafka-acls --principal User:vicinage
    vicinage cluster kafka-acls --principal User:team-a --tenant team-a
    """
    from dataclasses import asdict

    from cluster.kafka_acls import acls, commands, tenant_acls
    from tenants.tenant_rows import TENANT_NAME

    if not all(principal.partition(":")[::2]):
        raise click.BadParameter("write TYPE:NAME, as User:vicinage", param_hint="--principal")
    if tenant is not None and not TENANT_NAME.fullmatch(tenant):
        raise click.BadParameter("not a valid tenant name", param_hint="--tenant")
    _, _, servers = settings_on(data).log_url.partition("kafka://")
    wanted = acls(principal) if tenant is None else tenant_acls(tenant, principal)
    if as_json:
        show([asdict(acl) for acl in wanted], as_json)
        return
    for line in commands(wanted, servers or "BROKER:9092"):
        click.echo(line)
