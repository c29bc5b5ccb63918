"""What a poll returns: whole Kafka record batches, decompressed, still undecoded."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """One Kafka record batch (magic 2): its place, its times, and the bytes of its records.

    `data` is the uncompressed records section, varint-framed. Records below `fetch_offset` are
    not part of the poll. With `log_append`, every record's time is `max_ts_ms`; else it is
    `first_ts_ms` plus the record's own delta.
    """

    topic: str
    kind: str
    partition: int
    base_offset: int
    fetch_offset: int
    next_offset: int
    first_ts_ms: int
    max_ts_ms: int
    log_append: bool
    count: int
    data: bytes | bytearray | memoryview
