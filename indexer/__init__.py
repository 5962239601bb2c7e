"""Vectors to searchable, and searching them.

run        ★ the indexer role: tail, seal, move on
seal       pending rows → a segment → the manifest
compact    several segments → one
reindex    a collection's next generation, built beside the live one
upkeep     mending, compaction, reindex jobs, the scrub and the sweep, on a worker of their own
mend       damaged segments, built anew from what is left of them or from the log
scrub      objects of segments, read now and then to find damage
trim       what of the vectors log nobody needs any more
searcher   the searcher role: questions, fairly, in batches
holding    which shards a searcher holds: sees the catalog, fetches segments
residency  which of them lie in memory, and who lets go for whom
opening    lexical indexes and columns for a first filter, brought in off the threads that search
loading    a manifest's segments out of the store; what is damaged is noted
counting   what shards that are not in memory hold, counted without their vectors
tail       the vectors log → the shards in memory; watermarks
shard      ★ segments and delta as one searchable whole
effort     with how much effort an index is searched, and when it is scanned instead
segment    an immutable set of passages with its index
delta      what is newer than the segments, in memory
passages   single passages out of a batch
lexical    words → passages, by tantivy
filters    conditions on metadata
serving    which shards are served
backends   FAISS, and nothing else touches it
"""
