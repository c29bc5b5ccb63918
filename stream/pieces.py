"""Splits a poll into single records and reassembles batches, to learn some records separately."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from stream.events import BadRecord
from stream.framing import record_header, unframe
from stream.records import RecordBatch

PartitionKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """One record of a batch; its bytes, length field included, are `batch.data[begin:end]`."""

    batch: RecordBatch
    begin: int
    end: int
    ts_ms: int
    offset: int

    @property
    def partition_key(self) -> PartitionKey:
        """Return the topic and the partition number."""
        return self.batch.topic, self.batch.partition


def pieces(batches: Sequence[RecordBatch]) -> list[Piece]:
    """Return the records of a poll in order, without those below their batch's fetch offset."""
    found: list[Piece] = []
    for batch in batches:
        at, data = 0, memoryview(batch.data)
        for _ in range(batch.count):
            begin = at
            at, delta_ms, step = record_header(data, begin)
            ts_ms = batch.max_ts_ms if batch.log_append else batch.first_ts_ms + delta_ms
            if batch.base_offset + step >= batch.fetch_offset:
                found.append(Piece(batch, begin, at, ts_ms, batch.base_offset + step))
    return found


def joined(some: Sequence[Piece]) -> list[RecordBatch]:
    """Return batches of just these records, in order; records of one batch must be consecutive."""
    made: list[RecordBatch] = []
    for _, run in groupby(some, lambda piece: id(piece.batch)):
        held = list(run)
        batch, last = held[0].batch, held[-1]
        data = memoryview(batch.data)
        made.append(
            replace(
                batch,
                fetch_offset=held[0].offset,
                next_offset=last.offset + 1,
                count=len(held),
                data=b"".join([data[piece.begin : piece.end] for piece in held]),
            )
        )
    return made


def parted(
    batches: Sequence[RecordBatch], until: Mapping[PartitionKey, int]
) -> tuple[list[RecordBatch], list[RecordBatch]]:
    """Return the records below the given offsets and the other records, each in poll order."""

    def below(batch: RecordBatch) -> int:
        return until.get((batch.topic, batch.partition), 0)

    if all(batch.next_offset <= below(batch) for batch in batches):
        return list(batches), []
    if all(batch.fetch_offset >= below(batch) for batch in batches):
        return [], list(batches)
    every = pieces(batches)
    return (
        joined([piece for piece in every if piece.offset < below(piece.batch)]),
        joined([piece for piece in every if piece.offset >= below(piece.batch)]),
    )


def unlearnable(piece: Piece, error: BaseException) -> BadRecord:
    """Return the dead-letter record of a record that raised `error` when learned by itself."""
    key, value, headers = unframe(memoryview(piece.batch.data), piece.begin)
    return BadRecord(
        batch=0,
        offset=piece.offset,
        key=key,
        value=value,
        headers=headers,
        timestamp_ms=piece.ts_ms,
        reason="not_learnable",
        detail=" ".join(f"{type(error).__name__}: {error}".split())[:300],
        stage="learn",
    )
