"""The web page of operators and tenants.

Nothing yet: the API and the command line are complete without it.
"""
