"""Searches: the gateway, admission, plan, scatter, merge, freshness, the recall monitor, and the searcher role."""
