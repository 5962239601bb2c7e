"""A document's metadata is read from each of its passages, in messages and segments alike."""

import numpy as np
import pyarrow as pa
import pytest
from rows import message, unit

from indexer.index.delta import Delta
from indexer.index.hits import Passages, metadata_of
from indexer.index.lazy import LazyColumns
from vicinage.filters import parse

ROWS = [
    ("a", 1, [unit(1), unit(2), unit(3)], '{"n": 1}'),
    ("b", 2, None, ""),
    ("c", 3, [unit(4)], ""),
    ("d", 4, [unit(5), unit(6)], '{"n": 2}'),
]
FACTS = [{"n": 1}] * 3 + [{}] * 2 + [{"n": 2}] * 2


@pytest.fixture(params=[True, False], ids=["format 1", "format 2"])
def older(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_each_row_has_the_metadata_of_its_document(older) -> None:
    batch = message(ROWS, older=older)
    assert batch.column("metadata").null_count == (0 if older else 3)
    assert metadata_of(batch) == FACTS
    passages = Passages(batch)
    assert [passages.metadata(i) for i in range(len(FACTS))] == FACTS
    hit = passages.hit(2, 0.5, frozenset({"metadata"}), unit(0))
    assert (hit.document_id, hit.passage, hit.metadata) == ("a", 2, {"n": 1})


def test_filters_apply_to_metadata_in_segments_and_deltas_of_both_formats(older) -> None:
    first, second = (
        message(ROWS, older=older),
        message([("e", 5, [unit(7)] * 2, '{"n": 2}')], older=not older),
    )
    two = parse({"n": 2})
    assert np.flatnonzero(LazyColumns(first).columns().mask(two)).tolist() == [5, 6]
    delta = Delta(4)
    for offset, batch in enumerate((first, second)):
        delta.append(batch, offset, batch.column("passage").to_numpy() >= 0)
    assert np.flatnonzero(delta.view().columns().mask(two)).tolist() == [5, 6, 7, 8]


def test_rows_of_both_formats_fit_into_one_segment() -> None:
    first, second = message(ROWS, older=True), message([("e", 5, [unit(7)] * 2, '{"n": 2}')])
    joined = pa.concat_batches([first, second])
    assert metadata_of(joined) == [*FACTS, {"n": 2}, {"n": 2}]
