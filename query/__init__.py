"""Questions answered: the gateway, admission, plan, scatter, merge, freshness and the recall monitor."""
