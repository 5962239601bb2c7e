"""`vicinage key`: API keys."""

from pathlib import Path

import click

from cluster.commands.base import EPILOG, Group, common, operator, part
from cluster.commands.output import show


@click.group("key", cls=Group, epilog=EPILOG)
def keys() -> None:
    """API keys: shown once, stored hashed."""


@keys.command("create")
@click.argument("tenant_name", metavar="[TENANT]", required=False)
@click.option(
    "--scopes",
    default="read,write",
    show_default=True,
    help="read and write, or operate without a tenant.",
)
@click.option("--expires", help="Lifetime: 90d, 12h, 30m.")
@common
def key_create(
    tenant_name: str | None,
    scopes: str,
    expires: str | None,
    data: Path,
    url: str | None,
    key: str | None,
    *,
    as_json: bool,
) -> None:
    r"""Create a key for a tenant or, with --scopes operate, for an operator.

    \b
    vicinage key create acme --scopes read --expires 90d
    vicinage key create --scopes operate
    """
    body = {"tenant": tenant_name, "scopes": scopes.split(","), "expires_s": _seconds(expires)}
    show(operator(data, url, key).call("POST", "/keys", body), as_json)


def _seconds(text: str | None) -> int | None:
    if text is None:
        return None
    unit = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}.get(text[-1:])
    if unit is None or not text[:-1].isdigit():
        raise click.BadParameter("write 90d, 12h, 30m or 45s", param_hint="--expires")
    return int(text[:-1]) * unit


@keys.command("list")
@click.argument("tenant_name", metavar="[TENANT]", required=False)
@common
def key_list(
    tenant_name: str | None, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""List keys, without their secrets.

    \b
    vicinage key list acme
    """
    path = "/keys" + (f"?tenant={part(tenant_name)}" if tenant_name else "")
    show(
        operator(data, url, key).call("GET", path),
        as_json,
        ("id", "tenant", "scopes", "created_ms", "expires_ms", "revoked_ms"),
    )


@keys.command("revoke")
@click.argument("key_id")
@common
def key_revoke(key_id: str, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Revoke a key; after a second no process accepts it.

    \b
    vicinage key revoke 0123456789abcdef
    """
    show(operator(data, url, key).call("DELETE", f"/keys/{part(key_id)}"), as_json)
