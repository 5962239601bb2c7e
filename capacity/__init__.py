"""How much is left: accounting and headroom, pure over a Snapshot; `snapshot.py` is the I/O."""
