"""Documents in: from bytes that somebody sent to rows of the vectors log.

run        ★ the role: poll → parse → cut → embed → append → commit
lines      whose job is next, and whose rows may be written: what decides
jobs       records of the documents log → jobs of writes, deletions and rejections
documents  JSON → `Document` or `Rejected(reason)`
columns    the same for Arrow streams
rules      what a document must keep to
vectors    a job's documents → passages with their vectors
passages   a text → passages
embedding  texts → vectors: the protocol, its implementations and the embedder role
rows       embedded documents → messages of the vectors log
dead_letters  what was rejected, with its position and bytes
intake     a POSTed batch → the documents log (called by query/api)
"""
