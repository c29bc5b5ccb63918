"""Wire events, and decoding of a whole poll into columns.

Importing this module needs neither numba nor torch; the first `decode` loads the fast parser.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from stream.errors import BadEvent, Inconsistent
from stream.framing import unframe
from stream.records import RecordBatch
from stream.reference_parser import REASONS, check, check_id, load, parse
from stream.schemas import (
    ATTRIBUTE_KINDS,
    KINDS,
    Click,
    Event,
    Impression,
    Item,
    Rating,
    User,
    schemas,
    topic_kind,
)

__all__ = [
    "KINDS",
    "REASONS",
    "AttributeEvent",
    "BadRecord",
    "Click",
    "Decoded",
    "Event",
    "Impression",
    "Item",
    "Rating",
    "User",
    "check",
    "decode",
    "load",
    "parse",
    "schemas",
    "topic_kind",
]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AttributeEvent:
    """The content of a user or item record; `attributes` None removes the entity."""

    index: int  # row in the columns of `Decoded`
    kind: str  # "user" or "item"
    id: str
    title: str | None
    attributes: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be used, with its bytes unchanged and the reason."""

    batch: int  # index into the decoded batches
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp_ms: int
    reason: str
    detail: str
    stage: str = "decode"


@dataclass(frozen=True, slots=True)
class Decoded:
    """The accepted records of a poll, in poll order, as columns of length N, and the rejected ones.

    An id is `data[at : at + length]`; its length is 0 where the event has no such id.
    """

    data: NDArray[np.uint8]
    kind: NDArray[np.int8]  # (N,) index into KINDS
    batch: NDArray[np.int32]  # (N,)
    offset: NDArray[np.int64]  # (N,)
    kafka_ts_ms: NDArray[np.int64]  # (N,)
    ts_ms: NDArray[np.int64]  # (N,)
    event_at: NDArray[np.int64]  # (N,)
    event_len: NDArray[np.int32]  # (N,)
    user_at: NDArray[np.int64]  # (N,)
    user_len: NDArray[np.int32]  # (N,)
    item_at: NDArray[np.int64]  # (N,)
    item_len: NDArray[np.int32]  # (N,)
    impression_at: NDArray[np.int64]  # (N,)
    impression_len: NDArray[np.int32]  # (N,)
    value: NDArray[np.float64]  # (N,) nan: none
    position: NDArray[np.int32]  # (N,) 0: none
    propensity: NDArray[np.float64]  # (N,) nan: none
    show_probability: NDArray[np.float64]  # (N,)
    shown: NDArray[np.bool_]  # (N,)
    attributes: list[AttributeEvent]
    bad: list[BadRecord]

    def __len__(self) -> int:
        return len(self.kind)


def decode(
    batches: Sequence[RecordBatch], *, rating_scale: tuple[float, float] = (1.0, 5.0)
) -> Decoded:
    """Decode the records of a poll that lie at or above their batch's fetch offset.

    Each record is validated by itself. `decode([])` compiles or loads the fast parser.

    Raises
    ------
    Inconsistent
        A batch's bytes are not framed as Kafka frames records. The broker's own checks rule this
        out.
    """
    from stream.fast_parser import parse_batches

    low, high = map(float, rating_scale)
    data, spans = _arena(batches)
    rows = _ColumnBuffers(sum(batch.count for batch in batches))
    parse_batches(data.ctypes.data, spans, low, high, *rows.columns())
    used, broken, deferred = (int(number) for number in rows.result)
    if broken >= 0:
        raise _misframed(batches[broken])
    if deferred == 0:
        return rows.decoded(data, spans, slice(0, used), [], [])
    return _parse_deferred(batches, data, spans, rows, used, (low, high))


class _ColumnBuffers:
    """The columns that the fast parser fills."""

    def __init__(self, count: int) -> None:
        self.status = np.zeros(count, np.int8)
        self.batch = np.empty(count, np.int32)
        self.offset = np.empty(count, np.int64)
        self.kafka_ts = np.empty(count, np.int64)
        self.frame_at = np.empty(count, np.int64)
        self.value_at = np.empty(count, np.int64)
        self.value_len = np.empty(count, np.int64)
        self.key_at = np.empty(count, np.int64)
        self.key_len = np.empty(count, np.int64)
        self.at = np.empty((4, count), np.int64)  # event, user, item, impression
        self.length = np.empty((4, count), np.int32)
        self.number = np.empty((3, count), np.float64)  # value, propensity, show_probability
        self.ts = np.empty(count, np.int64)
        self.position = np.empty(count, np.int32)
        self.shown = np.empty(count, np.bool_)
        self.result = np.zeros(3, np.int64)

    def columns(self) -> tuple[NDArray[Any], ...]:
        """Return the fast parser's output arguments, in the order of its signature."""
        return tuple(vars(self).values())

    def fill(self, kind: str, rows: list[int], events: list[Event], arena: "_ExtraBytes") -> None:
        """Write events that the reference parser accepted, all of one kind, into their rows."""
        index = np.array(rows)
        names = type(events[0]).__struct_fields__

        def given(name: str, default: Any) -> list[Any]:
            found = [getattr(event, name) for event in events]
            return [default if content is UNSET else content for content in found]

        self._blank(index)
        self.ts[index] = given("ts_ms", 0)
        for j, name in enumerate(("event_id", "user_id", "item_id", "impression_id")):
            if name in names:
                contents = [text.encode() for text in given(name, "")]
                self.at[j, index], self.length[j, index] = arena.add(contents)
        for j, (name, default) in enumerate(
            (("value", np.nan), ("propensity", np.nan), ("show_probability", 1.0))
        ):
            if name in names:
                self.number[j, index] = given(name, default)
        if kind == "impression":
            self.position[index] = given("position", 0)
            self.shown[index] = given("shown", True)

    def remove(self, kind: str, rows: list[int], keys: list[bytes], arena: "_ExtraBytes") -> None:
        """Write removals of users or items into their rows."""
        index = np.array(rows)
        self._blank(index)
        self.ts[index] = self.kafka_ts[index]
        j = 1 if kind == "user" else 2
        self.at[j, index], self.length[j, index] = arena.add(keys)

    def _blank(self, index: NDArray[np.intp]) -> None:
        self.status[index] = 1
        self.at[:, index] = 0
        self.length[:, index] = 0
        self.number[:, index] = np.array([[np.nan], [np.nan], [1.0]])
        self.position[index] = 0
        self.shown[index] = True

    def decoded(
        self,
        data: NDArray[np.uint8],
        spans: NDArray[np.int64],
        kept: slice | NDArray[np.intp],
        attributes: list[AttributeEvent],
        bad: list[BadRecord],
    ) -> Decoded:
        """Return the kept rows as the columns of the poll."""
        batch = self.batch[kept]
        at = [column[kept] for column in self.at]
        length = [column[kept] for column in self.length]
        return Decoded(
            data=data,
            kind=spans[:, 7].astype(np.int8)[batch],
            batch=batch,
            offset=self.offset[kept],
            kafka_ts_ms=self.kafka_ts[kept],
            ts_ms=self.ts[kept],
            event_at=at[0],
            event_len=length[0],
            user_at=at[1],
            user_len=length[1],
            item_at=at[2],
            item_len=length[2],
            impression_at=at[3],
            impression_len=length[3],
            value=self.number[0][kept],
            position=self.position[kept],
            propensity=self.number[1][kept],
            show_probability=self.number[2][kept],
            shown=self.shown[kept],
            attributes=attributes,
            bad=bad,
        )


@dataclass(slots=True)
class _ExtraBytes:
    """Bytes appended to the arena: ids that the record spells differently, such as with escapes."""

    start: int
    data: bytearray = field(default_factory=bytearray)

    def add(self, contents: list[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Append the contents; return the position and the length of each."""
        length = np.array(list(map(len, contents)))
        at = self.start + len(self.data) + length.cumsum() - length
        self.data += b"".join(contents)
        return at, length


def _arena(batches: Sequence[RecordBatch]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes of all batches in one array, and a row of PLACES (fast_parser.py) for each
    batch.

    The array ends with 8 unused bytes, because the fast parser reads 8 bytes at a time.
    """
    data = np.empty(sum(len(batch.data) for batch in batches) + 8, np.uint8)
    spans = np.empty((len(batches), 9), np.int64)
    start = 0
    for row, batch in enumerate(batches):
        stop = start + len(batch.data)
        data[start:stop] = np.frombuffer(batch.data, np.uint8)
        spans[row] = (
            start,
            stop,
            batch.base_offset,
            batch.fetch_offset,
            batch.first_ts_ms,
            batch.max_ts_ms,
            batch.log_append,
            KINDS.index(batch.kind),
            batch.count,
        )
        start = stop
    return data, spans


def _parse_deferred(
    batches: Sequence[RecordBatch],
    data: NDArray[np.uint8],
    spans: NDArray[np.int64],
    rows: _ColumnBuffers,
    used: int,
    scale: tuple[float, float],
) -> Decoded:
    """Return the columns after the reference parser has judged all records not yet accepted."""
    view = data.data
    accepted: dict[str, tuple[list[int], list[Event]]] = {}
    removed: dict[str, tuple[list[int], list[bytes]]] = {}
    said: list[AttributeEvent] = []
    bad: list[BadRecord] = []
    left = np.flatnonzero(rows.status[:used] != 1)
    columns = (rows.batch, rows.value_at, rows.value_len, rows.kafka_ts)
    for row, batch, at, size, ts_ms in zip(
        left.tolist(), *(column[left].tolist() for column in columns), strict=True
    ):
        kind = batches[batch].kind
        value = _part(view, at, size)
        index = row - len(bad)  # its row once the bad records are taken out
        try:
            if value is None and kind in ATTRIBUTE_KINDS:
                name = _removed(kind, _part(view, int(rows.key_at[row]), int(rows.key_len[row])))
                said.append(AttributeEvent(index, kind, name, None, None))
                _append(removed, kind, row, name.encode())
                continue
            event = parse(kind, value, ts_ms, rating_scale=scale)
        except BadEvent as error:
            try:
                bad.append(_bad(view, rows, row, error))
            except Inconsistent:  # its headers
                raise _misframed(batches[batch]) from None
            continue
        _append(accepted, kind, row, event)
        if isinstance(event, User):
            said.append(AttributeEvent(index, kind, event.user_id, None, event.attributes))
        elif isinstance(event, Item):
            title = None if event.title is UNSET else event.title
            said.append(AttributeEvent(index, kind, event.item_id, title, event.attributes))
    extra = _ExtraBytes(len(data))
    for kind, (filled, events) in accepted.items():
        rows.fill(kind, filled, events, extra)
    for kind, (filled, keys) in removed.items():
        rows.remove(kind, filled, keys, extra)
    kept = np.flatnonzero(rows.status[:used] == 1) if bad else slice(0, used)
    if extra.data:
        data = np.concatenate((data, np.frombuffer(extra.data, np.uint8)))
    return rows.decoded(data, spans, kept, said, bad)


def _append(
    columns: dict[str, tuple[list[int], list[_T]]], kind: str, row: int, content: _T
) -> None:
    rows, contents = columns.setdefault(kind, ([], []))
    rows.append(row)
    contents.append(content)


def _misframed(batch: RecordBatch) -> Inconsistent:
    place = f"{batch.topic}-{batch.partition}@{batch.base_offset}"
    return Inconsistent(
        f"the record batch {place} is not framed as Kafka frames records",
        "the broker, its disk or the producer damaged it: restore the partition, or delete its"
        f" records before offset {batch.next_offset}",
    )


def _part(view: memoryview, at: int, size: int) -> bytes | None:
    return None if size < 0 else bytes(view[at : at + size])


def _removed(kind: str, key: bytes | None) -> str:
    """Return the id that a record with a null value removes; raise BadEvent if its key is no id."""
    if key is None:
        raise BadEvent(
            "missing_field", "a null value removes the key's user or item; the key is null"
        )
    check_id(f"the {kind}'s key", key)
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise BadEvent("bad_id", f"the {kind}'s key is not UTF-8: byte {error.start}") from None


def _bad(view: memoryview, rows: _ColumnBuffers, row: int, error: BadEvent) -> BadRecord:
    key, value, headers = unframe(view, int(rows.frame_at[row]))
    return BadRecord(
        batch=int(rows.batch[row]),
        offset=int(rows.offset[row]),
        key=key,
        value=value,
        headers=headers,
        timestamp_ms=int(rows.kafka_ts[row]),
        reason=error.reason,
        detail=error.detail,
    )
