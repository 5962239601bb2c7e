"""Turns the bytes of documents into rows of the vectors log.

run        ★ the role: read → parse → validate → chunk → embed → append → commit
dispatcher runs what the scheduler chooses; workers are its threads
topics     which partitions are read; partitions reads them, position_store keeps how far
writer     appends and commits a job's result; fencing stops an ingest that another one has
overtaken
scheduler  decides which part is embedded next and which job is written next
lanes      when a generation is written apart from its partition; lane_scheduler does it
jobs       records of the documents log → jobs of writes, deletions and rejections
documents  JSON → `Document` or `Rejected(reason)`
columns    the same for Arrow streams
validation the limits of a document
embed      a job's documents → passages with their vectors
chunking   a text → passages
embedding  texts → vectors: the protocol, its implementations and the embedder role
rows       embedded documents → messages of the vectors log
dead_letters  what was rejected, with its position and bytes
intake     a POSTed batch → the documents log (called by query/api)
"""
