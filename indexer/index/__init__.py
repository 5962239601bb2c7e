"""A shard and its segments: stored, loaded and searched.

shard           ★ segments and delta as one searchable whole
snapshot        what a search sees, as of one moment
search          one snapshot searched: vectors, words, the best of all parts
effort          with how much effort an index is searched; the effort curve of a segment
scans           when an index is scanned instead
segment         an immutable set of passages with its index, loaded
segment_writer  rows → a stored segment
rows            the newest write of each document out of batches
objects         a segment's objects, verified and read
lazy            filter columns and the lexical index, made or fetched when they are first needed
loader          a manifest's segments out of the store; what is damaged is noted
delta           what is newer than the segments, in memory
hits            single passages out of a batch
lexical         words → passages, by tantivy
analysis        texts → terms
filters         conditions on metadata
order           which of two writes of a document counts
ties            equal scores at the end of a list
"""
