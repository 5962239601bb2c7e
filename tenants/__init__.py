"""State of the control plane.

Tenants, keys, collections, the model registry, manifests, leases, jobs and the audit chain.
"""
