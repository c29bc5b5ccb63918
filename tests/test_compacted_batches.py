"""What compaction and transactions leave of batches: emptied, cut, begun before the fetch."""

import contextlib
import struct
import time
from threading import Event
from types import SimpleNamespace

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import calc_crc32c

from consumers.kafka import KafkaSource
from consumers.kafka.record_batches import HEADER_BYTES, BatchRecords
from consumers.kafka.source import _time
from stream.events import decode
from tests.test_kafka import TP, built, plain, walk

COMMITTED = {"isolation_level": IsolationLevel.READ_COMMITTED}
DELETE_HORIZON = 64  # the attribute of a batch whose first time is when its removals go (KIP-534)


def rewritten(batch, count=None, attributes=0, first_ts_ms=None, body=None):
    """Return the batch with another count, time or body, its offsets kept, as the cleaner does."""
    data = bytearray(batch[:HEADER_BYTES] + (batch[HEADER_BYTES:] if body is None else body))
    struct.pack_into(">i", data, 8, len(data) - 12)
    at = DefaultRecordBatch.ATTRIBUTES_OFFSET
    (was,) = struct.unpack_from(">h", data, at)
    struct.pack_into(">h", data, at, was | attributes)
    if first_ts_ms is not None:
        struct.pack_into(">q", data, at + 6, first_ts_ms)
    if count is not None:
        struct.pack_into(">i", data, HEADER_BYTES - 4, count)
    struct.pack_into(
        ">I", data, DefaultRecordBatch.CRC_OFFSET, calc_crc32c(memoryview(data)[at:])
    )  # fmt: skip
    return bytes(data)


def emptied(batch):
    return rewritten(batch, count=0, body=b"")


def marker(at, producer, sort):
    return built(plain(1, at), producer=producer, control=sort)


def aborted(*which):
    return [SimpleNamespace(producer_id=p, first_offset=first) for p, first in which]


def parse(log, at=0, **options):
    """Return the offsets of the records that are seen, and where the next fetch begins."""
    parser = BatchRecords({"t": "rating"}, at, TP, MemoryRecords(log), **options)
    seen = []
    while parser:
        for batch in parser.take(1):
            seen += [record.offset for record in walk(batch) if record.offset >= at]
    return seen, parser.next_fetch_offset


@pytest.mark.parametrize("options", [{}, COMMITTED], ids=["uncommitted", "committed"])
@pytest.mark.parametrize("sort", [0, 1])
def test_an_emptied_marker_is_passed_and_ends_its_transaction(options, sort):
    log = built(plain(2), producer=7) + emptied(marker(2, 7, sort)) + built(plain(2, 3), producer=7)
    log += marker(5, 7, 1) + built(plain(1, 6))
    given = (
        {**options, "aborted_transactions": aborted((7, 0))} if options and not sort else options
    )
    hidden = bool(options) and not sort
    assert parse(log, **given) == ([3, 4, 6] if hidden else [0, 1, 3, 4, 6], 7)


@pytest.mark.parametrize("options", [{}, COMMITTED], ids=["uncommitted", "committed"])
@pytest.mark.parametrize("codec", [0, 1])
def test_emptied_batches_at_the_end_and_alone_are_passed(options, codec):
    gone = emptied(built(plain(5), codec=codec, producer=7))
    assert parse(gone, **options) == ([], 5)
    assert parse(gone + emptied(marker(5, 7, 1)), **options) == ([], 6)
    assert parse(built(plain(2)) + emptied(built(plain(3, 2))), 1, **options) == ([1], 5)
    assert parse(emptied(marker(0, 7, 0)), **options) == ([], 1)


@pytest.mark.parametrize("sort", [2, 5, 99, -1])
def test_markers_of_unknown_sorts_are_passed_and_end_no_transaction(sort):
    key = struct.pack(">hhi", 9, sort, 4)  # longer than today's, of a later version
    unknown = marker(2, 7, 0)
    body = built([plain(1)[0].__class__(2, 5, key, b"", ())])[HEADER_BYTES:]
    log = built(plain(2), producer=7) + rewritten(unknown, body=body)
    log += built(plain(1, 3), producer=7) + marker(4, 7, 0) + built(plain(1, 5), producer=7)
    told = {**COMMITTED, "aborted_transactions": aborted((7, 0))}
    assert parse(log, **told) == ([5], 6)
    short = rewritten(
        unknown, body=built([plain(1)[0].__class__(2, 5, b"", b"", ())])[HEADER_BYTES:]
    )
    assert parse(short, **told) == ([], 3)


def test_a_batch_whose_records_all_lie_before_the_fetch_gives_none_and_is_passed():
    kept = plain(10)[:2]  # of ten, the cleaner left two
    log = bytearray(built(kept))
    struct.pack_into(">i", log, DefaultRecordBatch.ATTRIBUTES_OFFSET + 2, 9)
    log = rewritten(bytes(log)) + built(plain(1, 10))
    parser = BatchRecords({"t": "rating"}, 5, TP, MemoryRecords(log))
    batches = parser.take()
    assert parser.next_fetch_offset == 11
    told = decode(batches)
    assert [bad.offset for bad in told.bad] + told.offset.tolist() == [10]


def test_old_batches_before_the_fetch_are_passed():
    for magic in (0, 1):
        log = built(plain(1), magic=magic)
        assert parse(struct.pack(">q", 3) + log[8:], 4) == ([], 4)
        assert parse(struct.pack(">q", 4) + log[8:], 4) == ([4], 5)


def test_a_batch_that_keeps_removals_is_as_old_as_its_records():
    now = int(time.time() * 1000)
    horizon = now + 86_400_000
    first, last = built(plain(3, ts_ms=now)), None
    body = b"".join(_framed(n, now + n - horizon) for n in range(3))
    last = rewritten(first, attributes=DELETE_HORIZON, first_ts_ms=horizon, body=body)
    parser = BatchRecords({"t": "item"}, 0, TP, MemoryRecords(last))
    (batch,) = parser.take()
    assert [record.ts_ms for record in walk(batch)] == [now, now + 1, now + 2]
    assert now <= _time(batch) <= now + 10


def _framed(offset, delta):
    from stream.framing import frame

    return frame(offset, delta, b"k", b"{}")


def test_apache_kafkas_cleaner_empties_a_marker_and_the_source_reads_on(broker, prefix, apache):
    if not apache:
        pytest.skip("transactions and the log cleaner: Apache Kafka only")
    topic, wait, until = f"{prefix}.compacted", Event(), time.monotonic() + 120
    settings = {
        "cleanup.policy": "compact", "delete.retention.ms": "0", "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "100",
    }  # fmt: skip
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=broker)) as admin:
        wanted = {"num_partitions": 1, "replication_factor": 1, "configs": settings}
        admin.create_topics({topic: wanted}, wait_for_metadata=True)
    with contextlib.ExitStack() as stack:

        def producer(**options):
            made = KafkaProducer(bootstrap_servers=broker, **options)
            stack.callback(made.close, timeout=1)
            return made

        left = producer(transactional_id=topic)
        left.init_transactions()
        left.begin_transaction()
        left.send(topic, b"{}", key=b"k", partition=0).get(10)
        producer(transactional_id=topic).init_transactions()  # aborts what the first left open
        plain_one = producer()
        while time.monotonic() < until:
            for _ in range(10):  # the cleaner looks at closed segments alone
                plain_one.send(topic, b"{}", key=b"k", partition=0).get(10)
                wait.wait(0.15)
            with KafkaSource(
                bootstrap_servers=broker, topics={topic: "item"}, isolation_level="read_committed"
            ) as source:
                emptied_ones = _emptied_markers(source)
                source.start()
                ends, records = source.ends(), 0
                while source.positions() != ends:
                    records += sum(batch.count for batch in source.poll())
                assert 0 < records < ends[topic, 0] - 1
            if emptied_ones:
                return
    pytest.fail("the cleaner emptied no marker within two minutes")


def _emptied_markers(source):
    """Return the list of emptied markers that this source will have met."""
    met, fetcher = [], source._consumer._fetcher
    made = fetcher.PartitionRecords

    def parser(fetch_offset, tp, records, *given, **named):
        copy = MemoryRecords(bytes(records._buffer))
        while (batch := copy.next_batch()) is not None:
            if batch.is_control_batch and not batch.records_count:
                met.append(batch.base_offset)
        return made(fetch_offset, tp, records, *given, **named)

    fetcher.PartitionRecords = parser
    return met
