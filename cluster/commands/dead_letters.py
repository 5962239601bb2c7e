"""`vicinage dead-letters`: records that could not be accepted, of any tenant."""

from pathlib import Path

import click

from cluster.commands.base import EPILOG, Group, common, confirmed, operator, part
from cluster.commands.output import show

COLUMNS = (
    "position",
    "reason",
    "field",
    "id",
    "collection",
    "partition",
    "offset",
    "event_time_ms",
)


@click.group("dead-letters", cls=Group, epilog=EPILOG)
def dead_letters() -> None:
    """Records that could not be accepted, with their reasons."""


@dead_letters.command("list")
@click.argument("tenant_name", metavar="TENANT")
@click.option(
    "--after", type=int, default=-1, show_default=True, help="Only letters after this position."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000),
    default=100,
    show_default=True,
    help="Largest number of letters, at most 1,000.",
)
@common
def dead_letters_list(
    tenant_name: str,
    after: int,
    limit: int,
    data: Path,
    url: str | None,
    key: str | None,
    *,
    as_json: bool,
) -> None:
    r"""List letters, oldest first.

    \b
    vicinage dead-letters list acme --after 120
    """
    found = operator(data, url, key).call(
        "GET", f"/tenants/{part(tenant_name)}/dead-letters?after={after}&limit={limit}"
    )
    show(found if as_json else found["letters"], as_json, COLUMNS)


@dead_letters.command("show")
@click.argument("tenant_name", metavar="TENANT")
@click.argument("position", type=click.IntRange(0))
@common
def dead_letters_show(
    tenant_name: str, position: int, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""Show one letter with all fields, and the original bytes as base64.

    \b
    vicinage dead-letters show acme 42
    """
    show(
        operator(data, url, key).call(
            "GET", f"/tenants/{part(tenant_name)}/dead-letters/{position}"
        ),
        as_json,
    )


@dead_letters.command("replay")
@click.argument("tenant_name", metavar="TENANT")
@click.option(
    "--from", "first", type=click.IntRange(0), default=0, show_default=True, help="First position."
)
@click.option("--to", "last", type=click.IntRange(0), help="Last position [default: the newest].")
@common
def dead_letters_replay(
    tenant_name: str,
    first: int,
    last: int | None,
    data: Path,
    url: str | None,
    key: str | None,
    *,
    as_json: bool,
) -> None:
    r"""Write the original records to the documents log again, after the cause is repaired.

    Skips and counts letters whose original was too large to be stored completely. A replayed
    record is newer than everything written meanwhile.

    \b
    vicinage dead-letters replay acme --from 40 --to 42
    """
    from vicinage.records import Token

    platform, path = operator(data, url, key), f"/tenants/{part(tenant_name)}/dead-letters:replay"
    body = {"from": first, **({} if last is None else {"to": last})}
    done = platform.call("POST", path, body)
    found = [done]
    while done["next"] is not None:  # `to` stays: a record rejected again is a new letter after it
        done = platform.call("POST", path, {"from": done["next"], "to": done["to"]})
        found.append(done)
    positions = [p for each in found if each["token"] for p in Token.parse(each["token"]).positions]
    totals = {name: sum(each[name] for each in found) for name in ("replayed", "skipped")}
    show({**totals, "token": str(Token.covering(positions)) if positions else None}, as_json)


@dead_letters.command("purge")
@click.argument("tenant_name", metavar="TENANT")
@click.option(
    "--to", "last", type=click.IntRange(0), required=True, help="Last position that is removed."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@common
def dead_letters_purge(
    tenant_name: str,
    last: int,
    data: Path,
    url: str | None,
    key: str | None,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    r"""Delete letters up to a position permanently.

    \b
    vicinage dead-letters purge acme --to 42 --yes
    """
    if not yes:
        confirmed(f"Remove the dead letters of {tenant_name} up to position {last}?")
    show(
        operator(data, url, key).call(
            "POST", f"/tenants/{part(tenant_name)}/dead-letters:purge", {"to": last}
        ),
        as_json,
    )
