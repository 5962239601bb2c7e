"""Vicinage: a managed vector retrieval platform for many tenants.

The packages. Imports point one way, from the bottom of this list to its top.

    vicinage   foundation: errors, clock, settings, telemetry, records, stats, wire formats,
               fair queue, log, store, catalog engine
    tenants    control plane state: tenants, keys, collections, quotas, model registry,
               manifests, audit
    ingest     documents to vectors: intake, validation, chunking, embedding, dead letters
    indexer    vectors to searchable shards: FAISS backends, delta, segment, shard, seal,
               compaction, reindex
    capacity   capacity planning: accounting, headroom
    query      searches: gateway, admission, plan, scatter, merge, freshness, recall;
               the searcher role
    console    the web page for operators and tenants
    cluster    deployment: wiring, roles as local processes or on Ray, and the command line
"""

__version__ = "0.1.0"
