"""The searcher role: the shards of its slots in memory, kept up to the log and the catalog, and searched.

run        ★ search requests, fairly, in batches
tail       the vectors log → the shards in memory; watermarks
passed     offsets of rows that the tail passed while their shard was not in memory
shards     the shard table: reads the catalog, loads segments
memory     memory accounting, and the choice of shards to evict
warmup     lexical indexes and columns for a first filter, loaded off the threads that search
counting   exact counts of shards that are not in memory, without reading vectors
host       the machine that the searcher runs on
"""
