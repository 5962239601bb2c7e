"""MACs on internal records: the records that are read with given keys."""

from dataclasses import replace

import pytest

from vicinage.errors import Refused
from vicinage.log import LogRecord, Record
from vicinage.log.mac import HEADER, Macs

OLD, NEW = b"an old key of the platform", b"a new key of the platform"
VECTORS = "vicinage.vectors"
RECORD = Record(b"rows", b"acme/docs/1", (("a", b"b"),), 5)


def stored(record: Record, topic: str = VECTORS, partition: int = 3) -> LogRecord:
    return LogRecord(topic, partition, 7, record)


def signed(macs: Macs) -> Record:
    [record] = macs.sign(VECTORS, 3, [RECORD])
    return record


def test_a_signed_record_is_read_with_the_key_or_an_older_one_of_the_list() -> None:
    for key in (OLD, NEW):
        found = Macs((NEW, OLD), required=True).check(stored(signed(Macs((key,)))))
        assert (found.record.unreadable, found.record.value) == (None, b"rows")


@pytest.mark.parametrize(
    "forged",
    [
        stored(replace(signed(Macs((OLD,))), value=b"other")),
        stored(replace(signed(Macs((OLD,))), key=b"acme/docs/2")),
        stored(replace(signed(Macs((OLD,))), value=None)),
        stored(signed(Macs((OLD,))), partition=4),
        stored(signed(Macs((NEW,)))),
        stored(replace(RECORD, headers=((HEADER, b""),))),
    ],
)
def test_what_was_changed_moved_or_signed_by_another_is_unreadable(forged: LogRecord) -> None:
    for required in (False, True):
        assert "MAC" in (Macs((OLD,), required=required).check(forged).record.unreadable or "")


def test_a_record_without_a_mac_is_unreadable_once_macs_are_required() -> None:
    assert Macs((OLD,)).check(stored(RECORD)).record.unreadable is None
    assert (
        Macs((OLD,), required=True).check(stored(RECORD)).record.unreadable == "its MAC is missing"
    )


def test_other_topics_and_platforms_without_keys_are_as_they_were() -> None:
    assert Macs((OLD,), required=True).check(stored(RECORD, "vicinage.docs.acme")).record is RECORD
    assert Macs((OLD,)).sign("vicinage.docs.acme", 0, [RECORD]) == [RECORD]
    assert Macs().sign(VECTORS, 0, [RECORD]) == [RECORD]
    assert Macs().check(stored(RECORD)).record is RECORD


def test_keys_that_cannot_protect_are_refused() -> None:
    pytest.importorskip("kafka")
    from vicinage.log.kafka_security import macs
    from vicinage.settings import KafkaSettings

    for given in ({"mac_keys": ["short"]}, {"mac_required": True}):
        with pytest.raises(Refused, match="mac_keys"):
            macs(KafkaSettings(**given))
