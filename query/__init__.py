"""The gateway role: HTTP API, admission, plan, scatter and merge.

`searcher/` is the searcher role; `quality/` measures recall and freshness.
"""
