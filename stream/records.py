"""The unit of a poll: whole Kafka record batches, decompressed but not decoded."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """One Kafka record batch (magic 2): its position, its timestamps and the bytes of its records.

    `data` is the uncompressed records section, framed by varints. Records below `fetch_offset` are
    not part of the poll. If `log_append` is true, every record's timestamp is `max_ts_ms`;
    otherwise it is `first_ts_ms` plus the record's delta. `count` is the number of records in
    `data`.
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
