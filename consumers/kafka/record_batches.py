"""Whole record batches from kafka-python's fetcher, with the client's own parser as a fallback.

The client parses every record in Python, 4.6 to 7 microseconds each. Its fetcher looks up the class
`PartitionRecords` on the instance, so setting one attribute replaces the parser by `BatchRecords`,
which passes on the uncompressed bytes of each batch. `supported` checks that the client still has
the structure of version 3.0; if not, `reframe` converts the client's parsed records into the same
framing. tests/test_kafka.py runs the same cases over both paths.
"""

import inspect
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from kafka import codec
from kafka.errors import CorruptRecordError, UnsupportedCodecError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import encode_varint

from stream.framing import unframe
from stream.records import RecordBatch

HEADER_BYTES = 61  # of a magic-2 batch, up to and including the record count
LOG_APPEND = 1  # timestamp type: set by the broker's clock
ABORT = b"\0\0"  # control record type of an abort marker

Headers = Sequence[tuple[str, bytes | None]]
Framed = tuple[int, int, bytes | None, bytes | None, Headers]  # offset, ts_ms, key, value, headers

# Constructor arguments and methods of the replaced class, as of kafka-python 3.0.12.
CONSTRUCTED_WITH = (
    "self fetch_offset tp records key_deserializer value_deserializer check_crcs isolation_level "
    "aborted_transactions metric_aggregator on_drain"
).split()
ASKED_FOR = ("__bool__", "take", "drain")


def _zstd(data: bytes) -> bytes:
    # The client's decoder stops at 1 MiB if the frame does not declare its size, as Java's do not.
    import zstandard

    reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
    return bytes(reader.readall())


DECODERS: dict[int, tuple[str, Callable[[], bool], Callable[[bytes], bytes]]] = {
    DefaultRecordBatch.CODEC_GZIP: ("gzip", codec.has_gzip, codec.gzip_decode),
    DefaultRecordBatch.CODEC_SNAPPY: ("snappy", codec.has_snappy, codec.snappy_decode),
    DefaultRecordBatch.CODEC_LZ4: ("lz4", codec.has_lz4, codec.lz4_decode),
    DefaultRecordBatch.CODEC_ZSTD: ("zstd", codec.has_zstd, _zstd),
}


def supported(consumer: Any) -> bool:
    """Return whether this client's fetcher uses the attribute that `install` replaces."""
    stock = getattr(getattr(consumer, "_fetcher", None), "PartitionRecords", None)
    if not inspect.isclass(stock):
        return False
    return (
        list(inspect.signature(stock.__init__).parameters) == CONSTRUCTED_WITH
        and all(callable(getattr(stock, name, None)) for name in ASKED_FOR)
        and DefaultRecordBatch.HEADER_STRUCT.size == HEADER_BYTES
        and "_buffer" in DefaultRecordBatch.__slots__
    )


def install(consumer: Any, kinds: Mapping[str, str]) -> None:
    """Make later polls of `consumer` return RecordBatch objects; `kinds` maps topic to kind."""
    consumer._fetcher.PartitionRecords = partial(BatchRecords, kinds)  # noqa: SLF001


class BatchRecords:
    """One partition's part of a fetch response, returned batch by batch.

    It behaves like the class it replaces: `next_fetch_offset` moves past a batch when that batch is
    taken; control batches and aborted batches move it without being returned; and an error behind
    good batches is raised only once those have been taken.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        fetch_offset: int,
        tp: Any,
        records: Any,
        key_deserializer: Any = None,
        value_deserializer: Any = None,
        check_crcs: bool = True,
        isolation_level: Any = IsolationLevel.READ_UNCOMMITTED,
        aborted_transactions: Any = None,
        metric_aggregator: Any = None,
        on_drain: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self.fetch_offset = fetch_offset
        self.topic_partition = tp
        self.leader_epoch = -1
        self.next_fetch_offset = fetch_offset
        self.bytes_read = 0
        self.records_read = 0
        self._kind = kinds.get(tp.topic, "")
        self._check_crcs = check_crcs
        self._committed_only = isolation_level == IsolationLevel.READ_COMMITTED
        self._aborting: set[int] = set()  # producers whose open transaction was aborted
        self._aborted = deque(sorted(aborted_transactions or [], key=lambda txn: txn.first_offset))
        self._metrics = metric_aggregator
        self._on_drain = on_drain
        self._batches: Iterator[RecordBatch] | None = self._unpack(records)
        self._error: Exception | None = None

    def __bool__(self) -> bool:
        return self._batches is not None

    def drain(self) -> None:
        """Drop the remaining batches; the fetcher may then fetch this partition again."""
        if self._batches is not None:
            self._batches = None
            self._error = None
            if self._metrics:
                self._metrics.record(self.topic_partition, self.bytes_read, self.records_read)
            self._on_drain(self)

    def take(self, n: int | None = None) -> list[RecordBatch]:
        """Return up to n further batches; an empty list, and drained, at the end."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        taken: list[RecordBatch] = []
        if self._batches is None:
            return taken
        try:
            taken.extend(itertools.islice(self._batches, n))
        except Exception as error:
            if not taken:
                raise
            self._error = error  # raised by the next take: the batches before it are good
        return taken

    def _unpack(self, records: Any) -> Iterator[RecordBatch]:
        while (batch := records.next_batch()) is not None:
            if self._check_crcs and not batch.validate_crc():
                raise CorruptRecordError(
                    f"batch of {self.topic_partition} at offset {batch.base_offset} fails its CRC"
                )
            if batch.magic < 2:
                yield from self._reframe(batch)
                continue
            self.leader_epoch = batch.leader_epoch
            hidden = self._hidden(batch)
            if hidden or batch.next_offset <= self.fetch_offset or not batch.records_count:
                self.next_fetch_offset = max(self.next_fetch_offset, batch.next_offset)
                continue
            made = self._whole(batch)
            self.next_fetch_offset = made.next_offset
            self.bytes_read += len(made.data)
            self.records_read += made.count
            yield made
        self.drain()

    def _hidden(self, batch: Any) -> bool:
        """Return whether the batch is a control batch or, under read_committed, was aborted.

        References
        ----------
        kafka-python's PartitionRecords, and Kafka's Fetcher.nextFetchedRecord.
        """
        if self._committed_only and batch.has_producer_id():
            while self._aborted and self._aborted[0].first_offset <= batch.last_offset:
                self._aborting.add(self._aborted.popleft().producer_id)
            if batch.is_control_batch:
                if _ends_abort(batch):
                    self._aborting.discard(batch.producer_id)
            elif batch.is_transactional and batch.producer_id in self._aborting:
                return True
        return bool(batch.is_control_batch)

    def _whole(self, batch: Any) -> RecordBatch:
        """Return the batch with its records decompressed."""
        packed = memoryview(batch._buffer)[HEADER_BYTES:]  # noqa: SLF001
        packing = batch.compression_type
        return RecordBatch(
            topic=self.topic_partition.topic,
            kind=self._kind,
            partition=self.topic_partition.partition,
            base_offset=batch.base_offset,
            fetch_offset=max(self.fetch_offset, batch.base_offset),
            next_offset=batch.next_offset,
            first_ts_ms=batch.first_timestamp,
            max_ts_ms=batch.max_timestamp,
            log_append=batch.timestamp_type == LOG_APPEND,
            count=batch.records_count,
            data=decompress(packing, packed) if packing else packed,
        )

    def _reframe(self, batch: Any) -> Iterator[RecordBatch]:
        """Yield a batch of the formats before Kafka 0.11 (magic 0 and 1) in magic-2 framing."""
        kept: list[Framed] = []
        for record in batch:
            if self._check_crcs and not record.validate_crc():
                raise CorruptRecordError(
                    f"record of {self.topic_partition} at offset {record.offset} fails its CRC"
                )
            if record.offset >= self.fetch_offset:
                ts_ms = -1 if record.timestamp is None else record.timestamp
                kept.append((record.offset, ts_ms, record.key, record.value, ()))
        if kept:
            made = frame(self.topic_partition, self._kind, kept)
            self.next_fetch_offset = made.next_offset
            self.bytes_read += len(made.data)
            self.records_read += made.count
            yield made
        else:  # empty, or entirely before the requested offset: fetch behind it next
            self.next_fetch_offset = max(self.next_fetch_offset, batch.base_offset + 1)


def _ends_abort(batch: Any) -> bool:
    """Return whether a control batch may end an aborted transaction; its key has the type.

    Compaction may have emptied the batch, but the transaction ended there all the same. Control
    records of unknown types end no transaction.
    """
    if not batch.records_count:
        return True
    key, _, _ = unframe(memoryview(batch._buffer)[HEADER_BYTES:], 0)  # noqa: SLF001
    return key is not None and key[2:4] == ABORT


def decompress(compression: int, data: memoryview) -> bytes:
    """Return the decompressed records section of a batch."""
    if compression not in DECODERS:
        raise UnsupportedCodecError(f"unknown compression type {compression}")
    name, present, decode = DECODERS[compression]
    if not present():
        raise UnsupportedCodecError(f"the library for {name} is not installed")
    try:
        return decode(data.tobytes())
    except Exception as error:
        raise CorruptRecordError(f"{name} cannot be decompressed: {error}") from error


def frame(tp: Any, kind: str, records: Iterable[Framed]) -> RecordBatch:
    """Return the records, at least one and in offset order, as one batch in magic-2 framing."""
    data, body = bytearray(), bytearray()
    base = first_ts = max_ts = last = count = 0
    for offset, ts_ms, key, value, headers in records:
        if not count:
            base, first_ts, max_ts = offset, ts_ms, ts_ms
        body.clear()
        body.append(0)  # attributes: unused
        encode_varint(ts_ms - first_ts, body.append)
        encode_varint(offset - base, body.append)
        _string(body, key)
        _string(body, value)
        encode_varint(len(headers), body.append)
        for name, content in headers:
            _string(body, name.encode())
            _string(body, content)
        encode_varint(len(body), data.append)
        data += body
        last, max_ts, count = offset, max(max_ts, ts_ms), count + 1
    if not count:
        raise ValueError("a batch has at least one record")
    return RecordBatch(
        tp.topic, kind, tp.partition, base, base, last + 1, first_ts, max_ts, False, count, data
    )


def _string(body: bytearray, content: bytes | None) -> None:
    """Append a length-prefixed byte string; None has length -1."""
    if content is None:
        encode_varint(-1, body.append)
    else:
        encode_varint(len(content), body.append)
        body += content


def reframe(tp: Any, kind: str, records: Iterable[Any]) -> RecordBatch:
    """Return the client's parsed records of one partition as one batch with their timestamps."""
    return frame(
        tp, kind, ((r.offset, r.timestamp, r.key, r.value, r.headers or ()) for r in records)
    )
