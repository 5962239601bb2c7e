"""Who may do what: tenants, keys, collections, the model registry, manifests, leases, jobs and the audit chain."""
