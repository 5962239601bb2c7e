"""The searcher role: the shards of its slots in memory, kept up to the log and the catalog, and searched.

run        ★ search requests, fairly, in batches
tail       the vectors log → the shards in memory; watermarks
passed     where rows stand that passed by while their shard was not in memory
shards     which shards it holds: sees the catalog, loads segments
memory     which shards lie in memory, and which are evicted for which
warmup     lexical indexes and columns for a first filter, loaded off the threads that search
counting   what shards that are not in memory hold, counted without their vectors
host       the machine that it runs on
"""
