"""A process that parses bodies for a gateway: `python -m query.parse_worker MEMORY_BYTES`.

Each frame is a length (8 bytes, little-endian) and a pickle: a function and a body come in, its result or an error goes
out. It ends with its standard input, so it never outlives the gateway.
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
    """Answers bodies until standard input ends."""
    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    while (data := read_frame(sys.stdin.buffer)) is not None:
        answered = _answer(data, memory_bytes)
        del data
        sys.stdout.buffer.write(LENGTH.pack(len(answered)))
        sys.stdout.buffer.write(answered)
        sys.stdout.buffer.flush()


def _answer(data: bytes, memory_bytes: int) -> bytes:
    made: object
    try:
        parse, body = pickle.loads(data)  # noqa: S301  (written by the gateway)
        made = parse(body)
    except VicinageError as error:
        made = error.with_traceback(None)
    except MemoryError:
        made = too_much(memory_bytes)
    except Exception:  # noqa: BLE001  (the role boundary: a body that finds a fault of ours is one request's failure)
        made = RuntimeError(traceback.format_exc())
    return pickle.dumps(made, pickle.HIGHEST_PROTOCOL)


def too_much(memory_bytes: int) -> TooLarge:
    """Returns the refusal of a body whose parsing takes more memory than a worker may have."""
    return TooLarge(
        f"parsing the body takes more than {memory_bytes} bytes of memory: send less at once",
        field="body",
        limit=memory_bytes,
    )


def read_frame(source: BinaryIO) -> bytes | None:
    """Returns the next frame, None where the other end has gone."""
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (n,) = LENGTH.unpack(head)
    data = source.read(n)
    return data if len(data) == n else None


if __name__ == "__main__":
    main()
