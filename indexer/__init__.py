"""From vectors to searchable segments, and searching them.

run          ★ the indexer role: tail, seal, advance
slot_leases  the leases on slots that it holds
slot_reader  reads the vectors log of these slots
sealer       pending rows, sealed when they are due
idle_shards  shards without pending rows whose position must advance
seal         pending rows → a segment → the manifest
maintenance  repair, compaction, reindex jobs, the scrub and the sweep, beside sealing
compact      several segments → one
reindex      a collection's next generation, step by step: reindex_jobs (start, cancel),
             reindex_copy (rows of one generation → segments of the next)
repair       damaged segments, rebuilt from their other objects or from the log
scrub        verifies objects of segments to find damage
sweep        deletes objects that no manifest names; superseded does so soon after a merge
trim         vectors log below the oldest position needed; documents_trim: documents logs
forgetting   when a deletion may be forgotten
vectors_log  messages of the vectors log as rows
index        a shard and its segments: stored, loaded and searched
backends     FAISS, used nowhere else
"""
