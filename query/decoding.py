"""Decompresses request bodies (Content-Encoding) within bounds on their decompressed size."""

from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
from starlette.concurrency import run_in_threadpool

from vicinage.errors import Refused, TooLarge, UnsupportedMedia

CODECS: Final = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}
PIECE: Final = 1 << 20
GROWN_FLOOR: Final = 16 << 20
"""Decompressed bytes that a body of any compressed size may have."""
GROWN_RATIO: Final = 32
"""Further decompressed bytes for each compressed byte; JSON and text compress about ten times."""


async def decoded(data: bytes, encoding: str, bytes_max: int, hold: Callable[[int], None]) -> bytes:
    """Returns the decompressed body. Calls `hold` with the bytes of each piece before the next one.

    Raises UnsupportedMedia for an encoding other than gzip and zstd, and Refused for damaged data.
    Raises TooLarge beyond `bytes_max` or the bound of GROWN_FLOOR and GROWN_RATIO, and what `hold`
    raises.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return data
    if name not in CODECS:
        raise UnsupportedMedia(
            f"content-encoding {encoding[:80]!r} is not supported: send gzip, zstd or none",
            field="content-encoding",
        )
    limit = min(bytes_max, GROWN_FLOOR + GROWN_RATIO * len(data))
    pieces: list[bytes] = []
    size = 0
    try:
        stream = pa.CompressedInputStream(pa.BufferReader(data), CODECS[name])
        while piece := await run_in_threadpool(_read, stream):
            size += len(piece)
            if size > limit:
                raise TooLarge(
                    f"the body has over {limit} bytes once decompressed", field="body", limit=limit
                )
            hold(len(piece))
            pieces.append(piece)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Refused(f"the body is not {name}: {str(error)[:100]}", field="body") from None
    return b"".join(pieces)


def _read(stream: Any) -> bytes:
    piece: bytes = stream.read(PIECE)
    return piece
