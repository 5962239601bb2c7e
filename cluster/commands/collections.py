"""`vicinage collection`: a tenant's named sets of documents."""

from pathlib import Path
from typing import Any

import click

from cluster.commands.base import EPILOG, Group, common, confirmed, operator, part, where_of
from cluster.commands.output import show
from cluster.commands.tables import collection_rows


@click.group(cls=Group, epilog=EPILOG)
def collection() -> None:
    """Collections: a tenant's named sets of documents."""


INDEX_SPECS = (
    "auto, flat, hnsw[:M=32,efc=80,codes=f32|sq8], ivf[:lists=N], ivfpq[:lists=N] or rabitq."
)


@collection.command("create")
@click.argument("where", metavar="TENANT/COLLECTION", nargs=-1, required=True)
@click.option("--model", help="Embedding model [default: all-minilm-l6-v2].")
@click.option("--dimension", type=int, help="The tenant sends vectors of this length.")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "dot", "euclidean"]),
    default="cosine",
    show_default=True,
    help="Similarity of two vectors: cosine, dot or euclidean.",
)
@click.option("--index", default="auto", show_default=True, help=INDEX_SPECS)
@click.option(
    "--shards",
    type=int,
    default=1,
    show_default=True,
    help="Number of shards, each in a slot; at most `slots`.",
)
@click.option("--recall", type=float, help="Recall objective [default: 0.95].")
@common
def collection_create(
    where: tuple[str, ...],
    data: Path,
    url: str | None,
    key: str | None,
    *,
    recall: float | None,
    as_json: bool,
    **given: Any,
) -> None:
    r"""Create a collection.

    \b
    vicinage collection create acme/docs --model all-minilm-l6-v2
    vicinage collection create acme/vectors --dimension 384 --metric dot --index hnsw:M=32
    """
    tenant_name, name = where_of(where)
    body = {k: v for k, v in {"name": name, **given}.items() if v is not None}
    if recall is not None:
        body["objectives"] = {"recall": recall}
    show(
        operator(data, url, key).call("POST", f"/tenants/{part(tenant_name)}/collections", body),
        as_json,
    )


@collection.command("list")
@click.argument("tenant_name", metavar="[TENANT]", required=False)
@common
def collection_list(
    tenant_name: str | None, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""List collections, with their counts.

    \b
    vicinage collection list acme
    """
    path = "/collections" + (f"?tenant={part(tenant_name)}" if tenant_name else "")
    found = operator(data, url, key).call("GET", path)
    show(found if as_json else collection_rows(found), as_json)


@collection.command("show")
@click.argument("where", metavar="TENANT/COLLECTION", nargs=-1, required=True)
@common
def collection_show(
    where: tuple[str, ...], data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""Show one collection: counts, freshness, recall, index.

    \b
    vicinage collection show acme/docs
    """
    tenant_name, name = where_of(where)
    show(
        operator(data, url, key).call(
            "GET", f"/tenants/{part(tenant_name)}/collections/{part(name)}"
        ),
        as_json,
    )


@collection.command("update")
@click.argument("where", metavar="TENANT/COLLECTION", nargs=-1, required=True)
@click.option("--recall", type=float, help="Recall objective, 0.5 to 1.")
@click.option("--freshness-ms", type=int, help="Freshness objective, milliseconds.")
@click.option("--latency-ms", type=int, help="Latency objective, milliseconds.")
@common
def collection_update(
    where: tuple[str, ...],
    data: Path,
    url: str | None,
    key: str | None,
    *,
    as_json: bool,
    **objectives: float | None,
) -> None:
    r"""Change a collection's objectives; omitted ones stay.

    \b
    vicinage collection update acme/docs --recall 0.98
    """
    tenant_name, name = where_of(where)
    body = {"objectives": {k: v for k, v in objectives.items() if v is not None}}
    if not body["objectives"]:
        raise click.UsageError("name at least one of --recall, --freshness-ms and --latency-ms")
    show(
        operator(data, url, key).call(
            "PATCH", f"/tenants/{part(tenant_name)}/collections/{part(name)}", body
        ),
        as_json,
    )


@collection.command("delete")
@click.argument("where", metavar="TENANT/COLLECTION", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@common
def collection_delete(
    where: tuple[str, ...],
    data: Path,
    url: str | None,
    key: str | None,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    r"""Delete a collection with all its documents.

    \b
    vicinage collection delete acme/docs --yes
    """
    tenant_name, name = where_of(where)
    if not yes:
        confirmed(f"Delete collection {tenant_name}/{name} with all its documents?")
    path = f"/tenants/{part(tenant_name)}/collections/{part(name)}?confirm={part(name)}"
    show(operator(data, url, key).call("DELETE", path), as_json)
