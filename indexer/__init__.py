"""Vectors to searchable: FAISS backends, delta, segment, shard, seal, compact, reindex, upkeep."""
