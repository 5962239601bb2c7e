"""Measures search quality: recall on live traffic, and freshness.

recall          samples searches, and corrects the effort by what it measures
comparison      a search repeated exactly, and compared
samples         the measurements of each collection, and their report
recall_history  measurements kept over restarts
windows         consecutive windows of samples, each with its interval
interval        confidence sequences, valid under continuous watching
correction      how much effort is added where live recall misses the objective
freshness       waits for writes, and the lag that an answer states
ingest_wait     the wait until ingest has passed a token
lag_reader      the age of records that are accepted and not yet searchable
lag_cache       lags measured a moment ago, so that searches do not wait
lag_sweep       the lag of all tenants, in the background
"""
