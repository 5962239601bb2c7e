"""The routers of the HTTP API, in the order of the OpenAPI document."""

from typing import Final

from fastapi import APIRouter

from query.api import collections, dead_letters, deletions, documents, health, search, search_batch
from query.api.admin import audit, keys, models, reindex, reports, tenants
from query.api.admin import collections as tenant_collections

ROUTERS: Final[tuple[APIRouter, ...]] = (
    search.router,
    search_batch.router,
    documents.router,
    deletions.router,
    collections.router,
    dead_letters.router,
    tenants.router,
    keys.router,
    tenant_collections.router,
    models.router,
    audit.router,
    reindex.router,
    reports.router,
    health.router,
)
