"""Vectors to searchable, and searching them.

run        ★ the indexer role: tail, seal, move on
seal       pending rows → a segment → the manifest
compact    several segments → one
reindex    a collection's next generation, built beside the live one
upkeep     mending, compaction, reindex jobs, the scrub and the sweep, on a worker of their own
mend       damaged segments, built anew from what is left of them or from the log
scrub      objects of segments, read now and then to find damage
trim       what of the vectors log nobody needs any more
loading    a manifest's segments out of the store; what is damaged is noted
shard      ★ segments and delta as one searchable whole
effort     with how much effort an index is searched, and when it is scanned instead
segment    an immutable set of passages with its index
delta      what is newer than the segments, in memory
passages   single passages out of a batch
lexical    words → passages, by tantivy
filters    conditions on metadata
backends   FAISS, and nothing else touches it
"""
