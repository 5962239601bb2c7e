"""Vectors to searchable, and searching them.

run        ★ the indexer role: tail, seal, move on
seal       pending rows → a segment → the manifest
compact    several segments → one
reindex    a collection's next generation, built beside the live one
maintenance  repair, compaction, reindex jobs, the scrub and the sweep, on a worker of their own
repair     damaged segments, built anew from what is left of them or from the log
scrub      objects of segments, read now and then to find damage
trim       what of the vectors log nobody needs any more
index      a shard and its segments: stored, loaded and searched
backends   FAISS, and nothing else touches it
"""
