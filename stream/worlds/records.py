"""Converts a world's events into record batches, as a poll would return them."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from stream.framing import frame
from stream.records import RecordBatch
from stream.worlds.base import Wire


def record_batches(
    events: Iterable[Wire], prefix: str = "world", partition: int = 0
) -> Iterator[RecordBatch]:
    """Yield the events in order, as one record batch per run of events of one kind.

    Each topic has one partition; a record's Kafka timestamp is its event time.
    """
    offsets: dict[str, int] = {}
    for kind, run in groupby(events, key=lambda event: event.kind):
        records = list(run)
        first = offsets.get(kind, 0)
        offsets[kind] = first + len(records)
        start_ms = records[0].ts_ms
        yield RecordBatch(
            topic=f"{prefix}.{kind}.v1",
            kind=kind,
            partition=partition,
            base_offset=first,
            fetch_offset=first,
            next_offset=first + len(records),
            first_ts_ms=start_ms,
            max_ts_ms=records[-1].ts_ms,
            log_append=False,
            count=len(records),
            data=b"".join(
                frame(n, r.ts_ms - start_ms, r.key, r.value) for n, r in enumerate(records)
            ),
        )
