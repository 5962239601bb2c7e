"""/v1/admin: the operators' routes.

They need an operator's key; every change leaves an audit record (guarantee 10).
"""
