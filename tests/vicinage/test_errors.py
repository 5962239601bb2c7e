"""The error tree: an error keeps its fields across a process boundary."""

import pickle

import pytest

from vicinage import errors
from vicinage.errors import (
    Conflict,
    Corrupt,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    Refused,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
    VicinageError,
)


def tree(kind: type[VicinageError]) -> list[type[VicinageError]]:
    return [
        kind,
        *(
            found
            for child in kind.__subclasses__()
            if child.__module__ == errors.__name__
            for found in tree(child)
        ),
    ]


EXAMPLES = [
    Refused("k is 0", field="k", limit=1),
    TooLarge("the body is too large", field="body", limit=10),
    UnsupportedMedia("brotli is not supported", field="content-encoding"),
    Conflict("it was changed", expected=1, found=2),
    NotFound("there is nothing"),
    Overloaded("full", retry_after_s=2.5),
    Unavailable(
        "the log is down", dependency="log", retry_after_s=3.0, operator_detail="broker-1:9092"
    ),
    DeadlineExceeded("too late", dependency="searcher", ahead=3),
    Corrupt("flipped", path="segments/a"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: e.kind)
def test_an_error_crosses_processes_whole(error: VicinageError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_every_kind_that_takes_more_than_its_detail_is_among_the_examples() -> None:
    plain = {kind for kind in tree(VicinageError) if kind.__init__ is VicinageError.__init__}
    assert set(tree(VicinageError)) - plain <= {type(e) for e in EXAMPLES}
    for kind in plain:
        assert str(pickle.loads(pickle.dumps(kind("why")))) == "why"
