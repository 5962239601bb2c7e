"""A shard and its segments: stored, loaded and searched.

shard           ★ segments and delta as one searchable whole
contents        its documents: which write of each counts
snapshot        what a search sees, as of one moment
search          ★ searches one snapshot: vectors, words, the best of all parts
lookup          documents by id or by filter
segment_set     a shard's segments with masks of their alive documents and rows
costs           the cost of a search, estimated before it runs
preload         what is loaded before a search
stats           counts of a shard
effort          chooses the effort of an index search; measures the effort curve of a segment
scans           decides when an index is scanned instead
segment         ★ an immutable set of passages with its index, loaded
segment_writer  rows → a stored segment
rows            the newest write of each document in batches
objects         a segment's objects, verified and read
lazy            filter columns and the lexical index, loaded at first use
loader          a manifest's segments from the store; reports damaged objects
delta           passages newer than the segments, in memory
hits            single passages of a batch
lexical         words → passages, by tantivy
analysis        texts → terms
filters         conditions on metadata
order           which of two writes of a document counts
ties            the order of equal scores
"""
