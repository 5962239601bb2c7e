"""Typed models of every body, parameter and problem of the HTTP API.

The OpenAPI document is generated from them. The parsers of searches and documents do not use them:
a body is validated once. A property test holds both to the same behavior
(docs/decisions/037-typed-http-api.md).
"""
