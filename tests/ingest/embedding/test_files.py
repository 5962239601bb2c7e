"""Facts in a model's files, and models refused before they are registered or served."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.chunking import open_chunker
from ingest.embedding import Lane
from ingest.embedding.check import check, described
from ingest.embedding.files import check_model_files, read_model_files
from ingest.embedding.local import LocalEmbedder
from ingest.embedding.model_input import mean_of_windows
from ingest.embedding.tokenizer import model_root
from tenants.entities import DEFAULT_MODEL, EmbeddingModel
from vicinage.errors import Refused
from vicinage.settings import EmbedderSettings, IngestSettings
from vicinage.tenant_context import TenantContext

SMALL = EmbedderSettings(precision="float32", threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a copy of the default model's files, with linked weights."""
    source, made = model_root(DEFAULT_MODEL), tmp_path / "model"
    shutil.copytree(source, made, ignore=shutil.ignore_patterns("*.safetensors"))
    (made / "model.safetensors").symlink_to(source / "model.safetensors")
    return made


def change(path: Path, **facts: Any) -> None:
    """Changes facts of a JSON file; None removes one."""
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in {**old, **facts}.items() if v is not None}))


def entry(folder: Path, **facts: Any) -> EmbeddingModel:
    return replace(DEFAULT_MODEL, name="own", location=str(folder), **facts)


def test_the_default_models_files_match_its_entry() -> None:
    files = read_model_files(model_root(DEFAULT_MODEL))
    assert (files.dimension, files.window_tokens, files.positions) == (384, 256, 512)
    assert files.normalized
    assert (files.query_prompt, files.document_prompt) == ("", "")
    check_model_files(DEFAULT_MODEL, files)


@pytest.mark.parametrize(
    ("prompts", "default", "query", "document"),
    [
        ({"query": "query: ", "passage": "passage: "}, None, "query: ", "passage: "),
        ({"query": "q ", "document": "d ", "passage": "p "}, None, "q ", "d "),
        ({"query": "q ", "corpus": "c "}, None, "q ", "c "),
        ({"query": "q ", "other": "o "}, "other", "q ", "o "),
        ({"query": "q "}, None, "q ", ""),
        ({"all": "a "}, "all", "a ", "a "),
        (None, "all", "", ""),
    ],
)
def test_prompts_are_read_as_sentence_transformers_reads_them(
    folder: Path, prompts: Any, default: Any, query: str, document: str
) -> None:
    change(
        folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name=default
    )
    files = read_model_files(folder)
    assert (files.query_prompt, files.document_prompt) == (query, document)


@pytest.mark.parametrize(
    ("facts", "tokenizer", "positions"),
    [
        ({"max_position_embeddings": 512}, {"model_max_length": 512}, 512),
        (
            {"max_position_embeddings": 514, "model_type": "xlm-roberta"},
            {"model_max_length": 512},
            512,
        ),
        ({"max_position_embeddings": 514, "model_type": "mpnet"}, {"model_max_length": 1e30}, 512),
        ({"max_position_embeddings": 8192}, {"model_max_length": 2048}, 2048),
        ({"max_position_embeddings": None}, {"model_max_length": 1e30}, None),
    ],
)
def test_positions_are_those_that_the_network_can_compute(
    folder: Path, facts: dict[str, Any], tokenizer: dict[str, Any], positions: int | None
) -> None:
    change(folder / "config.json", **facts)
    change(folder / "tokenizer_config.json", **tokenizer)
    assert read_model_files(folder).positions == positions


def test_a_window_beyond_the_positions_is_refused_everywhere(folder: Path) -> None:
    """Three searches of 600 tokens ended the embedder if the window was given as 2,048."""
    beyond = entry(folder, window_tokens=2_048)
    with pytest.raises(Refused, match="at most 512 tokens") as raised:
        LocalEmbedder(beyond, SMALL)
    assert (raised.value.field, raised.value.limit) == ("window_tokens", 512)
    with pytest.raises(Refused, match="at most 512 tokens"):
        described({"name": "own", "kind": "local", "location": str(folder), "window_tokens": 2_048})


def test_missing_facts_are_read_from_the_files(folder: Path) -> None:
    change(
        folder / "config_sentence_transformers.json", prompts={"query": "q: ", "document": "d: "}
    )
    change(folder / "sentence_bert_config.json", max_seq_length=128)
    (folder / "modules.json").write_text(
        json.dumps(json.loads((folder / "modules.json").read_text())[:2])
    )
    found = described({"name": "own", "kind": "local", "location": str(folder)})
    assert (found.dimension, found.window_tokens, found.normalized) == (384, 128, False)
    assert (found.query_prompt, found.document_prompt) == ("q: ", "d: ")
    given = {
        "name": "own",
        "kind": "local",
        "location": str(folder),
        "window_tokens": 64,
        "query_prompt": "",
    }
    assert (described(given).window_tokens, described(given).query_prompt) == (64, "")


@pytest.mark.parametrize("missing", ["dimension", "window_tokens"])
def test_a_servers_facts_must_be_given(missing: str) -> None:
    given = {
        "name": "own",
        "kind": "openai",
        "location": "http://127.0.0.1:9/v1",
        "dimension": 4,
        "window_tokens": 64,
    }
    with pytest.raises(Refused, match=f"{missing} is missing"):
        described({**given, missing: None})


def test_a_model_in_a_folder_below_its_modules_is_loaded(folder: Path) -> None:
    below = folder / "0_Transformer"
    below.mkdir()
    for name in ("tokenizer.json", "config.json", "model.safetensors", "sentence_bert_config.json"):
        (folder / name).rename(below / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert model_root(entry(folder)) == folder
    assert read_model_files(folder).window_tokens == 256


@pytest.mark.model
@pytest.mark.timeout(600)
def test_a_model_that_cannot_be_loaded_is_refused_with_the_reason(folder: Path) -> None:
    check(entry(folder))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(Refused, match="cannot be used"):
        check(entry(folder))


@pytest.mark.model
def test_each_lane_has_its_prompt_and_no_normalization_where_the_entry_says_so(
    folder: Path,
) -> None:
    plain = LocalEmbedder(entry(folder), SMALL)
    prompted = LocalEmbedder(
        entry(folder, query_prompt="find: ", document_prompt="keep: ", normalized=False), SMALL
    )
    try:
        for lane, prompt in ((Lane.QUERY, "find: "), (Lane.DOCUMENT, "keep: ")):
            got = prompted.embed(["red apples"], tenant=TenantContext("t"), lane=lane)
            wanted = plain.embed([prompt + "red apples"], tenant=TenantContext("t"), lane=lane)
            assert abs(np.linalg.norm(got) - 1) > 0.01, "the model's own length"
            np.testing.assert_allclose(got / np.linalg.norm(got), wanted, atol=1e-4)
    finally:
        plain.close()
        prompted.close()


@pytest.mark.model
def test_a_search_text_longer_than_the_window_is_read_completely(folder: Path) -> None:
    embedder = LocalEmbedder(entry(folder, window_tokens=32, query_prompt="find: "), SMALL)
    head, tail = "apples and pears " * 12, "steel bridges across rivers " * 12
    try:
        vectors = embedder.embed(
            [head + tail, head, tail, "short"], tenant=TenantContext("t"), lane=Lane.QUERY
        )
        assert vectors.shape == (4, 384)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        whole, first, last = vectors[:3]
        assert min(whole @ first, whole @ last) > first @ last, "both halves count"
        np.testing.assert_allclose(
            embedder.embed(["short"], tenant=TenantContext("t"), lane=Lane.QUERY)[0],
            vectors[3],
            atol=1e-4,
        )
        with pytest.raises(Refused, match="tokens"):
            embedder.embed([head + tail], tenant=TenantContext("t"), lane=Lane.DOCUMENT)
    finally:
        embedder.close()


def test_a_prompt_takes_its_tokens_from_the_passages() -> None:
    model = replace(
        DEFAULT_MODEL, window_tokens=32, document_prompt="represent this passage for search: "
    )
    settings = IngestSettings(passage_tokens=200, passage_overlap_tokens=0)
    longest = max(len(p.text.split()) for p in open_chunker(model, settings).chunk("apple " * 100))
    assert longest <= 32 - 2 - 6
    with pytest.raises(Refused, match="fills its window"):
        open_chunker(replace(model, document_prompt="word " * 40), settings)


def test_windows_count_by_their_tokens() -> None:
    vectors = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(
        mean_of_windows(vectors, [[3, 1], [5]], normalized=False), [[0.75, 0.25, 0], [0, 0, 1]]
    )
    unit = mean_of_windows(vectors, [[3, 1], [5]], normalized=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert mean_of_windows(vectors, [[1], [1], [1]], normalized=True) is vectors
