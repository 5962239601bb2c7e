"""Capacity: accounting and headroom, pure over a Snapshot; `snapshot.py` does the I/O."""
