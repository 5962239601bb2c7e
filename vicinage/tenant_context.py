"""The tenant of a request, as the shared parts of the platform need to know it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TenantContext:
    """The tenant that work is done for, and its share of what tenants share (guarantee 7).

    Queues, models, parsers and memory are shared: they account to `name` and serve by `weight`, the
    fair-share weight of the tenant's class. `Tenant.context` makes one from the catalog's entry.
    """

    name: str
    weight: int = 1
