"""The index specification of a generation: its text form, and its parser."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from vicinage.errors import Refused

Kind = Literal["flat", "hnsw", "ivf", "ivfpq", "rabitq"]
Codes = Literal["f32", "sq8"]

M_MIN: Final = 4
M_MAX: Final = 128
EFC_MIN: Final = 8
EFC_MAX: Final = 2_000
LISTS_MAX: Final = 65_536

GRAMMAR: Final = (
    "auto, flat, hnsw[:M=32,efc=80,codes=f32|sq8], ivf[:lists=N], ivfpq[:lists=N] or rabitq"
)


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """The index of a segment: a kind and its parameters.

    hnsw has `m`, `ef_construction` and `codes`, the encoding of the graph's vectors: float32, or
    one byte per number. ivf and ivfpq have `lists`; 0 chooses by the number of passages. Indexes
    that search codes rescore their candidates with the stored vectors.
    """

    kind: Kind
    m: int = 32
    ef_construction: int = 80
    codes: Codes = "f32"
    lists: int = 0

    def __str__(self) -> str:
        if self.kind == "hnsw":
            return f"hnsw:M={self.m},efc={self.ef_construction},codes={self.codes}"
        return (
            f"{self.kind}:lists={self.lists}"
            if self.kind in ("ivf", "ivfpq") and self.lists
            else self.kind
        )


_SPEC: Final = re.compile(
    r"(flat|hnsw|ivf|ivfpq|rabitq)(?::((?:M|efc|codes|lists)=[a-z0-9]{1,8}(?:,[A-Za-z]+=[a-z0-9]{1,8})*))?"
)
_NAMES: Final[dict[Kind, frozenset[str]]] = {
    "flat": frozenset(),
    "hnsw": frozenset({"M", "efc", "codes"}),
    "ivf": frozenset({"lists"}),
    "ivfpq": frozenset({"lists"}),
    "rabitq": frozenset(),
}


def parse(spec: str) -> IndexSpec | None:
    """Parses `spec` (see GRAMMAR); returns None for auto, which chooses by size. Raises Refused."""
    if spec == "auto":
        return None
    form = _SPEC.fullmatch(spec)
    if form is None:
        raise Refused(f"index is {GRAMMAR}", field="index")
    kind: Kind = form[1]  # type: ignore[assignment]  # the pattern has no other
    given = dict(part.split("=") for part in form[2].split(",")) if form[2] else {}
    if not given.keys() <= _NAMES[kind]:
        raise Refused(
            f"index: {kind} takes {', '.join(sorted(_NAMES[kind])) or 'no parameters'}",
            field="index",
        )
    return IndexSpec(
        kind,
        m=_whole(given, "M", 32, M_MIN, M_MAX),
        ef_construction=_whole(given, "efc", 80, EFC_MIN, EFC_MAX),
        codes=_codes(given.get("codes", "f32")),
        lists=_whole(given, "lists", 0, 1, LISTS_MAX),
    )


def _whole(given: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not text.isdigit() or not low <= int(text) <= high:
        raise Refused(f"index: {name} is a whole number from {low} to {high}", field="index")
    return int(text)


def _codes(text: str) -> Codes:
    if text not in ("f32", "sq8"):
        raise Refused("index: codes is f32 or sq8", field="index")
    return cast("Codes", text)
