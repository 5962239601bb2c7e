"""Checks a model before it enters the registry: loads its files, or calls its server.

A local model is loaded in a separate process. So weights of any size leave no memory allocated, and
a crash of the library becomes a refusal.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Final

import orjson

from ingest.embedding import open_embedder
from ingest.embedding.files import check_model_files, read_model_files
from ingest.embedding.tokenizer import model_root
from tenants.entities import EmbeddingModel
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Refused, VicinageError
from vicinage.tenant_context import TenantContext

LOAD_S: Final = 300.0
"""Longest time, in seconds, to load a local model."""
CALL_S: Final = 15.0
"""Longest time, in seconds, for a server to embed one short text."""
TEXT: Final = "A short text that any embedding model takes."


def described(fields: Mapping[str, Any]) -> EmbeddingModel:
    """Returns the registry entry for these fields.

    A local model's files supply the missing fields. Raises Refused if a fact is in neither of them,
    or if the files contradict a field.
    """
    bare = EmbeddingModel(fields["name"], fields["kind"], fields["location"], 1, 16)
    known: dict[str, Any] = {}
    if fields["kind"] == "local":
        files = read_model_files(model_root(bare))
        known = {
            "dimension": files.dimension,
            "window_tokens": files.window_tokens,
            "normalized": files.normalized,
            "query_prompt": files.query_prompt,
            "document_prompt": files.document_prompt,
        }
    known |= {name: value for name, value in fields.items() if value is not None}
    for name, what in (
        ("dimension", "the length of its vectors"),
        ("window_tokens", "the longest input it accepts"),
    ):
        if known.get(name) is None:
            raise Refused(f"{name} is missing: {what}; no file of the model states it", field=name)
    model = replace(bare, **known)
    if model.kind == "local":
        check_model_files(model, files)
    return model


def check(model: EmbeddingModel, *, model_key: str | None = None) -> None:
    """Checks a model by embedding with it.

    Raises Refused, with the reason, if that fails or the vectors differ from the entry's facts.
    """
    if model.kind == "local":
        _check_local(model)
    elif model.kind == "openai":
        check_server(model, model_key)


def check_server(model: EmbeddingModel, model_key: str | None) -> None:
    """Embeds one short text on the model's server. Raises Refused with the reason for operators."""
    embedder = open_embedder(model, url="", model_key=model_key, timeout_s=CALL_S)
    try:
        embedder.embed([TEXT], tenant=TenantContext(""), deadline=Deadline.after(CALL_S))
    except DeadlineExceeded:
        raise Refused(
            f"{model.location} did not respond within {CALL_S:.0f} s", field="location"
        ) from None
    except VicinageError as error:
        reason = getattr(error, "operator_detail", error.detail)
        raise Refused(f"the model's server cannot be used: {reason}", field="location") from None
    finally:
        embedder.close()


def _check_local(model: EmbeddingModel) -> None:
    command = [sys.executable, "-P", "-m", "ingest.embedding.check"]
    try:
        process = subprocess.run(
            command,
            input=orjson.dumps(asdict(model)),
            capture_output=True,
            timeout=LOAD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"the model did not load within {LOAD_S:.0f} s", field="location") from None
    lines = process.stdout.strip().splitlines()
    try:
        result = orjson.loads(lines[-1]) if lines else {}
    except orjson.JSONDecodeError:
        result = {}
    if result.get("good") is not True:
        end = process.stderr.decode(errors="replace").strip().splitlines()[-1:] or [
            "it ended without a message"
        ]
        reason = result.get("reason") or f"exit status {process.returncode}: {end[0][:300]}"
        raise Refused(
            f"the model cannot be used: {reason}", field=result.get("field") or "location"
        )


def _main() -> int:
    from ingest.embedding.model_trials import try_model

    try:
        try_model(EmbeddingModel(**orjson.loads(sys.stdin.buffer.read())))
    except VicinageError as error:
        result = {"good": False, "reason": error.detail, "field": getattr(error, "field", None)}
    except Exception as error:  # noqa: BLE001  (the boundary of this process: the reason goes to the caller)
        result = {"good": False, "reason": f"{type(error).__name__}: {error}"[:500]}
    else:
        result = {"good": True}
    sys.stdout.write(orjson.dumps(result).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
