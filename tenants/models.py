"""Validation of entries of the model registry. Pure."""

import re
from typing import Final
from urllib.parse import urlsplit

from tenants.entities import (
    EmbeddingModel,
)
from vicinage.errors import Refused

MODEL_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._/-]{0,62}")
DIMENSION_MAX: Final = 4_096
WINDOW_MIN: Final = 16
WINDOW_MAX: Final = 1_000_000
PROMPT_MAX: Final = 2_000
LOCATION_MAX: Final = 1_000


def check_entry(model: EmbeddingModel) -> None:
    """Raises Refused for an entry outside the registry's bounds.

    Does not access files or servers.
    """
    if not MODEL_NAME.fullmatch(model.name):
        raise Refused(
            "a model's name is 1 to 63 of a-z, A-Z, 0-9, '.', '_', '-' and '/', and begins with "
            "a letter or digit",
            field="name",
            limit=63,
        )
    if not 1 <= model.dimension <= DIMENSION_MAX:
        raise Refused(f"dimension is 1 to {DIMENSION_MAX}", field="dimension", limit=DIMENSION_MAX)
    if not WINDOW_MIN <= model.window_tokens <= WINDOW_MAX:
        raise Refused(
            f"window_tokens is {WINDOW_MIN} to {WINDOW_MAX}",
            field="window_tokens",
            limit=WINDOW_MAX,
        )
    for name, prompt in (
        ("query_prompt", model.query_prompt),
        ("document_prompt", model.document_prompt),
    ):
        if len(prompt) > PROMPT_MAX or any(ord(c) < 32 and c not in "\n\t" for c in prompt):
            raise Refused(
                f"{name} is at most {PROMPT_MAX} characters, without control characters",
                field=name,
                limit=PROMPT_MAX,
            )
    if model.kind == "oip":
        raise Refused(
            "kind oip is not supported yet: use an OpenAI-compatible server (kind openai)",
            field="kind",
        )
    if model.kind not in ("local", "openai"):
        raise Refused("kind is one of local, openai", field="kind")
    if not model.location.isprintable() or not 1 <= len(model.location) <= LOCATION_MAX:
        raise Refused(
            f"location is 1 to {LOCATION_MAX} printable characters",
            field="location",
            limit=LOCATION_MAX,
        )
    module = model.location.removeprefix("package:")
    if model.kind == "local" and module != model.location and not module.isidentifier():
        raise Refused("location package:MODULE names one installed module", field="location")
    if model.kind == "openai":
        _check_server(model.location)


def _check_server(location: str) -> None:
    try:
        url = urlsplit(location)
        host, user = url.hostname, url.username
    except ValueError:
        raise Refused("location is not a URL", field="location") from None
    if url.scheme not in ("http", "https") or not host:
        raise Refused(
            "location of kind openai is the server's base URL: http(s)://HOST[:PORT]/v1",
            field="location",
        )
    if user is not None:
        raise Refused(
            "a key in the location would be shown: set embedder.model_keys instead",
            field="location",
        )
