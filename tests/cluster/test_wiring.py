"""A role waits for brokers that start a little later; a command does not."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from resources import settings
from servers import free_port

from cluster.wiring import open_resources
from vicinage.errors import Unavailable
from vicinage.settings import Settings


def on_port(folder: Path, port: int) -> Settings:
    return settings(folder).model_copy(update={"log_url": f"kafka://127.0.0.1:{port}"})


@contextmanager
def forwarded_later(port: int, to: str, after_s: float) -> Iterator[None]:
    """Listens on the port after a delay, and forwards every connection to the server."""
    host, _, to_port = to.rpartition(":")
    loop = asyncio.new_event_loop()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while taken := await reader.read(1 << 16):
            writer.write(taken)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(host, int(to_port))
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    async def serve() -> None:
        await asyncio.sleep(after_s)
        await asyncio.start_server(connected, "127.0.0.1", port)

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(serve(), loop)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.close()


def test_an_unreachable_log_is_waited_for_within_the_given_time(tmp_path: Path) -> None:
    port, began = free_port(), time.monotonic()
    with pytest.raises(Unavailable):
        open_resources(on_port(tmp_path, port), log_wait_s=1.2)
    assert time.monotonic() - began > 0.5
    again = time.monotonic()
    with pytest.raises(Unavailable):
        open_resources(on_port(tmp_path, port))
    assert time.monotonic() - again < 10, "a command says so at once"


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_brokers_that_start_beside_a_role_are_waited_for(
    tmp_path: Path, kafka_servers: str
) -> None:
    port = free_port()
    with (
        forwarded_later(port, kafka_servers, after_s=1.5),
        open_resources(on_port(tmp_path, port), log_wait_s=30).log as log,
    ):
        assert "vicinage.vectors" in log.topics()
