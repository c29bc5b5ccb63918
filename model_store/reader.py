"""Reading the vector cache: single users on demand, all items in memory, kept up to date.

Each query is written once, as a generator (a plan) that yields commands and receives replies.
`Reader` runs plans on a blocking client, `AsyncReader` on an asyncio client. Nothing here writes to
Redis.

    load:     cursor = tail of the log -> SCAN + MGET of all items   (so no change is missed)
    refresh:  XREAD after the cursor -> MGET of the changed items; load again if the log was
              trimmed beyond the cursor
"""

import copy
import weakref
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from model_store.codec import (
    STAMP,
    FloatArray,
    Row,
    RowKind,
    Shape,
    Shapes,
    body,
    unpack,
    unpack_ids,
    unpack_many,
)
from model_store.keys import Space, escaped, keys, named
from model_store.wire import client, mapped
from stream.errors import Inconsistent

T = TypeVar("T")
Plan = Generator[tuple[Any, ...], Any, T]

SCAN_COUNT: Final = 1000
READ_COUNT: Final = 512  # log entries per refresh


class CachedItems:
    """All item rows as columns, in no particular order; `row[id]` is an item's index."""

    def __init__(self, shape: Shape) -> None:
        self.ids: list[bytes] = []
        self.row: dict[bytes, int] = {}
        self._shape = shape
        self._bias = np.zeros((0, shape[0]), np.float32)
        self._vector = np.zeros((0, shape[1]), np.float32)
        self._counts = np.zeros((0, 3), np.uint32)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def bias(self) -> FloatArray:
        """Biases, shape (n, B): a view that the next `apply` may change."""
        return self._bias[: len(self.ids)]

    @property
    def vector(self) -> FloatArray:
        """Vectors, shape (n, L): a view that the next `apply` may change."""
        return self._vector[: len(self.ids)]

    @property
    def events(self) -> npt.NDArray[np.uint32]:
        """Learned outcomes of each item, shape (n,)."""
        return self._counts[: len(self.ids), 0]

    @property
    def exposures(self) -> npt.NDArray[np.uint32]:
        """Closed exposures of each item, shape (n,)."""
        return self._counts[: len(self.ids), 1]

    @property
    def controls(self) -> npt.NDArray[np.uint32]:
        """Closed exposures of each item in which it was withheld, shape (n,)."""
        return self._counts[: len(self.ids), 2]

    def apply(self, ids: Sequence[bytes], payloads: Sequence[bytes | None]) -> None:
        """Insert or replace these items' rows; items without a row of this shape are removed."""
        columns = unpack_many(payloads, self._shape)
        for at in np.flatnonzero(~columns.present).tolist():
            self._remove(ids[at])
        kept = np.flatnonzero(columns.present)
        indices = np.fromiter((self._place(ids[at]) for at in kept.tolist()), np.int64, len(kept))
        self._reserve(len(self.ids))
        self._bias[indices] = columns.bias[kept]
        self._vector[indices] = columns.vector[kept]
        self._counts[indices, 0] = columns.events[kept]
        self._counts[indices, 1] = columns.exposures[kept]
        self._counts[indices, 2] = columns.controls[kept]

    def copy(self) -> "CachedItems":
        """Return a copy with memory of its own; takes 10 ms at 100,000 items."""
        twin = copy.copy(self)
        vars(twin).update({name: copy.copy(held) for name, held in vars(self).items()})
        return twin

    def _place(self, item: bytes) -> int:
        """Return the item's index; a new item gets the next one."""
        index = self.row.setdefault(item, len(self.ids))
        if index == len(self.ids):
            self.ids.append(item)
        return index

    def _remove(self, item: bytes) -> None:
        """Remove an item by moving the last one to its index."""
        index = self.row.pop(item, None)
        if index is None:
            return
        last, moved = len(self.ids) - 1, self.ids.pop()
        if index != last:
            self.ids[index], self.row[moved] = moved, index
            for table in (self._bias, self._vector, self._counts):
                table[index] = table[last]

    def _reserve(self, count: int) -> None:
        """Grow the arrays to hold at least `count` items."""
        held = len(self._bias)
        if count > held:
            more = ((0, max(count, 2 * held, 64) - held), (0, 0))  # amortised growth by doubling
            self._bias = np.pad(self._bias, more)
            self._vector = np.pad(self._vector, more)
            self._counts = np.pad(self._counts, more)


@dataclass(slots=True, weakref_slot=True)
class Catalogue:
    """A server's copy of the cache; `version` increases with every change."""

    items: CachedItems
    shapes: Shapes
    meta: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    stamped: bytes = b""  # the global terms behind their stamp
    cursor: bytes = b"0-0"
    version: int = 0
    _lent: "weakref.ref[Catalogue] | None" = field(default=None, repr=False, compare=False)

    def view(self) -> "Catalogue":
        """Return a read-only view of the present content for another thread.

        The view shares all data with this catalogue and never changes: while it is in use, the next
        change of the catalogue copies the data first.
        """
        lent = None if self._lent is None else self._lent()
        if lent is None or lent.version != self.version:
            lent = Catalogue(
                self.items, self.shapes, self.meta, self.stamped, self.cursor, self.version
            )
            self._lent = weakref.ref(lent)
        return lent

    def part(self) -> None:
        """Copy the data if a view is in use, so that changes do not reach the view."""
        if self._lent is not None and self._lent() is not None:
            self.items, self.meta = self.items.copy(), dict(self.meta)
        self._lent = None

    @property
    def globals_(self) -> FloatArray:
        """The newest global terms, shape (O,); empty before the first."""
        return np.frombuffer(body(self.stamped) or b"", "<f4").astype(np.float32)

    def hear(self, stamped: bytes) -> None:
        """Store these stamped global terms unless newer ones are stored."""
        if stamped and stamped[: STAMP.size] >= self.stamped[: STAMP.size]:
            self.stamped = stamped


@dataclass(frozen=True, slots=True)
class Changes:
    """What a refresh changed: ids of item rows and of titles, or everything."""

    reloaded: bool
    items: list[bytes]
    meta: list[bytes]


class Plans:
    """Each query as a generator of commands that receives their replies."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._log, self._globals = named(prefix, "log"), named(prefix, "globals")
        self._model = named(prefix, "model")
        self._live = f"{prefix}:live".encode()

    def row(self, kind: RowKind, entity: bytes) -> Plan[Row | None]:
        """Return one row, None if there is none."""
        payload = yield ("GET", *keys(self._prefix, kind, [entity]))
        return None if body(payload) is None else unpack(payload)

    def payloads(self, space: Space, ids: Sequence[bytes]) -> Plan[list[bytes | None]]:
        """Return the encoded values in the order of the ids, None where there is none."""
        return (yield from self._mget(keys(self._prefix, space, ids)))

    def payloads_mixed(self, pairs: Sequence[tuple[Space, bytes]]) -> Plan[list[bytes | None]]:
        """Return the encoded values in the order of the pairs, None where there is none."""
        names = [name for space, id_ in pairs for name in keys(self._prefix, space, [id_])]
        return (yield from self._mget(names))

    def meta(self, ids: Sequence[bytes]) -> Plan[list[dict[str, Any] | None]]:
        """Return title and attributes of items, None where there are none."""
        return [_parsed(value) for value in (yield from self.payloads("meta", ids))]

    def model(self) -> Plan[dict[str, Any] | None]:
        """Return the trainer's description of the model, None before there is one."""
        value = yield ("GET", self._model)
        return None if value is None else _object(value)

    def remaining_ms(self) -> Plan[int | None]:
        """Return in how many ms the model's description expires; None if unknown."""
        left = int((yield ("PTTL", self._model)))
        return left if left >= 0 else None

    def live(self) -> Plan[str | None]:
        """Return the live generation, None before a trainer has set it."""
        value = yield ("GET", self._live)
        return None if value is None else value.decode()

    def load(self, shapes: Shapes) -> Plan[Catalogue]:
        """Return all items, and the position in the change log from which to follow."""
        catalogue = Catalogue(CachedItems(shapes["item"]), shapes)
        tail = yield ("XREVRANGE", self._log, "+", "-", "COUNT", 1)
        catalogue.cursor = tail[0][0] if tail else b"0-0"
        catalogue.stamped = (yield ("GET", self._globals)) or b""
        spaces: tuple[Space, ...] = ("item", "meta")
        for space in spaces:
            start = keys(self._prefix, space, [b""])[0]
            cursor = -1
            while cursor != 0:
                cursor, found = yield (
                    *("SCAN", max(cursor, 0)),
                    *("MATCH", escaped(start) + b"*", "COUNT", SCAN_COUNT),
                )
                cursor, found = int(cursor), list(dict.fromkeys(found))
                values = yield from self._mget(found)
                ids = [key[len(start) :] for key in found]
                if space == "item":
                    catalogue.items.apply(ids, values)
                else:
                    catalogue.meta.update(_stated(ids, values))
        return catalogue

    def refresh(self, catalogue: Catalogue, block_ms: int) -> Plan[Changes]:
        """Apply the changes in the log; wait up to `block_ms` for the first one."""
        wait = ("BLOCK", block_ms) if block_ms > 0 else ()
        reply = yield ("XREAD", "COUNT", READ_COUNT, *wait, "STREAMS", self._log, catalogue.cursor)
        entries = _entries(reply)
        if (yield from self._lost(catalogue.cursor)):
            fresh = yield from self.load(catalogue.shapes)
            for name in ("items", "meta", "stamped", "cursor"):
                setattr(catalogue, name, getattr(fresh, name))
            catalogue.version += 1
            return Changes(True, list(catalogue.items.ids), list(catalogue.meta))
        items: dict[bytes, None] = {}
        meta: dict[bytes, None] = {}
        for _, fields in entries:
            items.update(dict.fromkeys(unpack_ids(fields.get(b"i", b""))))
            meta.update(dict.fromkeys(unpack_ids(fields.get(b"m", b""))))
        rows = yield from self.payloads("item", list(items))
        values = yield from self.payloads("meta", list(meta))
        if entries:
            catalogue.part()
        catalogue.items.apply(list(items), rows)
        for i in meta:
            catalogue.meta.pop(i, None)
        catalogue.meta.update(_stated(list(meta), values))
        for _, fields in entries:
            catalogue.hear(fields.get(b"g", b""))
        if entries:
            catalogue.cursor = entries[-1][0]
            catalogue.version += 1
        return Changes(False, list(items), list(meta))

    def _lost(self, cursor: bytes) -> Plan[bool]:
        """Return whether log entries after the cursor may be trimmed, or the log is a new one.

        To be called after reading: what was trimmed before the reading is visible now.
        """
        first = yield ("XRANGE", self._log, "-", "+", "COUNT", 1)
        if not first:
            return False
        last = yield ("XREVRANGE", self._log, "+", "-", "COUNT", 1)
        return _moment(first[0][0]) > _moment(cursor) or _moment(last[0][0]) < _moment(cursor)

    def _mget(self, names: Sequence[bytes]) -> Plan[list[bytes | None]]:
        """Return the values of any number of keys, in several commands."""
        values: list[bytes | None] = []
        for start in range(0, len(names), SCAN_COUNT):
            values += yield ("MGET", *names[start : start + SCAN_COUNT])
        return values


class Reader:
    """Runs queries on a blocking client; `block_ms` must be below its socket timeout."""

    def __init__(self, client: redis.Redis, prefix: str = "cf") -> None:
        self._client: Any = client  # the package's types mix sync and async results
        self._plans = Plans(prefix)

    def user(self, user: bytes) -> Row | None:
        """Return the user's row, None if unknown."""
        return self._ask(self._plans.row("user", user))

    def item(self, item: bytes) -> Row | None:
        """Return the item's row, None if unknown."""
        return self._ask(self._plans.row("item", item))

    def payloads(self, space: Space, ids: Sequence[bytes]) -> list[bytes | None]:
        """Return the encoded values in the order of the ids; a tombstone is a stamp alone."""
        return self._ask(self._plans.payloads(space, ids))

    def payloads_mixed(self, pairs: Sequence[tuple[Space, bytes]]) -> list[bytes | None]:
        """Return encoded values of several kinds in the order of the pairs, in one round trip."""
        return self._ask(self._plans.payloads_mixed(pairs))

    def meta(self, ids: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """Return title and attributes of items, None where there are none."""
        return self._ask(self._plans.meta(ids))

    def model(self) -> dict[str, Any] | None:
        """Return the trainer's description of the model, None before there is one."""
        return self._ask(self._plans.model())

    def live(self) -> str | None:
        """Return the live generation, None before a trainer has set it."""
        return self._ask(self._plans.live())

    def load(self, shapes: Shapes) -> Catalogue:
        """Return all items, and the position in the change log from which to follow."""
        return self._ask(self._plans.load(shapes))

    def refresh(self, catalogue: Catalogue, block_ms: int = 0) -> Changes:
        """Apply the changes in the log; wait up to `block_ms` for the first one."""
        return self._ask(self._plans.refresh(catalogue, block_ms))

    def _ask(self, plan: Plan[T]) -> T:
        """Run a plan to its end and return its result."""
        reply: Any = None
        while True:
            try:
                command = plan.send(reply)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            with mapped():
                reply = self._client.execute_command(*command)


def connect_async(url: str, timeout_s: float = 5.0) -> redis.asyncio.Redis:
    """Return a client for `AsyncReader`; it connects on first use and retries once."""
    return client(redis.asyncio.Redis, Retry(NoBackoff(), 1), url, timeout_s)


class AsyncReader:
    """Runs queries on an asyncio client; `block_ms` must be below its socket timeout."""

    def __init__(self, client: redis.asyncio.Redis, prefix: str = "cf") -> None:
        self._client: Any = client  # the package's types mix sync and async results
        self._plans = Plans(prefix)

    async def user(self, user: bytes) -> Row | None:
        """Return the user's row, None if unknown."""
        return await self._ask(self._plans.row("user", user))

    async def item(self, item: bytes) -> Row | None:
        """Return the item's row, None if unknown."""
        return await self._ask(self._plans.row("item", item))

    async def payloads(self, space: Space, ids: Sequence[bytes]) -> list[bytes | None]:
        """Return the encoded values in the order of the ids; a tombstone is a stamp alone."""
        return await self._ask(self._plans.payloads(space, ids))

    async def payloads_mixed(self, pairs: Sequence[tuple[Space, bytes]]) -> list[bytes | None]:
        """Return encoded values of several kinds in the order of the pairs, in one round trip."""
        return await self._ask(self._plans.payloads_mixed(pairs))

    async def meta(self, ids: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """Return title and attributes of items, None where there are none."""
        return await self._ask(self._plans.meta(ids))

    async def model(self) -> dict[str, Any] | None:
        """Return the trainer's description of the model, None before there is one."""
        return await self._ask(self._plans.model())

    async def remaining_ms(self) -> int | None:
        """Return in how many ms the model's description expires; None if unknown."""
        return await self._ask(self._plans.remaining_ms())

    async def live(self) -> str | None:
        """Return the live generation, None before a trainer has set it."""
        return await self._ask(self._plans.live())

    async def load(self, shapes: Shapes) -> Catalogue:
        """Return all items, and the position in the change log from which to follow."""
        return await self._ask(self._plans.load(shapes))

    async def refresh(self, catalogue: Catalogue, block_ms: int = 0) -> Changes:
        """Apply the changes in the log; wait up to `block_ms` for the first one."""
        return await self._ask(self._plans.refresh(catalogue, block_ms))

    async def _ask(self, plan: Plan[T]) -> T:
        """Run a plan to its end and return its result."""
        reply: Any = None
        while True:
            try:
                command = plan.send(reply)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            with mapped():
                reply = await self._client.execute_command(*command)


def _entries(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Return the entries of an XREAD of one stream, in RESP2 and RESP3 alike."""
    if not reply:
        return []
    found = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    return found[0] if found and isinstance(found[0], list) else found


def _moment(entry: bytes) -> tuple[int, int]:
    """Return a log entry's id as numbers."""
    first, _, second = entry.partition(b"-")
    return int(first), int(second or 0)


def _stated(ids: Sequence[bytes], values: Sequence[bytes | None]) -> dict[bytes, dict[str, Any]]:
    """Return the parsed values by id, without those that are missing."""
    parsed = [(i, _parsed(value)) for i, value in zip(ids, values, strict=True)]
    return {i: meta for i, meta in parsed if meta is not None}


def _parsed(value: bytes | None) -> dict[str, Any] | None:
    """Return a stamped JSON object, None for no value and for a tombstone."""
    stated = body(value)
    return None if stated is None else _object(stated)


def _object(value: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(value)
    except ValueError as exc:
        raise Inconsistent(f"a value in the cache is not valid JSON: {exc}") from exc
    if not isinstance(parsed, dict):
        raise Inconsistent("a value in the cache is JSON, but not an object")
    return parsed
