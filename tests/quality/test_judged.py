"""Lexical ranking on judged sets, beside bm25s with its own text analysis, on the same passages."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "loadtest"))
from judged import reference_rankings
from judged_sets import json_lines, long_queries, measure, read
from judged_shard import JudgedShard, pieces_of

pytestmark = [pytest.mark.model, pytest.mark.slow]
WITHIN = 0.005
"""Allowed difference below the reference; there is no upper bound."""
HERE = Path(__file__).resolve().parent.parent.parent
PLACES = [HERE.parent / "shared" / "data", HERE.parent.parent / "shared" / "data"]


def folder(name: str) -> Path:
    found = next((place / name for place in PLACES if (place / name).is_dir()), None)
    if found is None:
        pytest.skip(f"the judged set {name} is not beside the repository")
    return found


def test_lines_end_at_a_line_feed_alone(tmp_path: Path) -> None:
    file = tmp_path / "documents.jsonl"
    file.write_text(
        '{"id": "a", "text": "one\u2028two\u0085three"}\n{"id": "b", "text": "four"}\r\n\n',
        "utf-8",
        newline="",
    )
    assert [line["text"] for line in json_lines(file)] == ["one\u2028two\u0085three", "four"]


@pytest.mark.parametrize("name", ["cranfield", "dbpedia"])
def test_lexical_ranking_is_as_good_as_the_reference(name: str, tmp_path: Path) -> None:
    """Compares three segments and a delta, on short queries and whole abstracts."""
    judged = read(folder(name))
    pieces = pieces_of(judged)
    shard = JudgedShard(pieces, np.ones((len(pieces), 1), np.float32), tmp_path)
    for asked in [judged, long_queries(judged)] if name == "cranfield" else [judged]:
        ours = measure(shard.rankings(asked.queries, None, "lexical"), asked)
        theirs = measure(reference_rankings(asked, pieces), asked)
        print(name, ours, theirs)
        assert ours["ndcg@10"] >= theirs["ndcg@10"] - WITHIN
        assert ours["recall@100"] >= theirs["recall@100"] - 2 * WITHIN
