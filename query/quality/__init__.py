"""Measures search quality: recall on live traffic, and freshness.

recall      sampled searches repeated exactly, and compared
windows     consecutive windows of samples, each with its interval
interval    confidence sequences, valid under continuous watching
correction  how much effort is added where live recall misses the objective
freshness   the age of records that are accepted and not yet searchable
lag_sweep   every tenant's freshness lag, one after the other
"""
