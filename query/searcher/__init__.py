"""The searcher role: the shards of its slots, kept up to the log and the catalog, and searched.

run            ★ the main path of a search request, and the threads
search_queue   the fair queue of search requests
batch          requests that run as one call; `cost` estimates what a request costs
reads          single documents, and scans by filter
statistics     the searcher's statistics; `host` has those of its machine
warmup         lexical indexes and columns for a first filter, loaded off the threads that search
tail           the vectors log → the shards in memory; watermarks
skipped_rows   offsets of rows that the tail skipped while their shard was not in memory
shards         the shard table: reads the catalog, loads and evicts shards
shard_states   decides which shards are loaded, which may answer, and which are refused
catalog_view   the catalog as last read
shard_waits    searches that wait for a shard
load_queue     which shard is loaded next
load_failures  corrupt shards, and when they are loaded again
loading        one shard: segments from the store, then the log
memory_budget  memory accounting and eviction; `memory` chooses the shards to evict
unloaded       statistics of shards that are not in memory
counting       exact counts of shards that are not in memory, without reading vectors
"""
