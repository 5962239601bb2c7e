"""Vicinage: a managed vector retrieval platform for many tenants.

The map of the house. Imports point one way, from the bottom of this list to its top.

    vicinage   shared ground: errors, clock, settings, telemetry, records, stats, wire, fair queue, log, store, catalog engine
    tenants    who may do what: tenants, keys, collections, quotas, model registry, manifests, audit
    ingest     documents in: intake, validate, cut, embed, dead-letter
    indexer    vectors to searchable: FAISS backends, delta, segment, shard, seal, compact, reindex
    capacity   how much is left: accounting, headroom
    query      searches: gateway, admission, plan, scatter, merge, freshness, recall; the searcher role
    console    the web page of operators and tenants
    cluster    where roles run: wiring, local processes or Ray, and the command line
"""

__version__ = "0.1.0"
