"""The joiner's memory: a fixed number of packed rows with two hash indexes and a heap.

    slots      one cache line per exposure, open or remembered; free ones are chained by `older`
    first_ms   of a remembered exposure: the time of the first decision that it belongs to
    click_ms   of an open exposure: its earliest click that named no impression; NEVER: none
    by_pair    (user, item) -> the newest exposure of a doubly linked list, by (ts, arrival)
    by_name    (user, item, slate) -> the exposure
    heap       open exposures by (ts, arrival)
    ring       remembered exposures in closing order
    waiting    ring of outcomes without an exposure; `before` chains those of one bucket
    buckets    hash of (user, item) -> sequence number + 1 of the newest waiting outcome
    high       partition -> its highest event time (ms)
    last       partition -> its last Kafka timestamp (ms)
    until      partition -> index of its last record in this call, or the call's size if pending
    gone_user  row -> the era of its latest removal in this call (removal.py); likewise gone_item
    counts     counters and settings, by the constants below

The indexes are open-addressing tables of slot + 1 (0: free) with linear probing and no tombstones.
The chains of `waiting` need no removal: they run from new to old, and end at the first sequence
number that the ring has overwritten.
"""

from collections import namedtuple
from typing import Any

import numpy as np

from stream.compiled import inlined
from stream.hashing import murmur3_finalizer
from stream.memory import reserve

EXPOSURE = np.dtype(
    [
        ("slate", np.uint64),
        ("ts_ms", np.int64),
        ("user", np.int32),
        ("item", np.int32),
        ("newer", np.int32),
        ("older", np.int32),
        ("position", np.int32),
        ("propensity", np.float32),
        ("show_probability", np.float32),
        ("rating", np.float32),  # nan: none
        ("treated", np.float32),
        ("control", np.float32),
        ("predicted_by", np.int32),
        ("marks", np.int32),
    ]
)  # 64 bytes
# flags in `marks` of an exposure; ZERO: it was learned as 0; 16 is unused, old states may set it
OPEN, SHOWN, LEARNED, CLICKED, ZERO = 1, 2, 4, 8, 32
CONTRADICTS = 64  # its arm differs from that of its first decision
SEEN = 128  # the item was shown to the user between the first decision and this exposure
NAMED = 256  # a click named it
BLANK, ERA_AT = 1 << 11, 12  # BLANK: removed; the bits from ERA_AT on are the era (removal.py)
ERA_MAX = (1 << (31 - ERA_AT)) - 1

WAITING = np.dtype(
    [
        ("slate", np.uint64),
        ("ts_ms", np.int64),
        ("before", np.int64),
        ("user", np.int32),
        ("item", np.int32),
        ("value", np.float32),
        ("marks", np.int32),
    ]
)
CLICK, TAKEN = 1, 2

CLOSING = np.dtype([("ts_ms", np.int64), ("arrival", np.int64), ("slot", np.int64)])

# positions in `counts`
(
    WINDOW, IDLE, OPEN_MAX, WATERMARK, LATEST, HOLDER, OPENED, HELD, USED, FREE, FIRST, REMEMBERED,
    WAITED, LATE, CORRECTED, CONTRADICTED, EVICTED, ROWS, CLOSED_ROWS, AHEAD, ERA, UNSWEPT,
    BURIED,
) = range(23)  # fmt: skip
NEVER = np.iinfo(np.int64).min

_tuple_of: Any = namedtuple
JoinState = _tuple_of(
    "JoinState",
    "slots first_ms click_ms by_pair by_name heap ring waiting buckets high last until gone_user"
    " gone_item counts",
)
_32, _ONE = np.uint64(32), np.uint64(1)


def allot(open_max: int, pending_max: int, closed_max: int) -> Any:
    """Return an empty Memory with these bounds; its pages are committed as they are touched."""
    slots = open_max + 1 + closed_max  # 1: a new exposure opens before the oldest is closed
    table = 1 << max(10, (2 * slots - 1).bit_length())
    counts = np.zeros(23, np.int64)
    counts[OPEN_MAX], counts[HOLDER] = open_max, -1
    counts[WATERMARK] = counts[LATEST] = NEVER

    def vector(length: int, dtype: Any) -> Any:
        return reserve(length, 1, dtype)[:, 0]

    return JoinState(
        vector(slots, EXPOSURE),
        vector(slots, np.int64),
        vector(slots, np.int64),
        vector(table, np.int32),
        vector(table, np.int32),
        vector(open_max + 1, CLOSING),
        vector(closed_max, np.int32),
        vector(pending_max, WAITING),
        vector(1 << max(10, (pending_max - 1).bit_length()), np.int64),
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        np.zeros(0, np.int32),
        np.zeros(0, np.int32),
        counts,
    )


@inlined
def pair(user, item):  # type: ignore[no-untyped-def]
    """Return a 64-bit hash of a user and an item."""
    return murmur3_finalizer((np.uint64(user) << _32 | np.uint64(item)) + _ONE)


@inlined
def _home(m, slot, named, mask):  # type: ignore[no-untyped-def]
    """Return the first place in an index at which the slot may stand."""
    e = m.slots[slot]
    h = pair(e.user, e.item)
    if named:
        h = murmur3_finalizer(h ^ e.slate)
    return np.int64(h & np.uint64(mask))


@inlined
def pair_bucket(m, user, item):  # type: ignore[no-untyped-def]
    """Return the place in `by_pair` that holds the pair's newest exposure, or where it belongs."""
    mask = len(m.by_pair) - 1
    at = np.int64(pair(user, item) & np.uint64(mask))
    while m.by_pair[at] != 0:
        e = m.slots[m.by_pair[at] - 1]
        if e.user == user and e.item == item:
            return at
        at = (at + 1) & mask
    return at


@inlined
def name_bucket(m, user, item, slate):  # type: ignore[no-untyped-def]
    """Return the place in `by_name` that holds the exposure, or where it belongs."""
    mask = len(m.by_name) - 1
    at = np.int64(murmur3_finalizer(pair(user, item) ^ slate) & np.uint64(mask))
    while m.by_name[at] != 0:
        e = m.slots[m.by_name[at] - 1]
        if e.slate == slate and e.user == user and e.item == item:
            return at
        at = (at + 1) & mask
    return at


@inlined
def _empty(m, table, hole, named):  # type: ignore[no-untyped-def]
    """Remove the entry at place `hole` from an index, and close the gap."""
    mask = len(table) - 1
    at = hole
    while True:
        at = (at + 1) & mask
        if table[at] == 0:
            break
        home = _home(m, table[at] - 1, named, mask)
        if ((at - home) & mask) >= ((at - hole) & mask):
            table[hole] = table[at]
            hole = at
    table[hole] = 0


@inlined
def take_slot(m):  # type: ignore[no-untyped-def]
    """Allocate a slot and return it."""
    slot = m.counts[FREE] - 1
    if slot < 0:
        slot = m.counts[USED]
        m.counts[USED] += 1
    else:
        m.counts[FREE] = m.slots[slot].older + 1
    return slot


@inlined
def unlink(m, slot):  # type: ignore[no-untyped-def]
    """Remove the exposure from the indexes and from its pair's list."""
    e = m.slots[slot]
    if e.older >= 0:
        m.slots[e.older].newer = e.newer
    if e.newer >= 0:
        m.slots[e.newer].older = e.older
    else:
        at = pair_bucket(m, e.user, e.item)
        if e.older >= 0:
            m.by_pair[at] = e.older + 1
        else:
            _empty(m, m.by_pair, at, False)
    if e.slate != 0:
        _empty(m, m.by_name, name_bucket(m, e.user, e.item, e.slate), True)


@inlined
def free(m, slot):  # type: ignore[no-untyped-def]
    """Free the slot."""
    m.slots[slot].marks = BLANK
    m.slots[slot].older = m.counts[FREE] - 1
    m.counts[FREE] = slot + 1


@inlined
def evict(m, slot):  # type: ignore[no-untyped-def]
    """Remove the exposure from the indexes and its list, and free its slot."""
    if m.slots[slot].marks & BLANK == 0:
        unlink(m, slot)
    free(m, slot)


@inlined
def remember(m, slot):  # type: ignore[no-untyped-def]
    """Append the exposure to the ring; if the ring is full, forget its oldest one."""
    size = len(m.ring)
    if m.counts[REMEMBERED] == size:
        evict(m, m.ring[m.counts[FIRST]])
        m.counts[FIRST] = (m.counts[FIRST] + 1) % size
        m.counts[REMEMBERED] -= 1
    m.ring[(m.counts[FIRST] + m.counts[REMEMBERED]) % size] = slot
    m.counts[REMEMBERED] += 1


@inlined
def push(m, slot):  # type: ignore[no-untyped-def]
    """Add the exposure to the heap, behind all that arrived before it with the same time."""
    ts = m.slots[slot].ts_ms
    at = m.counts[HELD]
    while at > 0:
        up = (at - 1) >> 1
        if m.heap[up].ts_ms <= ts:
            break
        m.heap[at] = m.heap[up]
        at = up
    top = m.heap[at]
    top.ts_ms = ts
    top.arrival = m.counts[OPENED]
    top.slot = slot
    m.counts[OPENED] += 1
    m.counts[HELD] += 1


@inlined
def sink(m, at, n, ts, arrival, moved):  # type: ignore[no-untyped-def]
    """Put an entry into the heap of n entries, at place `at` or below it."""
    while True:
        down = 2 * at + 1
        if down >= n:
            break
        a = m.heap[down]
        if down + 1 < n:
            b = m.heap[down + 1]
            if b.ts_ms < a.ts_ms or (b.ts_ms == a.ts_ms and b.arrival < a.arrival):
                down += 1
                a = b
        if ts < a.ts_ms or (ts == a.ts_ms and arrival < a.arrival):
            break
        m.heap[at] = m.heap[down]
        at = down
    last = m.heap[at]
    last.ts_ms = ts
    last.arrival = arrival
    last.slot = moved


@inlined
def pop(m):  # type: ignore[no-untyped-def]
    """Remove the oldest open exposure from the heap and return its slot."""
    slot = m.heap[0].slot
    m.counts[HELD] -= 1
    n = m.counts[HELD]
    if n == 0:
        return slot
    sink(m, 0, n, m.heap[n].ts_ms, m.heap[n].arrival, m.heap[n].slot)
    return slot


@inlined
def wait(m, user, item, slate, ts, value, marks):  # type: ignore[no-untyped-def]
    """Add an outcome to the waiting ring, overwriting the oldest one if it is full."""
    at = m.counts[WAITED] % len(m.waiting)
    bucket = np.int64(pair(user, item) & np.uint64(len(m.buckets) - 1))
    w = m.waiting[at]
    w.slate = slate
    w.ts_ms = ts
    w.before = m.buckets[bucket]
    w.user = user
    w.item = item
    w.value = value
    w.marks = marks
    m.counts[WAITED] += 1
    m.buckets[bucket] = m.counts[WAITED]
