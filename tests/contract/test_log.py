"""The contract of logs: order, durability on return, replay, wake-ups, refusals.

Over SQLite and a real Kafka.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from resources import eventually
from servers import NoUtf8

from vicinage.errors import NotFound, Refused, Unavailable
from vicinage.log import Log, Record, open_log


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.xdist_group("kafka")]),
    ]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    return f"kafka://{request.getfixturevalue('kafka_servers')}"


@pytest.fixture
def log(url: str) -> Iterator[Log]:
    with open_log(url) as made:
        yield made


@pytest.fixture
def topic(log: Log) -> str:
    name = f"t-{uuid.uuid4().hex[:8]}"
    assert log.ensure_topic(name, 2) == 2
    return name


def values(records: list) -> list[bytes | None]:
    return [r.record.value for r in records]


def drain(reader, n: int, wait_s: float = 20.0) -> list:
    found, end = [], time.monotonic() + wait_s
    while len(found) < n and time.monotonic() < end:
        found.extend(reader.poll(wait_s=0.5))
    return found


def test_records_come_back_in_order_with_their_offsets(log: Log, topic: str) -> None:
    first = log.append(topic, 0, [Record(b"a"), Record(b"b")])
    second = log.append(topic, 0, [Record(b"c")])
    assert [*first, *second] == sorted({*first, *second})
    read = log.read(topic, 0, first[0])
    assert values(read) == [b"a", b"b", b"c"]
    assert [r.offset for r in read] == [*first, *second]


def test_a_record_keeps_key_headers_time_and_the_absence_of_a_value(log: Log, topic: str) -> None:
    sent = Record(None, b"key", (("a", b"\x00\xff"), ("b", b"")), 1_700_000_000_123)
    log.append(topic, 1, [sent])
    assert log.read(topic, 1, 0)[0].record == sent


def test_begin_and_end_follow_what_is_written(log: Log, topic: str) -> None:
    assert (log.begin(topic, 0), log.end(topic, 0)) == (0, 0)
    offsets = log.append(topic, 0, [Record(b"x")] * 5)
    assert log.end(topic, 0) == offsets[-1] + 1
    assert log.end(topic, 1) == 0


def test_extents_are_those_of_the_partitions_that_exist(log: Log, topic: str) -> None:
    log.append(topic, 0, [Record(b"x")] * 5)
    log.trim(topic, 0, 2)
    found = log.extents([(topic, 0), (topic, 1), (topic, 2), (topic, -1), ("no-such-topic", 0)])
    assert found == {(topic, p): (log.begin(topic, p), log.end(topic, p)) for p in (0, 1)}
    assert found[topic, 0] == (2, 5)
    assert log.extents([]) == {}


def test_extents_are_those_of_a_topic_that_has_just_been_made_too(log: Log, topic: str) -> None:
    log.extents([(topic, 0)])
    new = f"new-{uuid.uuid4().hex[:8]}"
    log.ensure_topic(new, partitions=1)
    log.extents([(topic, 0)])
    assert log.extents([(topic, 0), (new, 0)]) == {(topic, 0): (0, 0), (new, 0): (0, 0)}


def test_reading_at_the_end_is_empty_and_beyond_it_is_refused(log: Log, topic: str) -> None:
    log.append(topic, 0, [Record(b"x")])
    assert log.read(topic, 0, 1) == []
    with pytest.raises(Refused, match="beyond the end"):
        log.read(topic, 0, 7)


def test_an_unknown_topic_is_not_found(log: Log) -> None:
    with pytest.raises(NotFound):
        log.append("nowhere", 0, [Record(b"x")])
    with pytest.raises(NotFound):
        log.end("nowhere", 0)


def test_a_large_record_goes_through(log: Log, topic: str) -> None:
    big = os.urandom(3 << 20)
    log.append(topic, 0, [Record(big)])
    assert log.read(topic, 0, 0)[0].record.value == big


def test_positions_are_kept_per_group_and_partition(log: Log, topic: str) -> None:
    group = f"g-{uuid.uuid4().hex[:8]}"
    assert log.committed(group, [(topic, 0), (topic, 1)]) == {}
    log.commit(group, {(topic, 0): 3, (topic, 1): 4})
    log.commit(group, {(topic, 0): 5})
    assert log.committed(group, [(topic, 0), (topic, 1)]) == {(topic, 0): 5, (topic, 1): 4}
    assert log.committed("another", [(topic, 0)]) == {}


def test_many_threads_commit_at_once(log: Log, topic: str) -> None:
    groups = [f"g-{uuid.uuid4().hex[:8]}" for _ in range(16)]
    positions = [{(topic, 0): n, (topic, 1): n + 1} for n in range(1, 51)]
    with ThreadPoolExecutor(len(groups)) as threads:
        list(threads.map(lambda group: [log.commit(group, each) for each in positions], groups))
    for group in groups:
        assert log.committed(group, [(topic, 0), (topic, 1)]) == positions[-1]


def test_waiting_for_a_position_wakes_when_it_is_committed(log: Log, topic: str) -> None:
    group = f"g-{uuid.uuid4().hex[:8]}"
    log.commit(group, {(topic, 0): 1})
    assert not log.wait_committed(group, topic, 0, 1, wait_s=0.1)
    threading.Timer(0.2, log.commit, (group, {(topic, 0): 2})).start()
    start = time.monotonic()
    assert log.wait_committed(group, topic, 0, 1, wait_s=10)
    assert time.monotonic() - start < 5


def test_a_reader_goes_on_where_it_is_and_sees_every_partition(log: Log, topic: str) -> None:
    log.append(topic, 0, [Record(b"a0")])
    log.append(topic, 1, [Record(b"b0")])
    reader = log.reader({(topic, 0): 0, (topic, 1): 0})
    assert sorted(values(drain(reader, 2))) == [b"a0", b"b0"]
    log.append(topic, 0, [Record(b"a1")])
    assert values(drain(reader, 1)) == [b"a1"]
    assert reader.poll() == []
    reader.close()


def test_a_reader_adds_and_removes_partitions(log: Log, topic: str) -> None:
    reader = log.reader({(topic, 0): 0})
    log.append(topic, 0, [Record(b"a")])
    log.append(topic, 1, [Record(b"b"), Record(b"c")])
    assert values(drain(reader, 1)) == [b"a"]
    reader.add(topic, 1, 1)
    assert values(drain(reader, 1)) == [b"c"]
    reader.remove(topic, 0)
    log.append(topic, 0, [Record(b"d")])
    assert reader.poll(wait_s=0.3) == []
    reader.close()


def test_an_idle_reader_misses_nothing_when_another_topic_that_moved_last_is_deleted(
    log: Log, topic: str
) -> None:
    other = f"{topic}-other"
    log.ensure_topic(other)
    log.append(topic, 0, [Record(b"a")])
    log.append(other, 0, [Record(b"b")])
    reader = log.reader({(topic, 0): 0})
    assert values(drain(reader, 1)) == [b"a"]
    log.delete_topic(other)
    log.append(topic, 0, [Record(b"c")])
    assert values(drain(reader, 1, wait_s=10)) == [b"c"]
    reader.close()


def test_replay_gives_the_same_again(log: Log, topic: str) -> None:
    log.append(topic, 0, [Record(str(i).encode()) for i in range(50)])
    again = [values(drain(log.reader({(topic, 0): 10}), 40)) for _ in range(2)]
    assert again[0] == again[1] == [str(i).encode() for i in range(10, 50)]


def test_a_busy_partition_does_not_hold_back_a_quiet_one(log: Log, topic: str) -> None:
    log.append(topic, 0, [Record(b"x" * 1_000)] * 2_000)
    log.append(topic, 1, [Record(b"quiet")])
    reader = log.reader({(topic, 0): 0, (topic, 1): 0})
    taken = []
    for _ in range(4):
        taken.extend(reader.poll(bytes_max=100_000, wait_s=2))
    assert b"quiet" in values(taken)
    reader.close()


def test_a_reader_wakes_at_once(log: Log, topic: str) -> None:
    reader = log.reader({(topic, 0): 0})
    reader.poll(wait_s=0.1)
    lags: list[float] = []

    def write() -> None:
        for _ in range(20):
            time.sleep(0.03)
            log.append(topic, 0, [Record(str(time.perf_counter()).encode())])

    writer = threading.Thread(target=write)
    writer.start()
    while len(lags) < 20:
        lags.extend(time.perf_counter() - float(r.record.value) for r in reader.poll(wait_s=5))
    writer.join()
    reader.close()
    assert np.median(lags) < 0.2, f"median wake-up {np.median(lags) * 1e3:.1f} ms"


def is_missed(log: Log, topic: str) -> bool:
    try:
        log.end(topic, 1)
    except NotFound:
        return True
    return False


def test_a_topic_that_another_process_deletes_is_missed_at_once(
    log: Log, topic: str, url: str
) -> None:
    kept = f"{topic}-kept"
    log.ensure_topic(kept, 1)
    assert log.end(topic, 1) == log.end(kept, 0) == 0
    with open_log(url) as other:
        other.delete_topic(topic)
    eventually(lambda: is_missed(log, topic))  # a broker deletes in the background
    with pytest.raises(NotFound):
        log.begin(topic, 0)
    assert log.extents([(topic, 0), (topic, 1), (kept, 0)]) == {(kept, 0): (0, 0)}
    log.commit("g", {(topic, 1): 1, (kept, 0): 7})
    assert log.committed("g", [(kept, 0)]) == {(kept, 0): 7}


def test_a_topic_that_another_process_creates_again_with_fewer_partitions_has_only_those(
    log: Log, topic: str, url: str
) -> None:
    both = [(topic, 0), (topic, 1)]
    log.append(topic, 0, [Record(b"a")])
    assert log.extents(both) == {(topic, 0): (0, 1), (topic, 1): (0, 0)}
    with open_log(url) as other:
        other.delete_topic(topic)
        other.ensure_topic(topic, 1)
    eventually(lambda: log.extents(both) == {(topic, 0): (0, 0)})
    assert log.extents(both[:1]) == {(topic, 0): (0, 0)}


def test_trimmed_records_are_gone_and_their_offsets_refused(log: Log, topic: str) -> None:
    log.append(topic, 0, [Record(str(i).encode()) for i in range(10)])
    log.trim(topic, 0, 4)
    assert log.begin(topic, 0) == 4
    assert values(log.read(topic, 0, 4))[0] == b"4"
    with pytest.raises(Refused, match="gone"):
        log.read(topic, 0, 3)
    halts_alone(log, topic, 1, "offset_gone")


def test_what_is_kept_of_so_many_bytes_is_never_more_than_there_is(log: Log, topic: str) -> None:
    log.append(topic, 0, [Record(b"x" * 1_000) for _ in range(10)])
    log.trim(topic, 0, 4)
    assert log.keeping(topic, 0, 1 << 30) == 4, "all that there is"
    assert 4 <= log.keeping(topic, 0, 2_000) <= 8, "the last two, where sizes are known"


def test_a_position_beyond_the_end_halts_its_partition_until_it_is_added_again(
    log: Log, topic: str
) -> None:
    reader = halts_alone(log, topic, 3, "beyond_end", close=False)
    log.append(topic, 0, [Record(str(i).encode()) for i in range(6)])
    assert reader.poll(wait_s=2) == [], "from here on, records would be skipped"
    assert reader.halted()[topic, 0].position == reader.position(topic, 0) == 3
    reader.add(topic, 0, 0)
    assert reader.halted() == {}
    assert [s.offset for s in drain(reader, 6)] == list(range(6))
    reader.close()


def halts_alone(log: Log, topic: str, start: int, kind: str, *, close: bool = True):
    """Checks that partition 0 is halted at `start` for that reason, and partition 1 is read."""
    log.append(topic, 1, [Record(b"a")])
    reader = log.reader({(topic, 0): start, (topic, 1): 0})
    found = drain(reader, 1)
    until(reader, lambda: (topic, 0) in reader.halted(), found)
    log.append(topic, 1, [Record(b"b")])
    found += drain(reader, 2 - len(found))
    assert [(s.partition, s.record.value) for s in found] == [(1, b"a"), (1, b"b")]
    [(tp, halt)] = reader.halted().items()
    assert (tp, halt.kind, halt.position) == ((topic, 0), kind, start)
    assert f"{topic}/0" in halt.reason
    assert abs(halt.since_ms - time.time() * 1000) < 60_000
    if close:
        reader.close()
    return reader


def until(reader, true, found: list, wait_s: float = 20.0) -> None:
    """Polls until `true()`; appends the records to `found`."""
    end = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < end, f"halted: {reader.halted()}"
        found.extend(reader.poll(wait_s=0.2))


def test_a_topic_that_is_deleted_and_created_again_halts_alone_and_skips_nothing(
    log: Log, topic: str
) -> None:
    other = f"{topic}-other"
    log.ensure_topic(other)
    log.append(topic, 0, [Record(b"old")] * 2)
    reader, found = log.reader({(topic, 0): 0, (other, 0): 0}), []
    until(reader, lambda: len(found) == 2, found)
    was = log.topic_ids(topic)[topic]
    log.delete_topic(topic)
    assert topic not in log.topic_ids(topic)
    until(reader, lambda: (topic, 0) in reader.halted(), found)
    assert reader.halted()[topic, 0].kind == "topic_missing"
    log.append(other, 0, [Record(b"x")])
    until(reader, lambda: len(found) == 3, found)
    log.ensure_topic(topic, 2)
    log.append(topic, 0, [Record(str(i).encode()) for i in range(5)])
    assert log.topic_ids(topic)[topic] != was
    until(reader, lambda: reader.halted()[topic, 0].kind == "topic_replaced", found)
    log.append(other, 0, [Record(b"y")])
    until(reader, lambda: len(found) == 4, found)
    assert {s.topic for s in found[2:]} == {other}, (
        "nothing of the new topic is read from the old one's offset"
    )
    reader.add(topic, 0, 0, topic_id=log.topic_ids(topic)[topic])
    assert values(drain(reader, 5)) == [b"0", b"1", b"2", b"3", b"4"]
    assert reader.halted() == {}
    reader.close()


def test_an_offset_of_an_earlier_topic_of_that_name_is_not_read_from(log: Log, topic: str) -> None:
    was = log.topic_ids(topic)[topic]
    log.delete_topic(topic)
    log.ensure_topic(topic, 2)
    log.append(topic, 0, [Record(b"new")] * 3)
    reader = log.reader({})
    reader.add(topic, 0, 1, topic_id=was)
    found: list = []
    until(reader, reader.halted, found)
    assert (found, reader.halted()[topic, 0].kind) == ([], "topic_replaced")
    reader.close()


def test_partitions_are_added_and_written_and_read(log: Log, topic: str) -> None:
    assert log.partitions(topic) == 2
    assert log.add_partitions(topic, 4) == log.partitions(topic) == 4
    assert log.add_partitions(topic, 3) == 4, "none is ever removed"
    [offset] = log.append(topic, 3, [Record(b"x")])
    assert (log.end(topic, 3), values(drain(log.reader({(topic, 3): 0}), 1))) == (
        offset + 1,
        [b"x"],
    )
    with pytest.raises(NotFound):
        log.partitions(f"{topic}-none")
    with pytest.raises(NotFound):
        log.add_partitions(f"{topic}-none", 2)


def test_partitions_that_another_process_adds_are_known_and_written_at_once(
    url: str, log: Log, topic: str
) -> None:
    log.append(topic, 1, [Record(b"before")])
    with open_log(url) as other:
        other.add_partitions(topic, 5)
        other.append(topic, 4, [Record(b"theirs")])
    assert log.end(topic, 4) == 1
    assert log.append(topic, 3, [Record(b"ours")]) == [0]
    assert log.append(topic, 4, [Record(b"ours")]) == [1]


def test_a_partition_that_appears_later_is_read_once_it_does(log: Log, topic: str) -> None:
    later = f"{topic}-later"
    reader, found = log.reader({(topic, 0): 0, (later, 0): 0}), []
    until(reader, reader.halted, found)
    assert reader.halted()[later, 0].kind == "topic_missing"
    log.ensure_topic(later)
    log.append(later, 0, [Record(b"x")])
    until(reader, lambda: found, found)
    assert (found[0].topic, reader.halted()) == (later, {})
    reader.close()


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_a_batch_that_was_damaged_on_the_brokers_disk_halts_its_partition_alone(
    kafka_servers: str,
) -> None:
    topic = f"t-{uuid.uuid4().hex[:8]}"
    with open_log(f"kafka://{kafka_servers}") as log:
        log.ensure_topic(topic, partitions=2)
        log.append(topic, 0, [Record(b"whole")])
        log.append(topic, 0, [Record(b"damaged " * 100)])
        [file] = Path(tempfile.gettempdir()).glob(
            f"vicinage-tests-*/kafka/server/log/{topic}-0/*.log"
        )
        with file.open("r+b") as segment:
            segment.seek(-20, os.SEEK_END)
            segment.write(b"\xff" * 10)
        reader, found = log.reader({(topic, 0): 0, (topic, 1): 0}), []
        until(reader, reader.halted, found)
        log.append(topic, 1, [Record(b"x")])
        until(reader, lambda: len(found) == 2, found)
        assert sorted(values(found)) == [b"whole", b"x"]
        assert reader.halted()[topic, 0].kind == "unreadable"
        with pytest.raises(Refused, match="cannot be read"):
            log.read(topic, 0, 1)
        reader.close()


def test_topics_are_listed_made_once_and_deleted(log: Log, topic: str) -> None:
    assert log.topics(topic[:4])[topic] == 2
    assert log.ensure_topic(topic, 5) == 2
    log.delete_topic(topic)
    log.delete_topic(topic)
    assert topic not in log.topics()


def append_many(url: str, topic: str, writer: int, n: int) -> None:
    with open_log(url) as log:
        for i in range(n):
            log.append(topic, 0, [Record(f"{writer}:{i}".encode())])


def test_several_processes_write_without_losing_or_doubling(url: str, log: Log, topic: str) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=append_many, args=(url, topic, w, 40)) for w in range(3)]
    for w in writers:
        w.start()
    for w in writers:
        w.join(100)
    records = drain(log.reader({(topic, 0): 0}), 120)
    assert [r.offset for r in records] == list(range(records[0].offset, records[0].offset + 120))
    for w in range(3):
        assert [v for v in values(records) if v.startswith(f"{w}:".encode())] == [
            f"{w}:{i}".encode() for i in range(40)
        ]


WRITE_AND_DIE = """
import os, signal, sys
from vicinage.log import Record, open_log
log = open_log(sys.argv[1])
for i in range(10_000):
    [offset] = log.append(sys.argv[2], 0, [Record(str(i).encode())])
    print(offset, flush=True)
    if i == 25:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_acknowledged_survives_a_kill(url: str, log: Log, topic: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITE_AND_DIE, url, topic],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    acknowledged = [int(line) for line in done.stdout.split()]
    records = drain(log.reader({(topic, 0): 0}), len(acknowledged))
    assert [r.offset for r in records][: len(acknowledged)] == acknowledged


def test_a_closed_log_refuses_to_write(url: str) -> None:
    log = open_log(url)
    log.ensure_topic("closing")
    log.close()
    log.close()
    with pytest.raises((Unavailable, NotFound)):
        log.append("closing", 0, [Record(b"x")])


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(Refused, match="sqlite"):
        open_log("mysql://nowhere")


def test_a_partition_that_there_is_not_is_said_at_once(log: Log, topic: str) -> None:
    for ask in (
        log.begin,
        log.end,
        lambda t, p: log.read(t, p, 0),
        lambda t, p: log.append(t, p, [Record(b"x")]),
    ):
        started = time.monotonic()
        with pytest.raises(NotFound):
            ask(topic, 7)
        assert time.monotonic() - started < 5, "no other call waits for it"


def test_a_readers_place_is_beyond_all_that_it_gave(log: Log, topic: str) -> None:
    reader = log.reader({(topic, 0): 0})
    assert reader.position(topic, 0) == 0
    log.append(topic, 0, [Record(b"a"), Record(b"b")])
    found = drain(reader, 2)
    assert reader.position(topic, 0) == found[-1].offset + 1
    reader.close()


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_records_in_every_codec_of_kafkas_producers_are_read(kafka_servers: str) -> None:
    from confluent_kafka import Producer

    topic, codecs = f"t-{uuid.uuid4().hex[:8]}", ["none", "gzip", "snappy", "lz4", "zstd"]
    with open_log(f"kafka://{kafka_servers}") as log:
        log.ensure_topic(topic, partitions=len(codecs))
        for partition, codec in enumerate(codecs):
            producer = Producer({"bootstrap.servers": kafka_servers, "compression.codec": codec})
            producer.produce(topic, value=codec * 100, partition=partition)
            assert producer.flush(30) == 0
        reader = log.reader({(topic, p): 0 for p in range(len(codecs))})
        found = drain(reader, len(codecs))
        assert {s.partition: s.record.value for s in found} == {
            p: (c * 100).encode() for p, c in enumerate(codecs)
        }
        assert reader.halted() == {}
        reader.close()


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
@pytest.mark.parametrize("compression", [None, "lz4"])
def test_a_record_that_cannot_be_decoded_is_replaced_and_does_not_halt_its_partition(
    kafka_servers: str, compression: str | None
) -> None:
    from kafka import KafkaProducer

    topic = f"t-{uuid.uuid4().hex[:8]}"
    with open_log(f"kafka://{kafka_servers}") as log:
        log.ensure_topic(topic, partitions=3)
        producer = KafkaProducer(
            bootstrap_servers=kafka_servers, compression_type=compression, linger_ms=200
        )
        for value, name in ((b"a", "n"), (b"b", NoUtf8("n")), (b"c", "n")):
            producer.send(topic, value, headers=[(name, b"v")], partition=0)
        producer.flush()
        producer.send(topic, b"d", partition=0)
        producer.send(topic, b"other", partition=1)
        producer.flush()
        producer.close()
        reader = log.reader({(topic, p): 0 for p in range(3)})
        found = drain(reader, 5)
        assert drain(reader, 1, wait_s=1) == []
        reader.close()
        one = {
            s.offset: (s.record.value, bool(s.record.unreadable)) for s in found if s.partition == 0
        }
        assert one == {0: (b"a", False), 1: (b"", True), 2: (b"", True), 3: (b"d", False)}
        assert [s.record.value for s in found if s.partition == 1] == [b"other"]
        assert [s.offset for s in log.read(topic, 0, 1, bytes_max=1)] == [1]


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_aborted_transactions_are_not_read_and_transaction_markers_do_not_delay_readers(
    kafka_servers: str,
) -> None:
    from kafka import KafkaProducer

    topic = f"t-{uuid.uuid4().hex[:8]}"
    with open_log(f"kafka://{kafka_servers}") as log:
        log.ensure_topic(topic)
        producer = KafkaProducer(bootstrap_servers=kafka_servers, transactional_id=topic)
        producer.init_transactions()
        for value, end in (
            (b"kept", producer.commit_transaction),
            (b"undone", producer.abort_transaction),
        ):
            producer.begin_transaction()
            producer.send(topic, value, partition=0).get(timeout=30)
            end()
        producer.close()
        reader = log.reader({(topic, 0): 0})
        assert values(drain(reader, 1)) == [b"kept"]
        end = log.end(topic, 0)
        assert end == 4, "two records and two markers"
        stop = time.monotonic() + 20
        while reader.position(topic, 0) < end and time.monotonic() < stop:
            assert reader.poll(wait_s=0.2) == []
        assert reader.position(topic, 0) == end
        started = time.monotonic()
        assert log.read(topic, 0, 1) == []
        assert time.monotonic() - started < 10, "there is nothing to wait for"
        still_open = KafkaProducer(bootstrap_servers=kafka_servers, transactional_id=f"{topic}-2")
        still_open.init_transactions()
        still_open.begin_transaction()
        still_open.send(topic, b"not yet", partition=0).get(timeout=30)
        [behind] = log.append(topic, 0, [Record(b"behind it")])
        assert behind < log.end(topic, 0), (
            "acknowledged records are in the log, although they cannot be read yet"
        )
        assert log.read(topic, 0, 4) == [] == reader.poll(wait_s=0.5)
        still_open.commit_transaction()
        still_open.close()
        assert values(drain(reader, 2)) == [b"not yet", b"behind it"]
        reader.close()
