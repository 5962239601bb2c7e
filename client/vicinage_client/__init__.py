"""The Python client of Vicinage: text in, the right passages out.

from vicinage_client import Client

client = Client("http://127.0.0.1:8080", key)
written = client.upsert("docs", [{"id": "hello", "text": "Vicinage finds nearest neighbors."}])
client.search("docs", "what finds neighbors?", k=3, wait_for=written.token).hits
"""

from vicinage_client.async_client import AsyncClient
from vicinage_client.client import Client
from vicinage_client.errors import (
    Conflict,
    Denied,
    DocumentsRejected,
    InvalidArgument,
    NotFound,
    Overloaded,
    Refused,
    Timeout,
    TooLarge,
    Unavailable,
    Unreachable,
    VicinageError,
)
from vicinage_client.results import (
    CollectionFacts,
    Deleted,
    Document,
    Hit,
    Passage,
    Rejection,
    SearchResult,
    Written,
)

__all__ = [
    "AsyncClient",
    "Client",
    "CollectionFacts",
    "Conflict",
    "Deleted",
    "Denied",
    "Document",
    "DocumentsRejected",
    "Hit",
    "InvalidArgument",
    "NotFound",
    "Overloaded",
    "Passage",
    "Refused",
    "Rejection",
    "SearchResult",
    "Timeout",
    "TooLarge",
    "Unavailable",
    "Unreachable",
    "VicinageError",
    "Written",
]
