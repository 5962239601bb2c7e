"""Searches: the gateway, admission, plan, scatter and merge; `searcher/` is the searcher role, `quality/` measures recall and freshness."""
