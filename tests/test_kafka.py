"""The laws of the source, over whole batches and over the stock path; of the sink; of topics."""

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.codec import has_lz4, has_snappy, has_zstd
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.record.util import calc_crc32c

from consumers import build, playground, settings, topics
from consumers.kafka import DeadLetters, KafkaSource, Outgoing, Sink, Unacknowledged
from consumers.kafka.record_batches import BatchRecords, frame, reframe, supported
from stream.errors import CounterflowError, Inconsistent, Unavailable
from stream.events import BadRecord
from stream.records import RecordBatch

WAIT_S = 20.0


@dataclass(frozen=True)
class Seen:
    """A record as a batch tells it."""

    offset: int
    ts_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


def walk(batch: RecordBatch) -> list[Seen]:
    """Return the records of a batch, read here from the format's description, not by the code."""
    data, at, seen = bytes(batch.data), 0, []

    def varint() -> int:
        nonlocal at
        raw = shift = 0
        while True:
            byte = data[at]
            at += 1
            raw |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (raw >> 1) ^ -(raw & 1)
            shift += 7

    def content() -> bytes | None:
        nonlocal at
        length = varint()
        if length < 0:
            return None
        at += length
        return data[at - length : at]

    for _ in range(batch.count):
        length = varint()
        end = at + length
        at += 1  # attributes
        ts_ms = batch.first_ts_ms + varint()
        offset = batch.base_offset + varint()
        key, value = content(), content()
        headers = tuple(((content() or b"").decode(), content()) for _ in range(varint()))
        assert at == end
        ts_ms = batch.max_ts_ms if batch.log_append else ts_ms
        seen.append(Seen(offset, ts_ms, key, value, headers))
    assert at == len(data)
    return [record for record in seen if record.offset >= batch.fetch_offset]


def read(source: KafkaSource, count: int, **how: Any) -> list[Seen]:
    """Poll until `count` records came, and then once more to see that no other comes."""
    seen: list[Seen] = []
    until = time.monotonic() + WAIT_S
    while len(seen) < count and time.monotonic() < until:
        for batch in source.poll(**how):
            seen += walk(batch)
    for batch in source.poll(0.05):
        seen += walk(batch)
    return seen


@pytest.fixture(params=[True, False], ids=["whole", "stock"])
def whole(request: pytest.FixtureRequest) -> bool:
    """Choose the path: whole batches, or the stock one."""
    return bool(request.param)


@pytest.fixture
def topic(broker: str, prefix: str) -> str:
    """Return a topic of two partitions that keeps the producer's timestamps."""
    return make_topic(broker, f"{prefix}.rating.v1")


def make_topic(broker: str, name: str, partitions: int = 2) -> str:
    admin = KafkaAdminClient(bootstrap_servers=broker)
    try:
        admin.create_topics(
            {name: {"num_partitions": partitions, "replication_factor": 1}}, wait_for_metadata=True
        )
    finally:
        admin.close()
    return name


@pytest.fixture
def source(broker: str, topic: str, whole: bool) -> Iterator[KafkaSource]:
    """Yield a source of that topic."""
    with open_source(broker, topic, whole) as opened:
        yield opened


def open_source(broker: str, topic: str, whole: bool | None, **options: Any) -> KafkaSource:
    return KafkaSource(bootstrap_servers=broker, topics={topic: "rating"}, whole=whole, **options)


def fill(
    broker: str, topic: str, records: Sequence[Seen], partition: int = 0, **options: Any
) -> None:
    """Produce the records so that each send is one batch of the log, as far as it is large."""
    producer = KafkaProducer(bootstrap_servers=broker, linger_ms=200, **options)
    try:
        for record in records:
            producer.send(
                topic,
                record.value,
                record.key,
                headers=list(record.headers),
                partition=partition,
                timestamp_ms=record.ts_ms,
            )
        producer.flush()
    finally:
        producer.close()


def plain(count: int, start: int = 0, ts_ms: int | None = None) -> list[Seen]:
    ts_ms = int(time.time() * 1000) if ts_ms is None else ts_ms
    return [
        Seen(at, ts_ms + at % 7, b"u%d" % (at % 5), b'{"n":%d,"pad":"%s"}' % (at, b"x" * 40), ())
        for at in range(start, start + count)
    ]


def odd(ts_ms: int) -> list[Seen]:
    """Return records of every shape that the client lets one produce."""
    return [
        Seen(0, ts_ms, None, b"no key", ()),
        Seen(1, ts_ms - 5, b"no value", None, ()),
        Seen(2, ts_ms + 9, b"", b"", (("a", b""), ("a", b"\x00\xff"), ("", b"v"))),
        Seen(3, ts_ms, b"\x00\xfe", b"\xff" * 300, (("schlüssel", b"1"),)),
        *[Seen(4 + at, ts_ms, b"k", b"y" * 500, ()) for at in range(40)],
    ]


CODECS = [
    None,
    "gzip",
    pytest.param("lz4", marks=pytest.mark.skipif(not has_lz4(), reason="lz4 not installed")),
    pytest.param("zstd", marks=pytest.mark.skipif(not has_zstd(), reason="zstd not installed")),
    pytest.param(
        "snappy", marks=pytest.mark.skipif(not has_snappy(), reason="python-snappy not installed")
    ),
]


class TestSource:
    @pytest.mark.parametrize("codec", CODECS)
    def test_records_come_untouched_and_in_order_whatever_compressed_them(
        self, broker: str, topic: str, source: KafkaSource, codec: str | None
    ) -> None:
        sent = odd(int(time.time() * 1000))
        fill(broker, topic, sent, compression_type=codec)
        source.start()
        assert read(source, len(sent)) == sent

    def test_a_poll_from_the_middle_of_a_batch_starts_there(
        self, broker: str, topic: str, source: KafkaSource
    ) -> None:
        sent = plain(100)
        fill(broker, topic, sent, compression_type="gzip")
        source.start({(topic, 0): 37})
        assert read(source, 63) == sent[37:]

    def test_positions_are_what_was_given_out_and_ends_take_nothing_away(
        self, broker: str, topic: str, source: KafkaSource
    ) -> None:
        sent = plain(50)
        fill(broker, topic, sent)
        source.start()
        assert source.ends() == {(topic, 0): 50, (topic, 1): 0}
        assert source.positions() == {(topic, 0): 0, (topic, 1): 0}
        assert source.lag() == {(topic, 0): 50, (topic, 1): 0}
        assert read(source, 50) == sent
        assert source.positions() == {(topic, 0): 50, (topic, 1): 0}
        assert source.lag() == {(topic, 0): 0, (topic, 1): 0}
        fill(broker, topic, plain(3, 50), partition=1)
        assert len(read(source, 3)) == 3
        assert source.highwaters() == {(topic, 0): 50, (topic, 1): 3}

    def test_a_restart_from_its_positions_repeats_and_loses_nothing(
        self, broker: str, topic: str, whole: bool
    ) -> None:
        sent = plain(400)
        fill(broker, topic, sent, batch_size=2_000)
        seen: list[Seen] = []
        offsets = None
        until = time.monotonic() + WAIT_S
        while len(seen) < len(sent) and time.monotonic() < until:
            with open_source(broker, topic, whole) as source:
                source.start(offsets)
                for batch in source.poll(1.0, max_bytes=8_000):
                    seen += walk(batch)
                offsets = source.positions()
        assert seen == sent

    def test_a_poll_stops_near_its_bytes_and_the_next_goes_on(
        self, broker: str, topic: str, source: KafkaSource
    ) -> None:
        sent = plain(2_000)
        fill(broker, topic, sent, batch_size=4_000)
        source.start()
        seen: list[Seen] = []
        polls = 0
        while len(seen) < len(sent):
            batches = source.poll(5.0, max_bytes=20_000)
            assert batches
            assert sum(len(batch.data) for batch in batches) < 40_000
            seen += [record for batch in batches for record in walk(batch)]
            polls += 1
        assert seen == sent
        assert polls > 5

    def test_a_paused_partition_waits_without_loss_while_others_go_on(
        self, broker: str, topic: str, source: KafkaSource
    ) -> None:
        first, other = plain(300), plain(300)
        fill(broker, topic, first, batch_size=2_000)
        fill(broker, topic, other, partition=1, batch_size=2_000)
        source.start()
        seen: dict[int, list[Seen]] = {0: [], 1: []}

        def take(wanted: Callable[[], bool], **how: Any) -> None:
            until = time.monotonic() + WAIT_S
            while not wanted() and time.monotonic() < until:
                for batch in source.poll(**how):
                    seen[batch.partition] += walk(batch)

        take(lambda: bool(seen[0]), max_bytes=1)
        source.pause((topic, 0))
        stopped = len(seen[0])
        take(lambda: len(seen[1]) == 300)
        assert len(seen[0]) == stopped < 300
        source.resume((topic, 0))
        take(lambda: len(seen[0]) == 300)
        assert (seen[0], seen[1]) == (first, other)

    def test_seek_goes_back_and_forth(self, broker: str, topic: str, source: KafkaSource) -> None:
        sent = plain(120)
        fill(broker, topic, sent, batch_size=2_000)
        source.start()
        assert read(source, 120) == sent
        source.seek({(topic, 0): 11})
        assert source.positions()[topic, 0] == 11
        assert read(source, 109) == sent[11:]
        source.seek({(topic, 0): 0})
        source.poll(5.0, max_bytes=1)
        source.seek({(topic, 0): 100})
        assert read(source, 20) == sent[100:]

    def test_records_that_come_later_come_to_a_waiting_poll(
        self, broker: str, topic: str, source: KafkaSource
    ) -> None:
        source.start()
        assert source.poll(0.05) == []
        for at in range(3):
            fill(broker, topic, plain(2, 2 * at))
            assert [record.offset for record in read(source, 2)] == [2 * at, 2 * at + 1]

    def test_an_offset_behind_the_end_is_inconsistent(
        self, broker: str, topic: str, source: KafkaSource
    ) -> None:
        fill(broker, topic, plain(5))
        source.start({(topic, 0): 500})
        with pytest.raises(Inconsistent) as raised:
            read(source, 1)
        assert raised.value.remedy

    def test_an_offset_that_retention_took_is_inconsistent(
        self, broker: str, topic: str, source: KafkaSource, apache: bool
    ) -> None:
        if not apache:
            pytest.skip("deleting records: Apache Kafka only")
        fill(broker, topic, plain(50))
        admin = KafkaAdminClient(bootstrap_servers=broker)
        admin.delete_records({TopicPartition(topic, 0): 20})
        admin.close()
        with pytest.raises(Inconsistent, match="earliest is 20"):
            source.start({(topic, 0): 10})
        source.start()
        assert [record.offset for record in read(source, 30)] == list(range(20, 50))

    def test_a_partition_that_is_none_is_inconsistent(
        self, topic: str, source: KafkaSource
    ) -> None:
        with pytest.raises(Inconsistent, match="does not exist"):
            source.start({(topic, 9): 0})

    @pytest.mark.parametrize("level", ["read_uncommitted", "read_committed"])
    def test_aborted_records_are_seen_only_uncommitted_and_markers_never(
        self, broker: str, topic: str, whole: bool, apache: bool, level: str
    ) -> None:
        if not apache:
            pytest.skip("transactions: Apache Kafka only")
        producer = KafkaProducer(bootstrap_servers=broker, transactional_id=f"{topic}-{level}")
        producer.init_transactions()
        for at in range(6):
            producer.begin_transaction()
            for _ in range(3):
                producer.send(topic, b"%d" % at, partition=0)
            producer.flush()
            if at % 2:
                producer.abort_transaction()
            else:
                producer.commit_transaction()
        producer.close()
        wanted = [at for at in range(6) if level == "read_uncommitted" or at % 2 == 0]
        with open_source(broker, topic, whole, isolation_level=level) as source:
            source.start()
            ends = source.ends()
            assert ends == {(topic, 0): 24, (topic, 1): 0}
            seen = read(source, 3 * len(wanted))
            assert [record.value for record in seen] == [b"%d" % at for at in wanted for _ in "abc"]
            assert source.positions() == ends

    def test_partitions_added_later_are_taken_up_from_their_first_record(
        self, broker: str, topic: str, whole: bool, apache: bool
    ) -> None:
        if not apache:
            pytest.skip("adding partitions: Apache Kafka only")
        with open_source(broker, topic, whole, client={"metadata_max_age_ms": 200}) as source:
            source.start()
            admin = KafkaAdminClient(bootstrap_servers=broker)
            admin.create_partitions({topic: 3})
            admin.close()
            until = time.monotonic() + WAIT_S
            while not (new := source.discover()) and time.monotonic() < until:
                source.poll(0.05)
            assert new == [(topic, 2)]
            fill(broker, topic, plain(4), partition=2)
            assert len(read(source, 4)) == 4
            assert source.positions() == {(topic, 0): 0, (topic, 1): 0, (topic, 2): 4}

    def test_commits_are_what_lag_tools_read(self, broker: str, topic: str, whole: bool) -> None:
        fill(broker, topic, plain(10))
        with open_source(broker, topic, whole, group_id=f"{topic}-group") as source:
            source.start()
            read(source, 10)
            assert source.committed() == {}
            source.commit(source.positions())
            assert source.committed() == source.positions()
        tool = KafkaConsumer(bootstrap_servers=broker, group_id=f"{topic}-group")
        try:
            assert tool.committed(TopicPartition(topic, 0)) == 10
        finally:
            tool.close()

    def test_ranks_share_the_users_partitions_and_each_has_all_items(
        self, broker: str, prefix: str
    ) -> None:
        topics.create(broker, prefix, partitions=3)
        rating, item = topics.name(prefix, "rating"), topics.name(prefix, "item")
        shares = []
        for rank in range(2):
            with KafkaSource(
                bootstrap_servers=broker,
                topics={rating: "rating", item: "item"},
                rank=rank,
                world=2,
            ) as source:
                source.start()
                shares.append(source.assigned())
        items = [(item, 0), (item, 1), (item, 2)]
        assert shares == [[(rating, 0), (rating, 2), *items], [(rating, 1), *items]]

    def test_two_ranks_see_each_event_once_and_each_of_them_every_item(
        self, broker: str, prefix: str
    ) -> None:
        topics.create(broker, prefix, partitions=3)
        keyed = [Outgoing(topics.name(prefix, kind), b"", b"u%d" % at, partition=at % 3)
                 for kind in topics.BY_USER for at in range(30)]  # fmt: skip
        items = [Outgoing(topics.name(prefix, "item"), b"", b"i%d" % at) for at in range(30)]
        with Sink(bootstrap_servers=broker) as sink:
            sink.produce([*keyed, *items])
        events: list[tuple[str, bytes | None]] = []
        for rank in range(2):
            chosen = {
                "kafka.bootstrap_servers": broker, "kafka.topic_prefix": prefix,
                "trainer.rank": str(rank), "trainer.world": "2",
            }  # fmt: skip
            with build.source(settings.load(chosen)) as source:
                source.start()
                seen, until = [], time.monotonic() + WAIT_S
                ends = source.ends()
                while source.positions() != ends and time.monotonic() < until:
                    seen += [(b.kind, record.key) for b in source.poll() for record in walk(b)]
            assert sorted(key for kind, key in seen if kind == "item") == sorted(
                record.key for record in items
            )
            mine = [(kind, key) for kind, key in seen if kind != "item"]
            assert 0 < len(mine) < len(keyed)
            events += mine
        assert sorted(events) == sorted((r.topic.split(".")[-2], r.key) for r in keyed)
        with pytest.raises(settings.WrongSetting):
            settings.load({"trainer.rank": "2", "trainer.world": "2"})

    def test_a_topic_made_anew_is_another_stream(self, broker: str, prefix: str) -> None:
        name = make_topic(broker, f"{prefix}.rating.v1")
        with open_source(broker, name, None) as source:
            source.start()
            identity = source.identity()
            source.verify(identity)
            assert set(identity) == {"cluster", name}
            with pytest.raises(Inconsistent):
                source.verify(identity | {name: "another"})

    def test_a_missing_topic_names_the_command_that_makes_it(
        self, broker: str, prefix: str
    ) -> None:
        with open_source(broker, f"{prefix}.rating.v1", None) as source:
            with pytest.raises(CounterflowError) as raised:
                source.start()
        assert raised.value.remedy.startswith("counterflow topics create")

    def test_a_broker_that_is_away_is_unavailable(self) -> None:
        away = f"127.0.0.1:{playground.free_port()}"
        with pytest.raises(Unavailable) as raised:
            open_source(away, "t", None, client={"bootstrap_timeout_ms": 300})
        assert away in raised.value.message

    def test_this_client_takes_the_batch_path_and_another_shape_the_stock_one(
        self, broker: str, topic: str
    ) -> None:
        with open_source(broker, topic, None) as source:
            assert source.whole

        class Other(Fetcher.PartitionRecords):  # type: ignore[misc]
            def __init__(self, completed_fetch: Any) -> None:
                """Take another argument."""

        assert not supported(SimpleNamespace(_fetcher=SimpleNamespace(PartitionRecords=Other)))
        assert not supported(object())


TP = TopicPartition("t", 3)


def built(
    records: Sequence[Seen], magic: int = 2, codec: int = 0, producer: int = -1, control: int = -1
) -> bytes:
    """Return one batch of the log; control: 0 an abort, 1 a commit marker."""
    builder = MemoryRecordsBuilder(
        magic,
        codec,
        1 << 20,
        transactional=producer >= 0,
        producer_id=producer,
        producer_epoch=0 if producer >= 0 else -1,
        base_sequence=0 if producer >= 0 else -1,
    )
    base = records[0].offset
    for record in records:
        builder.skip(record.offset - base - builder.next_offset())
        key = struct.pack(">hh", 0, control) if control >= 0 else record.key
        builder.append(record.ts_ms, key, record.value, list(record.headers))
    builder.close()
    data = bytearray(builder.buffer())
    if magic == 2:
        struct.pack_into(">q", data, 0, base)
        if control >= 0:
            (attributes,) = struct.unpack_from(">h", data, DefaultRecordBatch.ATTRIBUTES_OFFSET)
            struct.pack_into(
                ">h",
                data,
                DefaultRecordBatch.ATTRIBUTES_OFFSET,
                attributes | DefaultRecordBatch.CONTROL_MASK,
            )
            crc = calc_crc32c(memoryview(data)[DefaultRecordBatch.ATTRIBUTES_OFFSET :])
            struct.pack_into(">I", data, DefaultRecordBatch.CRC_OFFSET, crc)
    return bytes(data)


def both(log: bytes, at: int = 0, take: int | None = None, **options: Any) -> list[Any]:
    """Return what each path makes of a response: its records, and where it fetches on."""
    made = []
    for parser in (
        BatchRecords({"t": "rating"}, at, TP, MemoryRecords(log), **options),
        Fetcher.PartitionRecords(at, TP, MemoryRecords(log), **options),
    ):
        seen: list[Seen] = []
        while parser:
            for thing in parser.take(take) or ():
                batch = thing if isinstance(thing, RecordBatch) else reframe(TP, "rating", [thing])
                seen += walk(batch)
        made.append((seen, parser.next_fetch_offset, parser.leader_epoch))
    return made


class TestRecordBatches:
    def test_gaps_of_compaction_and_markers_are_passed_alike(self) -> None:
        sent = plain(30)
        log = b"".join(
            [
                built([sent[0], sent[3], sent[4]]),
                built([sent[6]], producer=7, control=1),
                built([sent[8], sent[9]], codec=1),
            ]
        )
        for at in (0, 1, 4, 5, 9):
            for take in (None, 1):
                ours, stock = both(log, at, take)
                assert ours == stock
                assert ours[0] == [sent[n] for n in (0, 3, 4, 8, 9) if n >= at]

    def test_interleaved_transactions_are_cut_out_alike(self) -> None:
        random_ = random.Random(7)
        for _ in range(50):
            log, aborted, at = b"", [], 0
            open_: dict[int, tuple[int, bool]] = {}
            for _ in range(30):
                producer = random_.randrange(4)
                if producer and producer in open_ and random_.random() < 0.4:
                    first, abort = open_.pop(producer)
                    if abort:
                        aborted.append(SimpleNamespace(producer_id=producer, first_offset=first))
                    marker = Seen(at, 5, None, b"\x00" * 6, ())
                    log += built([marker], producer=producer, control=0 if abort else 1)
                    at += 1
                    continue
                count = random_.randrange(1, 4)
                if producer:
                    open_.setdefault(producer, (at, random_.random() < 0.5))
                log += built(plain(count, at), producer=producer or -1)
                at += count
            for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED):
                start = random_.randrange(at)
                ours, stock = both(
                    log, start, 2, isolation_level=level, aborted_transactions=aborted
                )
                assert ours == stock

    @pytest.mark.parametrize("magic", [0, 1])
    @pytest.mark.parametrize("codec", [0, 1])
    def test_batches_of_before_0_11_come_in_the_framing_of_today(
        self, magic: int, codec: int
    ) -> None:
        sent = [replace(record, key=None) for record in plain(6)]
        log = built(sent, magic=magic, codec=codec)
        if codec:  # the wrapper's offset is its last record's
            log = struct.pack(">q", 5) + log[8:] if magic else log
        parser = BatchRecords({}, 2, TP, MemoryRecords(log))
        seen = [record for batch in parser.take() for record in walk(batch)]
        wanted = sent[2:] if magic else [replace(record, ts_ms=-1) for record in sent[2:]]
        assert seen == wanted
        assert parser.next_fetch_offset == 6

    def test_damage_raises_behind_the_good_batches_and_again_when_asked(self) -> None:
        good, bad = built(plain(3)), bytearray(built(plain(3, 3)))
        bad[-2] ^= 1
        parser = BatchRecords({}, 0, TP, MemoryRecords(good + bytes(bad)))
        assert [batch.count for batch in parser.take()] == [3]
        assert parser.next_fetch_offset == 3
        with pytest.raises(CorruptRecordError):
            parser.take()

    def test_draining_gives_up_the_rest_and_says_so_once(self) -> None:
        drained: list[Any] = []
        parser = BatchRecords(
            {}, 0, TP, MemoryRecords(built(plain(3)) * 2), on_drain=drained.append
        )
        parser.take(1)
        parser.drain()
        parser.drain()
        assert not parser
        assert parser.take() == []
        assert drained == [parser]

    @pytest.mark.skipif(not has_zstd(), reason="zstd not installed")
    def test_zstd_without_its_size_may_be_large(self) -> None:
        import zstandard

        from consumers.kafka.record_batches import decompress

        data = bytes(3 << 20)
        packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
        packed = packer.compress(data) + packer.flush()
        assert decompress(DefaultRecordBatch.CODEC_ZSTD, memoryview(packed)) == data

    def test_framing_and_walking_are_inverse(self) -> None:
        records = [(5, 9, None, b"v", (("h", None),)), (8, -1, b"k", None, ())]
        batch = frame(TP, "rating", records)
        assert [(r.offset, r.ts_ms, r.key, r.value, r.headers) for r in walk(batch)] == records
        assert (batch.base_offset, batch.next_offset, batch.count) == (5, 9, 2)
        assert (batch.first_ts_ms, batch.max_ts_ms) == (9, 9)


class TestSink:
    def test_produced_records_arrive_as_they_are(self, broker: str, topic: str) -> None:
        ts_ms = int(time.time() * 1000)
        nulls = (("a", None), ("b", b"1"), ("a", b""))
        with Sink(bootstrap_servers=broker) as sink:
            sink.produce(
                [
                    Outgoing(topic, b"v", b"k", (), ts_ms, 0),
                    Outgoing(topic, None, b"k", nulls, ts_ms, 0),
                    Outgoing(topic, None, None, (), ts_ms, 0),
                ]
            )
        with open_source(broker, topic, None) as source:
            source.start()
            assert read(source, 3) == [
                Seen(0, ts_ms, b"k", b"v", ()),
                Seen(1, ts_ms, b"k", None, nulls),
                Seen(2, ts_ms, None, None, ()),
            ]

    def test_a_broker_that_fails_halfway_leaves_word_of_what_it_took(self, prefix: str) -> None:
        with playground.broker() as server:
            name = make_topic(server, f"{prefix}.rating.v1", partitions=1)
            sink = Sink(
                bootstrap_servers=server,
                client={"delivery_timeout_ms": 2_000, "request_timeout_ms": 1_000},
            )
            sink.produce([Outgoing(name, b"1", b"k")])
        with pytest.raises(Unacknowledged) as raised:
            sink.produce([Outgoing(name, b"2", b"k"), Outgoing(name, b"3", b"k")], timeout_s=0.5)
        assert raised.value.acknowledged == ()
        sink.close(0)

    def test_a_record_too_large_is_told_from_those_acknowledged(
        self, broker: str, topic: str
    ) -> None:
        with Sink(bootstrap_servers=broker) as sink:
            with pytest.raises(Unacknowledged) as raised:
                sink.produce([Outgoing(topic, b"1", b"k"), Outgoing(topic, bytes(5 << 20), b"k")])
        assert raised.value.acknowledged == (0,)

    def test_dead_letters_keep_the_record_and_tell_why_and_whence(
        self, broker: str, prefix: str
    ) -> None:
        topics.create(broker, prefix, partitions=1)
        name = topics.name(prefix, "dlq")
        ts_ms = int(time.time() * 1000) - 5_000
        batch = frame(TP, "rating", [(7, ts_ms, b"k", b"?", ()), (8, ts_ms, None, None, ())])
        bad = [
            BadRecord(0, 7, b"k", b"?", [("x", b"\xff"), ("y", None)], ts_ms, "not_json", "é"),
            BadRecord(0, 8, None, None, [], ts_ms, "no_value", "null"),
        ]
        with Sink(bootstrap_servers=broker) as sink:
            letters = DeadLetters(sink, name, clock=lambda: 1.5)
            letters.add(bad, [batch])
            letters.flush()
            letters.flush()
        with open_source(broker, name, None) as source:
            source.start()
            first, second = read(source, 2)
        assert (first.key, first.value, first.ts_ms) == (b"k", b"?", ts_ms)
        assert first.headers == (
            ("x", b"\xff"),
            ("y", None),
            ("dlq.reason", b"not_json"),
            ("dlq.detail", "é".encode()),
            ("dlq.stage", b"decode"),
            ("dlq.topic", b"t"),
            ("dlq.partition", b"3"),
            ("dlq.offset", b"7"),
            ("dlq.failed_at_ms", b"1500"),
        )
        assert (second.key, second.value) == (None, None)

    def test_letters_that_fail_wait_and_those_too_large_go_cut(self, prefix: str) -> None:
        batch = frame(TP, "rating", [(0, 1, b"k", b"v", ())])
        with playground.broker() as server:
            name = make_topic(server, f"{prefix}.dlq.v1", partitions=1)
            sink = Sink(bootstrap_servers=server, client={"max_block_ms": 500})
            letters = DeadLetters(sink, name, clock=time.time)
            letters.add([BadRecord(0, 0, b"k", bytes(5 << 20), [], 1, "too_large", "")], [batch])
            letters.flush()
            assert letters.failed == 1
        letters.add([BadRecord(0, 0, b"k", b"v", [], 1, "not_json", "")], [batch])
        with pytest.raises(Unavailable):
            letters.flush(0.5)
        sink.close(0)


class TestTopics:
    def test_created_topics_pass_the_check_and_are_made_once(
        self, broker: str, prefix: str
    ) -> None:
        made = topics.create(broker, prefix, partitions=2)
        assert made == [
            f"{prefix}.{kind}.v1"
            for kind in ("impression", "click", "rating", "user", "item", "dlq")
        ]
        assert topics.create(broker, prefix, partitions=2) == []
        assert topics.check(broker, prefix) == []
        topics.require([])

    def test_missing_and_unequal_topics_are_named_with_a_remedy(
        self, broker: str, prefix: str
    ) -> None:
        for kind, partitions in (("impression", 2), ("click", 3), ("rating", 2), ("item", 1)):
            make_topic(broker, topics.name(prefix, kind), partitions)
        found = topics.check(broker, prefix)
        assert all(problem.remedy for problem in found)
        missing = {p.topic for p in found if p.problem == "does not exist"}
        assert missing == {topics.name(prefix, "user"), topics.name(prefix, "dlq")}
        unequal = {p.topic for p in found if "partitions" in p.problem}
        assert unequal == {topics.name(prefix, "impression"), topics.name(prefix, "rating")}
        with pytest.raises(CounterflowError):
            topics.require(found)

    def test_topics_without_the_brokers_clock_or_compaction_are_named(
        self, broker: str, prefix: str, apache: bool
    ) -> None:
        if not apache:
            pytest.skip("settings of topics: Apache Kafka only")
        for kind in (*topics.EVENTS, topics.DEAD_LETTERS):
            make_topic(broker, topics.name(prefix, kind))
        found = topics.check(broker, prefix)
        clock = [p for p in found if "LogAppendTime" in p.problem]
        policy = [p for p in found if "cleanup.policy" in p.problem]
        assert (len(clock), len(policy), len(found)) == (5, 2, 7)

    def test_the_brokers_clock_is_every_records_time(
        self, broker: str, prefix: str, apache: bool, whole: bool
    ) -> None:
        if not apache:
            pytest.skip("LogAppendTime: Apache Kafka only")
        topics.create(broker, prefix, partitions=1)
        name = topics.name(prefix, "rating")
        before = int(time.time() * 1000)
        fill(broker, name, plain(5, ts_ms=1_000_000))
        with open_source(broker, name, whole) as source:
            source.start()
            seen = read(source, 5)
        assert len(seen) == 5
        assert all(record.ts_ms >= before for record in seen)


PARENT = """
import os, sys
from consumers.playground import playground
with playground() as started:
    print(started.bootstrap_servers, started.redis_url, flush=True)
    sys.stdin.read()
"""


class TestPlayground:
    def test_both_servers_answer_and_end_with_the_block(self) -> None:
        with playground.playground() as started:
            client = redis.Redis.from_url(started.redis_url)
            assert client.ping()
            client.close()
            assert topics.create(started.bootstrap_servers, "x", partitions=1)
        for port in (started.bootstrap_servers, started.redis_url.split("/")[2]):
            assert not answers(port)

    def test_both_die_with_a_killed_parent(self) -> None:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert parent.stdin and parent.stdout
        kafka_at, redis_at = parent.stdout.readline().split()
        ports = [kafka_at, redis_at.split("/")[2]]
        assert all(answers(port) for port in ports)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdin.close()
        parent.stdout.close()
        until = time.monotonic() + WAIT_S
        while any(answers(port) for port in ports):
            assert time.monotonic() < until

    def test_a_taken_port_is_told_with_a_remedy(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
            held.close()
            with playground.redis_server(port) as _, pytest.raises(CounterflowError) as raised:
                with playground.redis_server(port):
                    pass
        assert raised.value.remedy


def answers(at: str) -> bool:
    host, port = at.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
