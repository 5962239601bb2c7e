"""Documents in: from bytes that somebody sent to rows of the vectors log.

run        ★ the role: poll → parse → chunk → embed → append → commit
scheduler  which part is embedded next and which job is written next: what decides
lanes      when a generation is written apart from its partition; lane_scheduler does it
jobs       records of the documents log → jobs of writes, deletions and rejections
documents  JSON → `Document` or `Rejected(reason)`
columns    the same for Arrow streams
validation what a document must keep to
embed      a job's documents → passages with their vectors
chunking   a text → passages
embedding  texts → vectors: the protocol, its implementations and the embedder role
rows       embedded documents → messages of the vectors log
dead_letters  what was rejected, with its position and bytes
intake     a POSTed batch → the documents log (called by query/api)
"""
