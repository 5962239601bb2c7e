"""Process that parses bodies for a gateway: `python -m query.parse_worker MEMORY_BYTES`.

A frame is a length (8 bytes, little-endian) and a pickle. A request frame has a function and a
body; a response frame has the result or an error. The process ends when its standard input ends, so
it never outlives the gateway.
"""

import pickle
import resource
import struct
import sys
import traceback
from typing import BinaryIO

from vicinage.errors import TooLarge, VicinageError

LENGTH = struct.Struct("<Q")


def main() -> None:
    """Parses bodies until standard input ends."""
    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    while (data := read_frame(sys.stdin.buffer)) is not None:
        response = _respond(data, memory_bytes)
        del data
        sys.stdout.buffer.write(LENGTH.pack(len(response)))
        sys.stdout.buffer.write(response)
        sys.stdout.buffer.flush()


def _respond(data: bytes, memory_bytes: int) -> bytes:
    made: object
    try:
        parse, body = pickle.loads(data)  # noqa: S301  (written by the gateway)
        made = parse(body)
    except VicinageError as error:
        made = error.with_traceback(None)
    except MemoryError:
        made = too_much(memory_bytes)
    except Exception:  # noqa: BLE001  (the role boundary: a bug fails one request)
        made = RuntimeError(traceback.format_exc())
    return pickle.dumps(made, pickle.HIGHEST_PROTOCOL)


def too_much(memory_bytes: int) -> TooLarge:
    """Returns the error for a body whose parsing takes more memory than a worker may use."""
    return TooLarge(
        f"parsing the body takes more than {memory_bytes} bytes of memory: send less at once",
        field="body",
        limit=memory_bytes,
    )


def read_frame(source: BinaryIO) -> bytes | None:
    """Returns the content of the next frame; None if the other end has closed the pipe."""
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (n,) = LENGTH.unpack(head)
    data = source.read(n)
    return data if len(data) == n else None


if __name__ == "__main__":
    main()
